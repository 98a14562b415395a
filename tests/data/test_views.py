import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxbooth.data.views import views

SIDES = st.integers(16, 90)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


@given(SIDES, SIDES, st.booleans(), st.booleans(), st.integers(1, 4), st.integers(0, 2**31))
def test_views_are_deterministic_squares_with_corners_inside(width, height, center_crop, flip, crops, seed):
    image = noise(width, height)
    once, again = (views(image, 32, center_crop, flip, crops, seed) for _ in range(2))
    assert len(once) == (1 if center_crop else crops) * (2 if flip else 1)
    longer = max(32, round(max(width, height) * 32 / min(width, height)))
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one[1:] == other[1:]
        assert one.pixels.shape == (32, 32, 3) and one.pixels.dtype == np.uint8
        assert one.original_size == (height, width)
        top, left = one.crop_top_left
        assert 0 <= top <= (longer - 32 if height > width else 0)
        assert 0 <= left <= (longer - 32 if width > height else 0)


def test_center_crop_is_the_middle_of_the_resized_picture():
    image = noise(64, 32)
    (view,) = views(image, 32)
    np.testing.assert_array_equal(view.pixels, np.asarray(image)[:, 16:48])
    assert view.crop_top_left == (0, 16) and view.time_ids == (32, 64, 0, 16, 32, 32)


def test_flipped_view_is_the_same_cut_of_the_mirrored_picture():
    image = noise(90, 32)
    mirrored = np.asarray(image)[:, ::-1]
    plain, flipped = views(image, 32, center_crop=False, random_flip=True, seed=3)
    np.testing.assert_array_equal(flipped.pixels, plain.pixels[:, ::-1])
    left = flipped.crop_top_left[1]
    np.testing.assert_array_equal(flipped.pixels, mirrored[:, left : left + 32])


def test_seed_changes_random_crops_and_may_be_a_pair():
    image = noise(90, 32)
    corners = {
        seed: tuple(view.crop_top_left for view in views(image, 32, False, False, 6, seed))
        for seed in (0, 1, (0, 1), (0, 2))
    }
    assert len(set(corners.values())) == 4
    assert len(set(corners[0])) > 1


def test_flat_picture_stays_flat_when_resized():
    for size in [(300, 200), (17, 16)]:
        (view,) = views(Image.new("RGB", size, (7, 130, 250)), 64)
        assert (view.pixels == (7, 130, 250)).all()


def test_square_picture_still_gives_as_many_views_as_asked():
    assert len(views(noise(32, 32), 32, center_crop=False, random_crops=3, random_flip=True)) == 6


# --- masks -----------------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, st.booleans(), st.integers(0, 2**31))
def test_mask_goes_where_the_pixels_go(width, height, center_crop, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.float32)
    longer = max(32, round(max(width, height) * 32 / min(width, height)))
    size = (longer, 32) if width > height else (32, longer)
    upright = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR))
    # Where the pixels go is told by the corner, in the mirrored picture for every second view.
    for index, view in enumerate(views(noise(width, height), 32, center_crop, True, 2, seed, mask)):
        top, left = view.crop_top_left
        resized = upright[:, ::-1] if index % 2 else upright
        assert view.mask.dtype == np.float32 and view.mask.min() >= 0 and view.mask.max() <= 1
        np.testing.assert_allclose(view.mask, resized[top : top + 32, left : left + 32], atol=1e-6)


def test_mask_of_an_unresized_picture_is_cut_and_mirrored_exactly():
    image, mask = noise(90, 32), np.random.default_rng(0).random((32, 90), np.float32)
    plain, flipped = views(image, 32, center_crop=False, random_flip=True, seed=3, mask=mask)
    left = plain.crop_top_left[1]
    np.testing.assert_array_equal(plain.mask, mask[:, left : left + 32])
    np.testing.assert_array_equal(flipped.mask, plain.mask[:, ::-1])


def test_mask_changes_nothing_about_the_pixels():
    image, mask = noise(50, 40), np.eye(40, 50, dtype=np.float32)
    for bare, masked in zip(
        views(image, 32, False, True, 3, 7), views(image, 32, False, True, 3, 7, mask), strict=True
    ):
        np.testing.assert_array_equal(bare.pixels, masked.pixels)
        assert bare[1:3] == masked[1:3] and bare.mask is None and bare.caption_prefix == masked.caption_prefix == ""


def test_full_mask_stays_full_and_empty_stays_empty():
    for size in [(90, 40), (17, 16)]:
        for value in (0, 1):
            (view,) = views(noise(*size), 32, mask=np.full(size[::-1], value, np.float32))
            np.testing.assert_allclose(view.mask, value, atol=1e-6)


def test_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 48\) for a picture of \(48, 32\)"):
        views(noise(32, 48), 32, mask=np.ones((32, 48), np.float32))
