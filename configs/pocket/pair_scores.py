"""Two subjects in one picture: one table row for each folder of pictures, or what the scores are worth.

    python configs/pocket/pair_scores.py PICTURES [PICTURES ...] [--references DOG CAT]
    python configs/pocket/pair_scores.py --calibrate [--scenes 2] [--references DOG CAT]

PICTURES are folders of 64 px pictures that should show both subjects, such as `jaxbooth sample` writes them. Columns:
fraction of pictures with one thing of each class and no more; fraction of the things that look more like the other
subject; Detect-and-Compare (EfficientNet-Lite0).

--calibrate draws scenes of which the truth is known, passes them through the pocket base's VAE, since what is generated
is as soft as that, and scores them. Sprites are cut out of each subject's first reference, which must stand on white.
Keep to MEASURABLE places in the prompts of a table: in wheat a tan dog is not told from the ground, and edges of
mountains and houses blur outlines.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxbooth import load_pipeline
from jaxbooth.data.images import list_images, load_image
from jaxbooth.errors import DataError, JaxboothError
from jaxbooth.evaluation.pairs import Subject, describe_subject, find_subjects, found_scores, pair_scores
from jaxbooth.evaluation.pocket_boxes import find_things, recognise_place
from jaxbooth.pocket import SUBJECTS
from jaxbooth.pocket.backgrounds import PLACES
from jaxbooth.pocket.pairs import Box, compose_pair, cut_out, half_and_half, overlap, recoloured
from jaxbooth.pocket.scenes import compose

HIDING = ("in a wheat field", "with a mountain in the background", "with a blue house in the background")
MEASURABLE = tuple(place for place in PLACES if place not in HIDING)  # both are found in 9 of 10 scenes or more
BOTH, SWAPPED = "a and b", "a and b, colours swapped"
THIRD = "emojione_backpack"  # a thing that is neither

Draw = Callable[[str, Random], tuple[Image.Image, tuple[Box, ...] | None]]  # boxes, None where they are not known


class Scene(NamedTuple):
    place: str
    picture: np.ndarray
    boxes: tuple[Box, ...] | None
    count: int


def kinds(a: Image.Image, b: Image.Image, third: Image.Image) -> dict[str, tuple[int, Draw]]:
    """Number of things and how to draw them; the first row is what should be found, the second all swapped."""

    def pair(first: Image.Image, second: Image.Image) -> tuple[int, Draw]:
        def draw(place: str, rng: Random):
            scene, *boxes = compose_pair(first, second, place, rng)
            return scene, tuple(boxes)

        return 2, draw

    def single(sprite: Image.Image) -> tuple[int, Draw]:
        return 1, lambda place, rng: (compose(sprite, place, rng), None)

    return {
        BOTH: pair(a, b),
        SWAPPED: pair(recoloured(a, b), recoloured(b, a)),
        "a twice": pair(a, a),
        "b twice": pair(b, b),
        "a and another thing": pair(a, third),
        "b and another thing": pair(b, third),
        "a alone": single(a),
        "b alone": single(b),
        "one, half a half b": single(half_and_half(a, b)),
        "two, each half a half b": pair(half_and_half(a, b), half_and_half(a, b)),
        "nothing": (0, lambda place, rng: (PLACES[place](rng), ())),
    }


def scenes(count: int, draw: Draw, kind: str, per_place: int) -> list[Scene]:
    drawn = []
    for place in PLACES:
        for number in range(per_place):
            picture, boxes = draw(place, Random(f"{kind}:{place}:{number}"))
            drawn.append(Scene(place, np.asarray(picture), boxes, count))
    softened = through_vae(np.stack([scene.picture for scene in drawn]))
    return [scene._replace(picture=picture) for scene, picture in zip(drawn, softened, strict=True)]


def through_vae(pictures: np.ndarray) -> np.ndarray:
    vae = load_pipeline("pocket").vae
    decoded = [vae.decode(np.split(vae.encode(rows / np.float32(127.5) - 1), 2, -1)[0]) for rows in batches(pictures)]
    return np.uint8(np.round(np.clip(np.concatenate(decoded) * 127.5 + 127.5, 0, 255)))


def batches(pictures: np.ndarray, size: int = 26) -> Iterator[np.ndarray]:
    yield from (pictures[start : start + size] for start in range(0, len(pictures), size))


def calibrate(references: list[list[np.ndarray]], per_place: int) -> None:
    subjects = [describe_subject(pictures) for pictures in references]
    third = cut_out(Image.open(SUBJECTS / THIRD / "00.png"))
    print("| scenes | pictures | things counted right | presence | swaps | D&C |\n|---|---|---|---|---|---|")
    found_by_place, wrongly_by_place, overlaps = defaultdict(list), defaultdict(list), []
    for kind, (count, draw) in kinds(*(cut_out(Image.fromarray(rows[0])) for rows in references), third).items():
        rows = scenes(count, draw, kind, per_place)
        found = [[thing.box for thing in find_things(scene.picture)] for scene in rows]
        counted = np.mean([len(boxes) == scene.count for boxes, scene in zip(found, rows, strict=True)])
        scores = print_row(kind, rows, subjects, f" {counted:.2f} |")
        if kind != SWAPPED:
            by_place = found_by_place if kind == BOTH else wrongly_by_place
            for scene, score in zip(rows, scores, strict=True):
                by_place[scene.place].append(score)
        for boxes, scene in zip(found, rows, strict=True):
            overlaps += [max((overlap(box, truth) for box in boxes), default=0.0) for truth in scene.boxes or ()]
    print(f"\nBoxes: mean IoU {np.mean(overlaps):.2f}, over 0.5 in {np.mean(np.array(overlaps) > 0.5):.1%}")
    print("\n| place | both found | wrongly found |\n|---|---|---|")
    for place, found in found_by_place.items():
        print(f"| {place} | {np.mean(found):.2f} | {np.mean(wrongly_by_place[place]):.2f} |")


def print_row(kind: str, rows: list[Scene], subjects: list[Subject], middle: str) -> list[bool]:
    """Prints one row; says of each picture whether both subjects were found in it."""
    found = find_subjects(np.stack([scene.picture for scene in rows]), subjects)
    scores = found_scores(found, subjects)
    print(f"| {kind} | {len(rows)} |{middle}{cells(scores)}", flush=True)
    return [sorted(picture.classes) == [0, 1] for picture in found]


def cells(scores: dict[str, float]) -> str:
    swaps = "-" if np.isnan(scores["swaps"]) else f"{scores['swaps']:.2f}"
    return f" {scores['presence']:.2f} | {swaps} | {scores['detect_and_compare']:.2f} |"


def photos(folder: Path) -> list[np.ndarray]:
    return [np.asarray(load_image(path)) for path in list_images(folder).images]


def table(folders: list[Path], references: list[list[np.ndarray]]) -> None:
    print("| pictures | number | presence | swaps | D&C |\n|---|---|---|---|---|")
    for folder in folders:
        pictures = photos(folder)
        if len({picture.shape for picture in pictures}) != 1:
            found = sorted({picture.shape[:2] for picture in pictures}) or "no pictures"
            raise DataError(f"{folder}: {found}; give a folder of 64 px pictures, as `jaxbooth sample` writes them")
        scores = pair_scores(np.stack(pictures), *references)
        print(f"| {folder.name} | {scores['pictures']} |{cells(scores)}", flush=True)
        hidden = sum(recognise_place(picture) not in MEASURABLE for picture in pictures)
        if hidden:
            print(f"note: {hidden} of {folder} show a place where things are hard to find", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--references", nargs=2, type=Path, default=[SUBJECTS / "twemoji_dog", SUBJECTS / "noto_cat"])
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--scenes", type=int, default=2, help="of each kind in each place, to calibrate")
    arguments = parser.parse_args()
    if bool(arguments.pictures) == arguments.calibrate:
        parser.error("give folders of pictures, or --calibrate")
    try:
        references = [photos(folder) for folder in arguments.references]
        if arguments.calibrate:
            calibrate(references, arguments.scenes)
        else:
            table(arguments.pictures, references)
    except JaxboothError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
