"""Two subjects cut out and set side by side."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.collage import LARGEST_SIDE_MARGIN, collage, collage_caption, collage_images, draw_layout, mask_box
from jaxbooth.errors import DataError

RED, BLUE = (220, 0, 0), (0, 0, 220)  # no green: it tells how much white shows
SIZES = st.tuples(st.integers(1, 600), st.integers(1, 600)).filter(lambda size: max(size) <= 8 * min(size))
RESOLUTIONS = st.sampled_from([16, 64, 512, 1024])


def figure(colour, box=(10, 6, 30, 46), size=(40, 50), background=(0, 255, 0)):
    """A coloured ellipse on a loud ground, and its mask."""
    y, x = np.mgrid[: size[1], : size[0]]
    left, top, right, bottom = box
    inside = ((x + 0.5 - (left + right) / 2) / (right - left) * 2) ** 2 + (
        (y + 0.5 - (top + bottom) / 2) / (bottom - top) * 2
    ) ** 2 <= 1
    pixels = np.where(inside[..., None], colour, background).astype(np.uint8)
    return Image.fromarray(pixels), inside.astype(np.float32)


SUBJECTS = ([figure(RED)], [figure(BLUE, box=(4, 20, 36, 40))])


@pytest.fixture(scope="module")
def collages():
    rng = np.random.default_rng(0)
    return [collage(SUBJECTS, 64, rng) for _ in range(400)]


@pytest.fixture(scope="module")
def layouts():
    rng = np.random.default_rng(1)
    return [draw_layout([(20, 40), (32, 20)], 64, rng) for _ in range(10_000)]


def colours(pixels, colour):
    """Where a collage clearly has a colour."""
    return (np.abs(pixels.astype(int) - colour) < 60).all(-1)


# --- geometry --------------------------------------------------------------------------------------------------------


@given(SIZES, SIZES, RESOLUTIONS, st.integers(0, 2**31))
def test_subjects_are_inside_the_canvas_and_fit_their_half(size_a, size_b, resolution, seed):
    layout = draw_layout([size_a, size_b], resolution, np.random.default_rng(seed))
    margin = round(resolution / 32)
    for (left, top, right, bottom), size in zip(layout.boxes, (size_a, size_b), strict=True):
        assert margin <= left < right <= resolution - margin and margin <= top < bottom <= resolution - margin
        width, height = right - left, bottom - top
        assert width <= resolution // 2 - 2 * margin and height <= resolution - 2 * margin
        # The shape is kept, to the pixel.
        scale = max(width / size[0], height / size[1])
        assert (
            abs(width - scale * size[0]) <= 1 + size[0] / size[1]
            and abs(height - scale * size[1]) <= 1 + size[1] / size[0]
        )
    first, second = (layout.boxes[number] for number in layout.order)
    assert first[0] <= LARGEST_SIDE_MARGIN * resolution and resolution - second[2] <= LARGEST_SIDE_MARGIN * resolution
    assert first[0] + first[2] <= second[0] + second[2]


def test_sides_are_balanced(layouts):
    assert {layout.order for layout in layouts} == {(0, 1), (1, 0)}
    assert abs(np.mean([layout.order[0] for layout in layouts]) - 0.5) < 0.02


def test_front_and_back_are_balanced_and_independent_of_sides(layouts):
    assert {layout.front for layout in layouts} == {0, 1}
    for left in (0, 1):
        assert abs(np.mean([layout.front for layout in layouts if layout.order[0] == left]) - 0.5) < 0.03


def test_scales_margins_and_heights_vary_over_their_range(layouts):
    boxes = np.asarray([layout.boxes for layout in layouts])
    heights = boxes[:, 0, 3] - boxes[:, 0, 1]  # of a figure of 20x40 in a half of 28x60
    assert heights.min() == 28 and heights.max() == 56
    lefts = np.asarray([layout.boxes[layout.order[0]][0] for layout in layouts])
    rights = 64 - np.asarray([layout.boxes[layout.order[1]][2] for layout in layouts])
    for margins in (lefts, rights):
        assert (margins.min(), margins.max()) == (2, 16)
        np.testing.assert_allclose(margins.mean(), 9, atol=0.2)
    assert boxes[:, 0, 1].min() == 2 and boxes[:, 0, 3].max() == 62
    overlapping = boxes[:, :, 0].max(1) < boxes[:, :, 2].min(1)
    assert 0.05 < overlapping.mean() < 0.95


# --- pictures --------------------------------------------------------------------------------------------------------


def test_mask_is_the_union_of_the_two_subjects_and_the_rest_is_white(collages):
    for picture in collages:
        assert picture.pixels.shape == (64, 64, 3) and picture.pixels.dtype == np.uint8
        assert picture.mask.dtype == np.float32 and picture.mask.min() == 0 and picture.mask.max() == 1
        assert (picture.pixels[picture.mask == 0] == 255).all()
        np.testing.assert_allclose(picture.pixels[..., 1], 255 * (1 - picture.mask), atol=2)
        union = np.zeros((64, 64), bool)
        for left, top, right, bottom in picture.boxes:
            union[top:bottom, left:right] = True
        assert not (picture.mask[~union] > 0).any()


def test_each_box_is_its_subjects_and_touches_it_on_all_sides(collages):
    for picture in collages:
        for number, colour in enumerate((RED, BLUE)):
            if number != picture.front:
                continue
            own = np.zeros((64, 64), bool)
            left, top, right, bottom = picture.boxes[number]
            own[top:bottom, left:right] = True
            seen = colours(picture.pixels, colour)
            assert not (seen & ~own).any()
            box = mask_box(seen.astype(np.float32))
            np.testing.assert_allclose(box, picture.boxes[number], atol=2)


def test_rectangles_give_exactly_the_union_of_the_boxes_with_the_front_one_whole():
    rng, overlaps = np.random.default_rng(0), 0
    plain = [[(Image.new("RGB", (30, 40), colour), np.ones((40, 30), np.float32))] for colour in (RED, BLUE)]
    for _ in range(100):
        picture = collage(plain, 64, rng)
        inside = [_box(box, 64) for box in picture.boxes]
        np.testing.assert_array_equal(picture.mask, inside[0] | inside[1])
        front, back = inside[picture.front], inside[1 - picture.front]
        assert (picture.pixels[front] == (RED, BLUE)[picture.front]).all()
        assert (picture.pixels[back & ~front] == (RED, BLUE)[1 - picture.front]).all()
        overlaps += (front & back).any()
    assert overlaps > 20


def test_nothing_of_the_old_background_comes_along(collages):
    for picture in collages:
        red, green, blue = np.moveaxis(picture.pixels.astype(int), -1, 0)
        assert (green <= np.maximum(red, blue) + 8).all()


def test_soft_mask_is_mixed_with_white():
    image = Image.new("RGB", (20, 20), (100, 100, 100))
    soft = [(image, np.full((20, 20), 0.5, np.float32))]
    picture = collage((soft, soft), 512, np.random.default_rng(0))
    left, top, right, bottom = picture.boxes[picture.front]
    inside = np.isclose(picture.mask, 128 / 255)
    assert inside[top:bottom, left:right].all()
    one = inside & ~_box(picture.boxes[1 - picture.front], 512)
    np.testing.assert_allclose(picture.pixels[one], 255 - 155 / 2, atol=1)


def _box(box, resolution):
    inside = np.zeros((resolution, resolution), bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return inside


def test_every_picture_of_a_subject_is_used():
    shades = [figure((shade, 0, 0)) for shade in (100, 160, 220)]
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(90):
        picture = collage((shades, [figure(BLUE)]), 64, rng)
        reds = picture.pixels[(picture.pixels[..., 1] < 10) & (picture.pixels[..., 2] < 10)]
        found[int(np.median(reds[:, 0]))] += 1
    assert set(found) == {100, 160, 220} and min(found.values()) > 15


def test_collage_is_a_function_of_the_generators_seed():
    one, same, other = (collage(SUBJECTS, 64, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.pixels, same.pixels)
    np.testing.assert_array_equal(one.mask, same.mask)
    assert one[2:] == same[2:] and not np.array_equal(one.pixels, other.pixels)


def test_pictures_that_were_given_stay_as_they_are():
    image, mask = figure(RED)
    before, mask_before = image.copy(), mask.copy()
    collage(([(image, mask)], SUBJECTS[1]), 64, np.random.default_rng(0))
    assert image.mode == "RGB" and image == before
    np.testing.assert_array_equal(mask, mask_before)


def test_box_is_tight_and_passes_over_haze():
    mask = np.full((20, 30), 0.02, np.float32)
    mask[5:9, 7:20] = 0.4
    assert mask_box(mask) == (7, 5, 20, 9) and mask_box(np.zeros((4, 4))) is None


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "subject 2 of a collage: has no pictures"),
        ([(figure(RED)[0], None)], "subject 2 of a collage, picture 1: has no mask"),
        ([(figure(RED)[0], np.zeros((50, 40), np.float32))], "subject 2 of a collage, picture 1: nothing is white"),
    ],
)
def test_subject_without_a_mask_is_refused_with_the_ways_to_supply_one(pictures, message):
    with pytest.raises(DataError, match=message) as error:
        collage((SUBJECTS[0], pictures), 64, np.random.default_rng(0))
    assert all(way in str(error.value) for way in ["transparent", "NAME.mask.png", "masks/NAME.png"])


def test_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask of height and width"):
        collage((SUBJECTS[0], [(figure(RED)[0], np.ones((40, 50)))]), 64, np.random.default_rng(0))


# --- captions --------------------------------------------------------------------------------------------------------


def test_caption_names_both_in_either_order():
    rng = np.random.default_rng(0)
    counts = Counter(collage_caption("sks dog", "olis cat", rng) for _ in range(2000))
    assert set(counts) == {
        "a photo of a sks dog and a olis cat, simple background",
        "a photo of a olis cat and a sks dog, simple background",
    }
    assert all(abs(count / 2000 - 0.5) < 0.04 for count in counts.values())


def test_caption_order_matches_neither_side_nor_front_systematically():
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(10_000):  # drawn from one generator, as pictures and captions are
        layout = draw_layout([(20, 40), (32, 20)], 64, rng)
        first = 0 if collage_caption("dog", "cat", rng).startswith("a photo of a dog") else 1
        seen["left"] += first == layout.order[0]
        seen["front"] += first == layout.front
    assert abs(seen["left"] / 10_000 - 0.5) < 0.02 and abs(seen["front"] / 10_000 - 0.5) < 0.02


def test_collages_of_captioned_pictures_carry_their_mask_as_transparency(tmp_path):
    subjects = []
    for number, colour in enumerate([(200, 30, 30), (30, 30, 200)]):
        file = tmp_path / f"{number}.png"
        picture = Image.new("RGBA", (40, 40))
        picture.paste((*colour, 255), (10, 5, 30, 35))
        picture.save(file)
        subjects.append([CaptionedImage(file, "", file.name, mask="alpha")])
    images = collage_images(subjects, ["sks dog", "olis cat"], 6, 64, seed=3)
    again = collage_images(subjects, ["sks dog", "olis cat"], 6, 64, seed=3)
    assert [image.source for image in images] == [image.source for image in again]
    assert len({image.source for image in images}) == 6
    for image in images:
        pixels, mask = np.asarray(image.load()), image.load_mask()
        assert pixels.shape == (64, 64, 3) and mask.shape == (64, 64)
        assert (pixels[mask == 0] == 255).all()
        assert (pixels[mask == 1].max(axis=-1) == 200).all()  # the two colours and nothing of the white
        assert "sks dog" in image.caption and "olis cat" in image.caption


def test_collages_of_three_subjects_show_every_pair(tmp_path):
    file = tmp_path / "0.png"
    picture = Image.new("RGBA", (20, 20))
    picture.paste((0, 0, 0, 255), (5, 5, 15, 15))
    picture.save(file)
    subjects = [[CaptionedImage(file, "", file.name, mask="alpha")]] * 3
    captions = [image.caption for image in collage_images(subjects, ["a1", "b2", "c3"], 6, 64, seed=0)]
    for one, other in (("a1", "b2"), ("a1", "c3"), ("b2", "c3")):
        assert sum(one in caption and other in caption for caption in captions) == 2
