"""The method that docs/add-a-method.md writes, taken from its code block."""

import re
import sys
from pathlib import Path
from types import ModuleType

DOCUMENT = Path(__file__).parents[1] / "docs" / "add-a-method.md"


def code_block() -> str:
    """The document's only block of Python."""
    (block,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return block


def documented_method() -> type:
    """The class that the block defines."""
    module = ModuleType("documented_bitfit")
    sys.modules[module.__name__] = module  # where pydantic looks for the names in annotations
    exec(compile(code_block(), str(DOCUMENT), "exec"), module.__dict__)
    return module.BitFit
