import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from jaxbooth.data.images import list_images, load_image
from jaxbooth.data.masks import alpha_mask, find_masks, latent_mask, load_mask, require_masks, with_unmasked_weight
from jaxbooth.errors import DataError

WEIGHTS = st.floats(0, 1, width=32)
MASKS = arrays.arrays(np.float32, (8, 12), elements=WEIGHTS)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def blob(width=48, height=32):
    """A soft, lopsided mask's levels: every turn and mirror image of it differs."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray((255 * np.exp(-((x - width / 4) ** 2 + 2 * (y - height / 5) ** 2) / 200)).astype(np.uint8))


def cut_out(alpha):
    image = Image.new("RGB", alpha.size, (200, 30, 30))
    image.putalpha(alpha)
    return image


def turned(image, orientation=6):
    """The picture as a camera held sideways stores it, with the tag that sets it upright."""
    exif = Image.Exif()
    exif[274] = orientation
    return encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


# --- finding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ["01.jpg", "02.png", "03.webp"]:
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    return tmp_path


def write_mask(path):
    path.parent.mkdir(exist_ok=True)
    blob().save(path, "PNG")
    return path


def find(folder):
    return find_masks(folder, list_images(folder).images)


def test_masks_are_found_beside_pictures_and_in_the_masks_folder(folder):
    beside, below = write_mask(folder / "01.mask.png"), write_mask(folder / "masks" / "03.png")
    assert find(folder) == ({"01.jpg": beside, "03.webp": below}, [])


def test_folder_without_masks_has_none_and_no_problems(folder):
    (folder / "notes.txt").write_text("")
    assert find(folder) == ({}, [])


def test_mask_files_are_not_taken_for_pictures(folder):
    write_mask(folder / "01.mask.png"), write_mask(folder / "02.MASK.PNG"), write_mask(folder / "masks" / "03.png")
    images, ignored = list_images(folder)
    assert [path.name for path in images] == ["01.jpg", "02.png", "03.webp"]
    assert ignored == ("01.mask.png", "02.MASK.PNG", "masks/")
    assert set(find(folder)[0]) == {"01.jpg", "02.png", "03.webp"}


def test_every_mask_that_fits_no_picture_or_two_is_named(folder):
    write_mask(folder / "01.mask.png"), write_mask(folder / "masks" / "01.png")
    write_mask(folder / "4.mask.png"), write_mask(folder / "masks" / "02.jpg")
    Image.new("RGB", (32, 32)).save(folder / "03.png")
    write_mask(folder / "masks" / "03.png")
    (folder / "masks" / ".DS_Store").write_bytes(b"")
    files, problems = find(folder)
    assert files == {} and sorted(problems) == [
        "01.jpg: has both 01.mask.png and masks/01.png, keep one",
        "4.mask.png: there is no picture 4",
        "masks/02.jpg: masks are PNG files",
        "masks/03.png: belongs to 03.png or 03.webp? Rename one of them",
    ]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_levels_become_numbers_from_0_to_1():
    mask = load_mask(encode(blob()), (48, 32))
    assert mask.dtype == np.float32 and mask.shape == (32, 48)
    np.testing.assert_array_equal(mask, np.asarray(blob(), np.float32) / np.float32(255))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_grey_mask_reads_the_same_in_every_mode(mode):
    np.testing.assert_array_equal(
        load_mask(encode(blob().convert(mode)), (48, 32)), load_mask(encode(blob()), (48, 32))
    )


def test_bilevel_and_16_bit_masks_are_scaled():
    levels = np.asarray(blob())
    two = load_mask(encode(Image.fromarray(levels > 100)), (48, 32))
    np.testing.assert_array_equal(two, levels > 100)
    deep = load_mask(encode(Image.fromarray(levels.astype(np.uint16) * 257)), (48, 32))
    np.testing.assert_array_equal(deep, load_mask(encode(blob()), (48, 32)))


def test_cut_out_saved_as_a_mask_is_its_transparency():
    np.testing.assert_array_equal(load_mask(encode(cut_out(blob())), (48, 32)), np.asarray(blob(), np.float32) / 255)


def test_mask_with_a_rotation_tag_is_turned_upright():
    np.testing.assert_array_equal(load_mask(turned(blob()), (48, 32)), load_mask(encode(blob()), (48, 32)))


@pytest.mark.parametrize("size", [(96, 64), (24, 16), (144, 95)])
def test_mask_of_the_same_shape_is_resized(size):
    mask = load_mask(encode(blob(*size)), (48, 32))
    assert mask.shape == (32, 48)
    left, right = Image.new("L", size), Image.new("L", size, 255)
    left.paste(right.crop((0, 0, size[0] // 2, size[1])))
    half = load_mask(encode(left), (48, 32))
    assert (half[:, :22] == 1).all() and (half[:, 26:] == 0).all()


@pytest.mark.parametrize("size", [(48, 34), (64, 64), (50, 32)])
def test_mask_of_another_shape_is_refused_with_both_sizes(size):
    with pytest.raises(DataError, match=rf"dog\.png: the mask is {size[0]}x{size[1]} pixels, its picture 48x32 pixels"):
        load_mask(encode(blob(*size)), (48, 32), name="dog.png")


def test_mask_of_a_sideways_photo_must_stand_as_the_photo_stands():
    """A tool that ignores the rotation tag writes the mask as the photo is stored, not as it is seen."""
    photo = turned(Image.new("RGB", (48, 32)))
    upright = load_image(photo).size
    assert upright == (48, 32) and load_mask(encode(blob(*upright)), upright).shape == (32, 48)
    with pytest.raises(DataError, match="is 32x48 pixels, its picture 48x32 pixels.*on its side"):
        load_mask(encode(blob(*upright[::-1])), upright)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (48, 32)), "brightest pixel is 0 of 255"),
        (Image.new("L", (48, 32), 1), "brightest pixel is 1 of 255"),
        (Image.new("RGB", (48, 32), (128, 0, 0)), "is in colour"),
        (Image.new("L", (1, 1), 255), "at least 16"),
        (Image.new("1", (12000, 12000)), "more than 64 megapixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_a_mask_is_refused(tmp_path, image, message):
    path = tmp_path / "01.mask.png"
    image.save(path)
    with pytest.raises(DataError, match=rf"01\.mask\.png: .*{message}"):
        load_mask(path, (48, 32))


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_mask(data):
    for read in (lambda: load_mask(data, (48, 32)), lambda: alpha_mask(data)):
        with pytest.raises(DataError):
            read()


# --- transparency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_channel_is_read_from_files_and_bytes(tmp_path, format):
    path = tmp_path / "a.picture"
    cut_out(blob()).save(path, format, lossless=True)
    for source in (path, str(path), path.read_bytes()):
        mask = alpha_mask(source)
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, np.asarray(blob(), np.float32) / np.float32(255))


def test_alpha_stands_as_the_loaded_picture_does():
    data = turned(cut_out(blob()))
    mask, pixels = alpha_mask(data), np.asarray(load_image(data, background=(0, 0, 0)), np.float32)
    assert mask.shape == pixels.shape[:2]
    np.testing.assert_allclose(pixels[..., 0], 200 * mask, atol=1)  # red on black: the redder, the more opaque


def test_transparent_palette_colour_is_a_mask():
    palette = Image.fromarray((np.asarray(blob()) > 100).astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 10, 200, 30])
    np.testing.assert_array_equal(alpha_mask(encode(palette, transparency=0)), np.asarray(blob()) > 100)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L"])
def test_opaque_picture_has_no_mask(mode):
    assert alpha_mask(encode(blob().convert(mode))) is None


def test_picture_of_which_nothing_shows_is_refused():
    with pytest.raises(DataError, match=r"ghost\.png: .*transparent all over"):
        alpha_mask(encode(Image.new("RGBA", (32, 32))), name="ghost.png")


def test_missing_masks_are_named_with_the_ways_to_supply_them():
    mask = np.ones((4, 4), np.float32)
    assert require_masks("dog", {"1.png": mask})["1.png"] is mask
    with pytest.raises(DataError, match=r'"dog": 2 of 3 pictures have no mask:\n  - 2\.jpg\n  - 3\.jpg\n') as error:
        require_masks("dog", {"1.png": mask, "2.jpg": None, "3.jpg": None})
    assert all(way in str(error.value) for way in ["transparent", "NAME.mask.png", "masks/NAME.png"])


# --- weights ---------------------------------------------------------------------------------------------------------


@given(MASKS, st.sampled_from([1, 2, 4]))
def test_latent_mask_is_each_cells_mean(mask, factor):
    cells = latent_mask(mask, factor)
    assert cells.shape == (8 // factor, 12 // factor) and cells.dtype == np.float32
    for row, column in np.ndindex(cells.shape):
        part = mask[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        np.testing.assert_allclose(cells[row, column], part.mean(dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(("resolution", "factor"), [(64, 4), (512, 8)])
def test_cells_that_are_all_or_nothing_stay_exact(resolution, factor):
    cells = np.random.default_rng(0).integers(0, 2, (resolution // factor,) * 2).astype(np.float32)
    np.testing.assert_array_equal(latent_mask(np.kron(cells, np.ones((factor, factor), np.float32)), factor), cells)


def test_mask_that_does_not_divide_into_cells_is_refused():
    with pytest.raises(ValueError, match="10x12 pixels does not divide into cells of 4x4"):
        latent_mask(np.ones((10, 12), np.float32), 4)


@given(MASKS, WEIGHTS)
def test_unmasked_weight_lifts_what_is_left_out_and_keeps_what_is_in(mask, weight):
    lifted = with_unmasked_weight(mask, weight)
    assert lifted.dtype == np.float32
    np.testing.assert_allclose(lifted[mask == 1], 1, rtol=1e-6)
    np.testing.assert_array_equal(lifted[mask == 0], np.float32(weight))
    np.testing.assert_array_equal(with_unmasked_weight(mask, 0), mask)
    np.testing.assert_array_equal(with_unmasked_weight(mask, 1), np.ones_like(mask))
    # Lifting and then taking cells is taking cells and then lifting.
    np.testing.assert_allclose(latent_mask(lifted, 4), with_unmasked_weight(latent_mask(mask, 4), weight), atol=1e-6)
