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
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from jaxbooth.pocket.scenes import NOUNS, OTHER_NOUNS

SIZE = 128
ICONIFY_STYLES = ("noto", "noto-v1", "fxemoji", "fluent-emoji", "fluent-emoji-flat", "twemoji", "emojione")
PICTURE_STYLE, PICTURE_FOLDER = "fluent-3d", "@lobehub/fluent-emoji-3d/assets"
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
PRESENTATION = "fe0f"  # asks for the colour picture; says nothing about what is drawn


def iconify_sprites(package: Path, names: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
    """Codepoints and pictures of one iconify set; `names` are icon names by codepoint, where the set has none itself."""
    import resvg_py

    icons = json.loads((package / "icons.json").read_text())
    for codepoint, name in (_codepoints(package) or names).items():
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        if name not in icons["icons"]:
            continue
        icon = icons["icons"][name]
        box = [icon.get(side, icons.get(side, default)) for side, default in BOX]
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIZE}" height="{SIZE}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
        )
        yield codepoint, Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))))


BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # iconify's own defaults


def picture_sprites(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Codepoints and pictures of the set that is not drawn from SVG."""
    for file in sorted(folder.glob("*.webp")):
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
    names, counts = icon_names(modules), {}
    with tarfile.open(out, "w") as tar:
        for style in (*ICONIFY_STYLES, PICTURE_STYLE):
            counts[style] = 0
            is_picture = style == PICTURE_STYLE
            package = modules / (PICTURE_FOLDER if is_picture else f"@iconify-json/{style}")
            for codepoint, image in picture_sprites(package) if is_picture else iconify_sprites(package, names):
                parts = codepoint.split("-")
                if (everything or parts[0] in NOUNS or parts[0] in OTHER_NOUNS) and not SKIN_TONES & set(parts):
                    _add(tar, f"{style}/{codepoint}.webp", image)
                    counts[style] += 1
    return counts


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
