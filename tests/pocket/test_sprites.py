import io
import tarfile

import pytest
from PIL import Image

from jaxbooth.errors import DataError
from jaxbooth.pocket.sprites import LONGEST_SIDE, load_sprites


def encoded(box: tuple[int, int, int, int] | None) -> bytes:
    image = Image.new("RGBA", (128, 128))
    if box:
        image.paste((10, 200, 30, 255), box)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


FILES = {
    "noto/1f415.webp": encoded((20, 40, 84, 72)),
    "noto/1f408-200d-2b1b.webp": encoded((0, 0, 10, 100)),
    "fxemoji/1f408.webp": encoded((0, 0, 128, 128)),
    "fxemoji/2205.webp": encoded(None),
}


@pytest.fixture(params=["folder", "archive"])
def source(request, tmp_path):
    folder = tmp_path / "sprites"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if request.param == "folder":
        return folder
    with tarfile.open(tmp_path / "sprites.tar", "w") as tar:
        tar.add(folder, arcname=".")
    return tmp_path / "sprites.tar"


def test_sprites_are_trimmed_and_scaled_and_empty_ones_left_out(source):
    sprites = load_sprites(source)
    assert [(s.style, s.codepoint) for s in sprites] == [
        ("fxemoji", "1f408"),
        ("noto", "1f408-200d-2b1b"),
        ("noto", "1f415"),
    ]
    assert sprites[2].image.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert sprites[2].image.getpixel((48, 24)) == (10, 200, 30, 255)


def test_codepoints_select_by_their_first_part(source):
    assert [s.codepoint for s in load_sprites(source, frozenset({"1f408"}))] == ["1f408", "1f408-200d-2b1b"]


def test_what_is_no_archive_of_sprites_is_refused_with_advice(tmp_path, source):
    with pytest.raises(DataError, match="make_sprites.py"):
        load_sprites(tmp_path / "absent.tar")
    with pytest.raises(DataError, match="style/codepoint.webp"):
        load_sprites(source, frozenset({"1f600"}))
    (tmp_path / "text.tar").write_text("not a tar")
    with pytest.raises(DataError, match="not a tar archive"):
        load_sprites(tmp_path / "text.tar")
