import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxbooth.data.images import MAX_FILE_BYTES, check_images, digest_pixels, list_images, load_image
from jaxbooth.errors import DataError


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(width=64, height=48, seed=0):
    """Smooth enough to survive JPEG, busy enough to notice turns."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * x / width, 255 * y / height, np.full_like(x, 40 * (seed % 5) + 30)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def difference(one, other):
    return np.abs(np.asarray(one, np.int32) - np.asarray(other, np.int32)).mean()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_accepted_formats_come_back_as_plain_rgb(format):
    image = load_image(encode(photo(), format))
    assert image.mode == "RGB" and image.size == (64, 48) and type(image) is Image.Image
    assert difference(image, photo()) < 4


def test_path_string_and_bytes_give_the_same_picture(tmp_path):
    path = tmp_path / "a.png"
    photo().save(path)
    images = [load_image(path), load_image(str(path)), load_image(path.read_bytes())]
    assert len({digest_pixels(image) for image in images}) == 1


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    Image.new("1", (12000, 12000)).save(folder / "bomb.png")
    Image.new("L", (10000, 8000)).save(folder / "bomb.jpg", quality=5)
    return folder


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", ["bomb.png", "bomb.jpg"])
def test_decompression_bomb_is_refused_by_its_header(bombs, name):
    assert (bombs / name).stat().st_size < 2**20
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"{name}: .*more than 64 megapixels"):
        load_image(bombs / name)
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # KiB; decoded it would be > 400 MB


def test_decompression_bomb_is_refused_within_a_small_address_space(bombs):
    limit = 2 * 2**30
    code = (
        "import resource, sys; from jaxbooth.data.images import check_images; from pathlib import Path;"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}));"
        "print(len(check_images(sorted(Path(sys.argv[1]).iterdir()))))"
    )
    # One thread: BLAS would reserve more address space than the limit leaves.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code, bombs], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "2", result.stderr


def test_largest_bomb_is_refused_by_pillow_and_named():
    header = encode(Image.new("1", (20, 20)), "PNG")
    ihdr = b"IHDR" + struct.pack(">II", 60000, 60000) + header[24:29]
    forged = header[:8] + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + header[33:]
    with pytest.raises(DataError, match=r"big\.png: more than 64 megapixels"):
        load_image(forged, name="big.png")


def test_file_over_the_byte_cap_is_refused_without_reading(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=r"huge\.png: 128 MiB, the limit is 128 MiB"):
        load_image(path)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_tiny_picture_is_refused(size):
    with pytest.raises(DataError, match="shorter side must have at least 16"):
        load_image(encode(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(16, 129), (1000, 100)])
def test_extreme_shape_is_refused(size):
    with pytest.raises(DataError, match="longer than 8 to 1"):
        load_image(encode(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(16, 16), (16, 128)])
def test_smallest_and_longest_allowed_pictures_pass(size):
    assert load_image(encode(Image.new("RGB", size), "PNG")).size == size


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_picture_is_refused_by_name(tmp_path, format, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, format)
    path = tmp_path / "cut.png"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"cut\.png"):
        load_image(path)


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_flipped_bytes_give_a_picture_or_a_data_error(position, value, format):
    data = bytearray(encode(photo(), format))
    data[position % len(data)] = value
    with contextlib.suppress(DataError):
        assert load_image(bytes(data)).mode == "RGB"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_data_error(data):
    with pytest.raises(DataError):
        load_image(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text\n" * 5, "not a picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is HTML, XML or SVG text"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "this is a HEIC picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_file_that_only_claims_to_be_a_picture_is_named_for_what_it_is(tmp_path, data, message):
    path = tmp_path / "fake.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        load_image(path)
    assert "fake.png" in str(error.value) and "JPEG, PNG, WebP or BMP" in str(error.value)


def test_missing_file_and_folder_and_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "folder.png").mkdir()
    for name, message in [("no.png", "No such file"), ("pipe.png", "not a regular"), ("folder.png", "not a regular")]:
        with pytest.raises(DataError, match=message):
            load_image(tmp_path / name)


# --- animations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_animation_is_refused(format):
    frames = [photo(seed=i) for i in range(3)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(DataError, match="an animation of 3 frames"):
        load_image(data)


def test_gif_is_refused_and_called_a_gif():
    frames = [photo(seed=i) for i in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="this is a GIF"):
        load_image(data)


def test_multi_picture_jpeg_gives_its_first_picture():
    data = encode(photo(seed=1), "MPO", save_all=True, append_images=[photo(seed=4)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert difference(load_image(data), photo(seed=1)) < 4


# --- modes -----------------------------------------------------------------------------------------------------------


def test_16_bit_gradient_is_scaled_and_not_clipped():
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = np.asarray(load_image(encode(Image.fromarray(levels), "PNG")))
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()
    np.testing.assert_array_equal(image[..., 0], np.round(levels / 257))


def test_32_bit_integer_picture_with_16_bit_levels_is_scaled(monkeypatch):
    """What older Pillows make of a 16-bit PNG."""
    levels = np.linspace(0, 65535, 64 * 64).astype(np.int32).reshape(64, 64)
    picture = Image.fromarray(levels)
    assert picture.mode == "I"
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: picture)
    np.testing.assert_array_equal(np.asarray(load_image(b"any"))[..., 0], np.round(levels / 257))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_the_stated_colour(mode):
    picture = Image.new(mode, (32, 32), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    picture.paste((200, 200, 200, 255) if mode == "RGBA" else (200, 255), (0, 0, 16, 32))
    data = encode(picture, "PNG")
    white, blue = load_image(data), load_image(data, background=(0, 0, 255))
    assert white.getpixel((4, 4)) == blue.getpixel((4, 4)) == (200, 200, 200)
    assert white.getpixel((28, 4)) == (255, 255, 255) and blue.getpixel((28, 4)) == (0, 0, 255)


def test_half_transparency_is_mixed():
    image = load_image(encode(Image.new("RGBA", (32, 32), (0, 0, 0, 128)), "PNG"))
    assert image.getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert load_image(encode(palette, "PNG")).getpixel((0, 0)) == (10, 200, 30)
    assert load_image(encode(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel_pictures_become_rgb(mode):
    picture = photo().convert(mode)
    np.testing.assert_array_equal(load_image(encode(picture, "PNG")), picture.convert("RGB"))


def test_cmyk_jpeg_keeps_its_colours():
    assert difference(load_image(encode(photo().convert("CMYK"), "JPEG", quality=95)), photo()) < 4


# --- EXIF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_6_is_applied_and_metadata_dropped(format):
    exif = Image.Exif()
    exif[274] = 6  # turned a quarter to the left; stands upright after a quarter to the right
    exif[271] = "A camera's maker"
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    image = load_image(encode(stored, format, exif=exif))
    assert image.size == (64, 48) and difference(image, photo()) < 4
    assert image.info == {} and not image.getexif()


@pytest.mark.parametrize("orientation", range(0, 10))
def test_every_exif_orientation_agrees_with_pillow(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(photo(), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(load_image(data), expected)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_listing_is_sorted_and_names_what_it_ignores(tmp_path):
    for name in ["b.JPG", "a.png", "c.webp", "d.gif"]:
        (tmp_path / name).write_bytes(b"")
    for name in [".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png", "a.mask.png", "metadata.jsonl"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.png").mkdir()
    images, ignored = list_images(tmp_path)
    assert [path.name for path in images] == ["a.png", "b.JPG", "c.webp", "d.gif"]
    assert ignored == (".DS_Store", ".hidden.png", "Thumbs.db", "a.mask.png", "metadata.jsonl", "notes.txt", "sub.png/")


def test_listing_a_missing_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be listed"):
        list_images(tmp_path / "no")


def test_check_images_reports_every_bad_picture(tmp_path):
    photo().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    problems = check_images(sorted(tmp_path.iterdir()))
    assert len(problems) == 2 and "bad.png" in problems[0] and "small.png" in problems[1]
