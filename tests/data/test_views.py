import numpy as np
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
