"""What an exporter has written, and how its files are used: what a model card tells."""

from dataclasses import dataclass, field

from jaxbooth.export.markdown import literal
from jaxbooth.export.source import Trained


@dataclass(frozen=True)
class Use:
    """How one client reads the files: a paragraph of Markdown, and source code if there is any."""

    client: str
    text: str = ""
    code: str = ""
    language: str = "python"


@dataclass(frozen=True)
class Contents:
    """Files below an export's folder, what each is, how clients read them, and what should be known."""

    files: dict[str, str] = field(default_factory=dict)
    uses: tuple[Use, ...] = ()
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # of the hub


def diffusers_use(trained: Trained, lines: list[str], *, base: str | None = None, prompt: str | None = None) -> Use:
    """A script that opens a pipeline, runs `lines` on `pipe`, and draws.

    Args:
        trained: What was exported.
        lines: Python; `folder` is where the files lie.
        base: What to open in place of the base.
        prompt: What to draw; default: every subject on the beach.
    """
    kind, where = trained.family.pipeline_class, literal(trained.base.place)
    if trained.base.path == "pocket":
        where = '"path/to/pocket"  # jaxbooth export pocket path/to/pocket'
    opened = [f"base = {where}"] if base is None else []
    script = [
        "import torch",
        f"from diffusers import {kind}",
        "",
        *opened,
        'folder = "."  # where these files lie',
        'device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)',
        f"pipe = {kind}.from_pretrained({base or 'base'}, torch_dtype=dtype).to(device)",
        *lines,
        f"pipe({literal(prompt or trained.prompt())}).images[0].save({literal(trained.name + '.png')})",
    ]
    return Use("diffusers", code="\n".join(script))
