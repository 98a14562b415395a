"""docs/add-a-method.md, done as it says in a copy of the package."""

import shutil
from pathlib import Path

import pytest
from command import Command
from documented import code_block

import jaxbooth

PACKAGE = Path(jaxbooth.__file__).parent
OLD, NEW = "| Pivotal,", "| Pivotal | BitFit,"


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    """A copy of the package with one file and one line more."""
    folder = tmp_path_factory.mktemp("product")
    shutil.copytree(PACKAGE, folder / "jaxbooth", ignore=shutil.ignore_patterns("__pycache__"))
    methods = folder / "jaxbooth" / "methods"
    (methods / "bitfit.py").write_text(code_block())
    union = (methods / "__init__.py").read_text()
    assert OLD in union
    import_line = "from jaxbooth.methods.bitfit import BitFit\n"
    at = union.index("from jaxbooth.methods.custom_diffusion")
    (methods / "__init__.py").write_text((union[:at] + import_line + union[at:]).replace(OLD, NEW))
    return folder


def test_one_file_and_one_line_make_a_method_of_the_command(product, tmp_path):
    config = PACKAGE.parent / "configs" / "pocket" / "lora.yaml"
    changes = ['method={type: bitfit, targets: "attn2.to_out.0$"}', "prior.loss_weight=0", "train.steps=2"]
    changes += ["sample.prompts=[]", "sample.class_prompts=[]", "run_dir=run"]
    changes += [f"subjects.0.images={PACKAGE / 'pocket' / 'subjects' / 'twemoji_stuffed_animal'}"]
    with Command(tmp_path, "train", config, *changes, PYTHONPATH=str(product)) as command:
        assert command.finish() == 0, command.said()
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    with Command(tmp_path, "train", config, *changes, "method.targts=x", PYTHONPATH=str(product)) as command:
        assert command.finish() == 2
    assert 'Did you mean "targets"?' in command.said()
