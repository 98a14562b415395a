"""Makes the archive of emoji sprites (`style/codepoint.webp`, 128 px) from the emoji sets' own npm packages.

    npm install --prefix emoji @iconify-json/noto @iconify-json/noto-v1 @iconify-json/fxemoji @iconify-json/twemoji \
        @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat @iconify-json/emojione @lobehub/fluent-emoji-3d
    pip install resvg-py
    python configs/pocket/make_sprites.py emoji/node_modules sprites.tar

The iconify sets are SVG in one JSON file, drawn here with resvg (which knows the filters that Fluent uses); the 3D set
is pictures already. Licences and credits are in NOTICE.
"""

import argparse
import io
import json
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from jaxbooth.pocket.scenes import NOUNS, OTHER_NOUNS

SIZE = 128
ICONIFY_STYLES = ("noto", "noto-v1", "fxemoji", "fluent-emoji", "fluent-emoji-flat", "twemoji", "emojione")
PICTURE_STYLE, PICTURE_FOLDER = "fluent-3d", "@lobehub/fluent-emoji-3d/assets"
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
PRESENTATION = "fe0f"  # asks for the colour picture; says nothing about what is drawn
BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # an icon's view box, with iconify's own defaults

Wanted = Callable[[str], bool]  # says of a codepoint whether its sprite goes into the archive


def iconify_sprites(package: Path, names: dict[str, str], wanted: Wanted) -> Iterator[tuple[str, Image.Image]]:
    """Codepoints and pictures of one iconify set; `names` are icon names by codepoint for a set that has no table."""
    icons = json.loads((package / "icons.json").read_text())
    for codepoint, name in (_codepoints(package) or names).items():
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        if wanted(codepoint) and name in icons["icons"]:
            icon = icons["icons"][name]
            box = " ".join(str(icon.get(side, icons.get(side, default))) for side, default in BOX)
            yield codepoint, _draw(box, icon["body"])


def _draw(box: str, body: str) -> Image.Image:
    import resvg_py

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def picture_sprites(folder: Path, wanted: Wanted) -> Iterator[tuple[str, Image.Image]]:
    """Codepoints and pictures of the set that is not drawn from SVG."""
    for file in sorted(folder.glob("*.webp")):
        if wanted(_plain(file.stem)):
            yield _plain(file.stem), Image.open(file)


def icon_names(modules: Path) -> dict[str, str]:
    """Icon names by codepoint: Noto's table, then Unicode's own names for what it lacks ("amphora", "dog-face")."""
    unicode = {code: unicodedata.name(chr(int(code, 16))).lower().replace(" ", "-") for code in NOUNS | OTHER_NOUNS}
    return unicode | _codepoints(modules / "@iconify-json/noto")


def _codepoints(package: Path) -> dict[str, str]:
    return {_plain(code): name for code, name in json.loads((package / "chars.json").read_text()).items()}


def _plain(codepoint: str) -> str:
    return "-".join(part for part in codepoint.lower().split("-") if part != PRESENTATION)


def make_archive(modules: Path, out: Path, everything: bool) -> dict[str, int]:
    """Writes the archive; returns the number of sprites of each style."""

    def wanted(codepoint: str) -> bool:
        parts = codepoint.split("-")
        return (everything or parts[0] in NOUNS | OTHER_NOUNS) and not SKIN_TONES & set(parts)

    names, counts = icon_names(modules), {}
    with tarfile.open(out, "w") as tar:
        for style in ICONIFY_STYLES:
            sprites = iconify_sprites(modules / "@iconify-json" / style, names, wanted)
            counts[style] = _add_all(tar, style, sprites)
        counts[PICTURE_STYLE] = _add_all(tar, PICTURE_STYLE, picture_sprites(modules / PICTURE_FOLDER, wanted))
    return counts


def _add_all(tar: tarfile.TarFile, style: str, sprites: Iterator[tuple[str, Image.Image]]) -> int:
    count = 0
    for codepoint, image in sprites:
        _add(tar, f"{style}/{codepoint}.webp", image)
        count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image = image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    image.save(buffer, "WEBP", quality=90, method=6)
    member = tarfile.TarInfo(name)
    member.size = buffer.tell()
    buffer.seek(0)
    tar.addfile(member, buffer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sprite archive from npm packages.")
    parser.add_argument("modules", type=Path, help="node_modules, with the eight packages in it")
    parser.add_argument("out", type=Path, help="archive to write (.tar)")
    parser.add_argument("--everything", action="store_true", help="all emoji, not only those that scenes know by name")
    options = parser.parse_args()
    for style, count in make_archive(options.modules, options.out, options.everything).items():
        print(f"{count:>5}  {style}")


if __name__ == "__main__":
    main()
