"""Custom Diffusion's augmentation: sizes and words, and a mask that keeps the blank out of the loss."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxbooth.data.masks import latent_mask
from jaxbooth.data.size_augmentation import BLANK, draw_size, eroded, prefixed, size_augmented_views
from jaxbooth.data.views import views
from jaxbooth.errors import DataError

POCKET, SD1 = (64, 4), (512, 8)
DRAWS = 10_000
FAR, ZOOMED = {"a far away", "very small"}, {"zoomed in", "close up"}


@pytest.fixture(scope="module")
def sizes():
    rng = np.random.default_rng(0)
    return [draw_size(rng) for _ in range(DRAWS)]


def green(width=96, height=96):
    """Nowhere grey, and different everywhere."""
    y, x = np.mgrid[:height, :width]
    channels = [60 * x / width, np.full_like(x, 250), 60 * y / height]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def shown(view):
    """Where a view shows the picture and not the blank."""
    return (view.pixels != BLANK).any(-1)


# --- ratios and words ------------------------------------------------------------------------------------------------


def test_caption_prefix_matches_the_ratio_bucket_in_10_000_draws(sizes):
    for ratio, prefix in sizes:
        if ratio > 1:
            assert 1.2 <= ratio <= 1.4 and prefix in ZOOMED
        elif ratio < 0.6:
            assert ratio >= 0.4 and prefix in FAR
        else:
            assert prefix == ""


def test_bucket_frequencies_are_a_third_and_two_thirds_within_2_percent(sizes):
    zoomed = np.mean([ratio > 1 for ratio, _ in sizes])
    assert abs(zoomed - 1 / 3) < 0.02 and abs(np.mean([ratio <= 1 for ratio, _ in sizes]) - 2 / 3) < 0.02
    # A third of 0.4 to 1.0 lies below 0.6.
    assert abs(np.mean([ratio < 0.6 for ratio, _ in sizes]) - 2 / 9) < 0.02


def test_both_wordings_of_a_bucket_are_as_likely_and_ratios_fill_their_range(sizes):
    words = Counter(prefix for _, prefix in sizes if prefix)
    assert set(words) == FAR | ZOOMED
    assert abs(words["zoomed in"] / (words["zoomed in"] + words["close up"]) - 0.5) < 0.03
    assert abs(words["very small"] / (words["very small"] + words["a far away"]) - 0.5) < 0.03
    zoomed, others = ([ratio for ratio, _ in sizes if (ratio > 1) is side] for side in (True, False))
    np.testing.assert_allclose(np.histogram(zoomed, 4, (1.2, 1.4))[0] / len(zoomed), 1 / 4, atol=0.03)
    np.testing.assert_allclose(np.histogram(others, 6, (0.4, 1.0))[0] / len(others), 1 / 6, atol=0.02)


def test_prefix_stands_in_front_of_the_caption_as_in_the_paper():
    caption = "photo of a <new1> cat"
    assert prefixed(caption, "a far away") == "a far away photo of a <new1> cat"
    assert prefixed(caption, "zoomed in") == "zoomed in photo of a <new1> cat"
    assert prefixed(caption, "") == caption


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "factor", "count"), [(*POCKET, 300), (*SD1, 40)])
def test_mask_lies_inside_the_pasted_area_and_off_every_cell_that_touches_the_blank(resolution, factor, count):
    drawn = size_augmented_views(green(), resolution, count, 0, factor)
    pasted = [view for view in drawn if view.caption_prefix in FAR]
    assert len(pasted) > count / 8
    for view in pasted:
        picture = shown(view)
        rows, columns = picture.any(1), picture.any(0)
        np.testing.assert_array_equal(picture, rows[:, None] & columns)  # a rectangle, and a square:
        assert rows.sum() == columns.sum() and 0.4 * resolution - 1 < rows.sum() < 0.6 * resolution + 1
        assert not (view.mask.astype(bool) & ~picture).any()
        whole = latent_mask(picture.astype(np.float32), factor) == 1
        expected = ndimage.binary_erosion(whole, np.ones((3, 3)))  # one latent cell on each side
        assert expected.any()
        np.testing.assert_array_equal(latent_mask(view.mask, factor), expected)


@pytest.mark.parametrize(("resolution", "factor"), [POCKET, SD1])
def test_erosion_is_exact_at_every_place_and_leaves_something(resolution, factor):
    for side in (round(0.4 * resolution), round(0.4 * resolution) + 1, round(0.6 * resolution)):
        for start in range(resolution - side + 1):
            first, last = eroded(start, start + side, factor)
            assert first % factor == last % factor == 0 and first < last
            # One cell less than a whole one would still fit neither in front nor behind.
            assert factor <= first - start < 2 * factor and factor <= start + side - last < 2 * factor


def test_pasted_pictures_lie_anywhere_on_the_canvas():
    drawn = [view for view in size_augmented_views(green(), 64, 400, 0, 4) if view.caption_prefix in FAR]
    corners = np.asarray([np.argwhere(shown(view))[[0, -1]] for view in drawn])
    assert (corners[:, 0].min(0) <= 1).all() and (corners[:, 1].max(0) >= 62).all()
    assert abs(np.corrcoef(corners[:, 0].T)[0, 1]) < 0.3  # rows and columns are drawn apart


def test_views_of_middling_size_are_the_whole_picture_without_words():
    image = green()
    plain, flipped = views(image, 64, random_flip=True)
    drawn = [view for view in size_augmented_views(image, 64, 100, 0, 4) if not view.caption_prefix]
    kinds = Counter()
    for view in drawn:
        which = int(np.array_equal(view.pixels, flipped.pixels))
        np.testing.assert_array_equal(view.pixels, (plain, flipped)[which].pixels)
        np.testing.assert_array_equal(view.mask, np.ones((64, 64)))
        kinds[which] += 1
    assert kinds[0] and kinds[1]


def test_zoomed_views_are_full_crops_of_the_enlarged_picture():
    image = green(64, 64)
    drawn = size_augmented_views(image, 64, 60, 0, 4, random_flip=False)
    zoomed = [view for view in drawn if view.caption_prefix in ZOOMED]
    enlarged = {side: np.asarray(image.resize((side, side), Image.Resampling.LANCZOS)) for side in range(77, 91)}
    for view in zoomed:
        top, left = view.crop_top_left
        found = [big[top : top + 64, left : left + 64] for big in enlarged.values()]
        assert any(np.array_equal(part, view.pixels) for part in found)
        np.testing.assert_array_equal(view.mask, np.ones((64, 64)))
    corners = np.asarray([view.crop_top_left for view in zoomed])
    assert (np.ptp(corners, axis=0) > 8).all()


def test_size_conditioning_tells_the_corner_in_the_whole_resized_picture():
    image = green(96, 64)
    for view in size_augmented_views(image, 64, 60, 0, 4):
        top, left = view.crop_top_left
        assert view.original_size == (64, 96) and view.time_ids == (64, 96, top, left, 64, 64)
        if view.caption_prefix in ZOOMED:
            assert 0 <= top <= 26 and 19 <= left <= 23 + 26  # from the middle square of 115 to 134 pixels' width on
        elif not view.caption_prefix:
            assert (top, left) == (0, 16)


def test_flips_are_half_of_the_views_and_can_be_switched_off():
    image = green()
    reds = [
        np.diff(view.pixels[shown(view).any(1)][0, :, 0].astype(int))
        for view in size_augmented_views(image, 64, 400, 1, 4)
    ]
    rising = np.mean([np.sum(steps[np.abs(steps) < 20]) > 0 for steps in reds])
    assert abs(rising - 0.5) < 0.08
    for view in size_augmented_views(image, 64, 50, 1, 4, random_flip=False):
        steps = np.diff(view.pixels[shown(view).any(1)][0, :, 0].astype(int))
        assert np.sum(steps[np.abs(steps) < 20]) > 0


def test_the_subjects_own_mask_goes_the_same_way():
    mask = np.zeros((96, 96), np.float32)
    mask[30:60, 20:50] = 1
    pixels = np.full((96, 96, 3), 250, np.uint8)
    pixels[30:60, 20:50] = (250, 0, 0)
    image = Image.fromarray(pixels)
    masked, bare = (size_augmented_views(image, 64, 80, 0, 4, mask=given) for given in (mask, None))
    for one, other in zip(masked, bare, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.caption_prefix == other.caption_prefix and one.mask.max() > 0.99
        assert (one.mask <= other.mask).all()
        red = (one.pixels[..., 0] > 200) & (one.pixels[..., 1] < 125)
        np.testing.assert_array_equal((one.mask > 0.5) & (other.mask == 1), (one.mask > 0.5) & red & (other.mask == 1))
        assert (red & (other.mask == 1) & (one.mask < 0.3)).sum() == 0


def test_views_are_a_function_of_the_seed():
    image = green()
    once, again, longer = (size_augmented_views(image, 64, count, (3, 1), 4) for count in (6, 6, 9))
    for one, other, same in zip(once, again, longer, strict=False):
        for field in ("pixels", "mask"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
            np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
        assert one.caption_prefix == other.caption_prefix == same.caption_prefix
    other_seed = size_augmented_views(image, 64, 6, (3, 2), 4)
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in zip(once, other_seed, strict=True))


@pytest.mark.parametrize(("resolution", "factor", "least"), [(16, 2, 18), (32, 4, 38), (64, 8, 78)])
def test_resolution_that_leaves_nothing_inside_the_mask_is_refused(resolution, factor, least):
    with pytest.raises(DataError, match=rf"resolution {resolution} is too small.*Use {least} or more"):
        size_augmented_views(green(), resolution, 1, 0, factor)
    drawn = size_augmented_views(green(), -(-least // factor) * factor, 60, 0, factor)
    assert all(view.mask.any() for view in drawn)
