"""The shell of every page: one file that a browser opens from disk, loads nothing and runs its own script alone.

Names, prompts and reasons come from outside: texts are escaped where they stand, data goes in as JSON that cannot end
its block, and a Content-Security-Policy names the one style and the one script by their digests.
"""

import base64
import hashlib
import html
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxbooth.errors import ConfigError

ASSETS = Path(__file__).with_name("assets")
GENERATOR = "jaxbooth"
_HEAD_BYTES = 4096  # of a page, in which its generator is named


def text(value: Any, longest: int | None = None) -> str:
    """A value as HTML text, also inside of a quoted attribute; cut after `longest` characters."""
    plain = str(value)
    return html.escape(plain if longest is None or len(plain) <= longest else f"{plain[:longest]}…")


def build_page(title: str, body: str, assets: tuple[str, ...], data: Any, images: str = "data:") -> str:
    """A whole page.

    Args:
        title: Of the window; escaped here.
        body: HTML.
        assets: Names of files in `assets/`: the styles (.css), then the scripts (.js), in their order.
        data: What the script reads from the element `data`; JSON.
        images: Where pictures may come from, as the policy's img-src.
    """
    style, script = (
        "".join((ASSETS / name).read_text(encoding="utf-8") for name in assets if name.endswith(kind))
        for kind in (".css", ".js")
    )
    policy = (
        f"default-src 'none'; img-src {images}; style-src '{digest(style)}'; script-src '{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title><style>{style}</style></head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{json_block(data)}</script>\n'
        f"<script>{script}</script></body></html>\n"
    )


def json_block(data: Any) -> str:
    """JSON in ASCII without a character that could end a script element or begin a comment in it.

    Raises:
        ValueError: A number is not finite, which JSON cannot say.
    """
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def digest(source: str) -> str:
    """What a Content-Security-Policy calls an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def check_place(path: Path) -> None:
    """Raises ConfigError unless a file or folder of this name can be made."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise ConfigError(f"{path}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: {parent} cannot be written")


def check_page_file(file: Path) -> None:
    """Raises ConfigError unless a page can be written there: a new file, or an earlier page of ours."""
    check_place(file)
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: name the page itself, e.g. {file / 'report.html'}")
    if file.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{file}: a page ends in .html; it comes last, after the runs")
    if file.exists():
        with file.open("rb") as stream:
            if f'name="generator" content="{GENERATOR}"'.encode() not in stream.read(_HEAD_BYTES):
                raise ConfigError(f"{file} is there and is no page of jaxbooth's: choose another name")


def replace_file(file: Path, content: str) -> None:
    """Writes a file, for its owner alone, under another name first: a reader meets the old one or the new one.

    Raises:
        OSError: It cannot be written; the earlier one is left as it was.
    """
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content.encode("utf-8", "xmlcharrefreplace"))
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
