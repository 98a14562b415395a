"""Masks of the demo subjects: fits the sprite that each picture was drawn with, and writes its outline beside it.

    python configs/pocket/fit_masks.py sprites.tar

The pictures in jaxbooth/pocket/subjects were composed of a sprite and a place, at a size, tilt and position that were
not written down. Each is found again as the pose whose opaque pixels differ least from the picture (weighted squared
error of all offsets at once, by correlation in the Fourier domain). Writes masks/NN.png, which `data.mask: sidecar`
reads.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxbooth.data.images import list_images
from jaxbooth.pocket import DEMO_SUBJECTS
from jaxbooth.pocket.backgrounds import SIZE
from jaxbooth.pocket.scenes import NOUNS
from jaxbooth.pocket.sprites import Sprite, load_sprites

MARGIN = 32  # how far a pose may hang out of the picture, px
WORST = 25.0  # root mean square over the opaque pixels, in levels of 255, above which nothing was found


def poses(sprite: Image.Image, sizes: range, tilts: np.ndarray) -> Iterator[Image.Image]:
    """As `jaxbooth.pocket.scenes.pose` draws them."""
    for longest in sizes:
        factor = longest / max(sprite.size)
        small = sprite.resize([max(6, round(side * factor)) for side in sprite.size], Image.Resampling.LANCZOS)
        for mirrored in (small, ImageOps.mirror(small)):
            for tilt in tilts:
                yield mirrored.rotate(float(tilt), Image.Resampling.BICUBIC, expand=True)


def best_offset(photo: np.ndarray, sprite: Image.Image) -> tuple[float, int, int]:
    """Smallest mean of alpha (photo - colour)^2 over all offsets, and where."""
    rgba = np.asarray(sprite, np.float64)
    colour, alpha = rgba[..., :3], rgba[..., 3] / 255
    alpha = np.where(alpha > 0.9, alpha, 0.0)  # edges show the ground too
    side = SIZE + MARGIN
    shape = (side, side)

    def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft2(image, shape) * np.conj(np.fft.rfft2(kernel, shape))
        return np.fft.irfft2(spectrum, shape)

    inside = np.maximum(correlate(np.ones((SIZE, SIZE)), alpha), 1e-9)  # opaque pixels that lie in the picture
    total = sum(
        correlate(photo[..., c] ** 2, alpha)
        - 2 * correlate(photo[..., c], alpha * colour[..., c])
        + correlate(np.ones((SIZE, SIZE)), alpha * colour[..., c] ** 2)
        for c in range(3)
    )
    error = np.where(inside > 0.9 * alpha.sum(), total / (3 * inside), np.inf)
    top, left = np.unravel_index(np.argmin(error), error.shape)
    at = [int(place) - side if place > SIZE else int(place) for place in (top, left)]
    return float(error[top, left]), *at


def fit(photo: np.ndarray, candidates: list[Sprite]) -> tuple[float, Image.Image]:
    """The error (levels of 255) and the mask of the best pose: coarsely over everything, then finely around it."""
    found = min(
        ((best_offset(photo, posed), sprite, posed) for sprite in candidates
         for posed in poses(sprite.image, range(30, 51, 2), np.arange(-8, 9, 4))),
        key=lambda item: item[0][0],
    )  # fmt: skip
    sprite, longest = found[1], max(found[2].size)
    sizes = range(max(30, longest - 8), min(50, longest + 3) + 1)
    error, top, left, posed = min(
        ((*best_offset(photo, posed), posed)
         for posed in poses(sprite.image, sizes, np.arange(-8, 8.25, 0.5))),
        key=lambda item: item[0],
    )  # fmt: skip
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(posed.getchannel("A"), (left, top))
    return error**0.5, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sprites", type=Path, help="archive that make_sprites.py wrote")
    sprites = load_sprites(parser.parse_args().sprites, frozenset(NOUNS))
    for subject in DEMO_SUBJECTS:
        style = subject.name.partition("_")[0]
        candidates = [
            sprite for sprite in sprites
            if sprite.style == style and NOUNS[sprite.codepoint.split("-")[0]] == subject.class_noun
        ]  # fmt: skip
        for path in list_images(subject.folder).images:
            error, mask = fit(np.asarray(Image.open(path).convert("RGB"), np.float64), candidates)
            print(f"{subject.name}/{path.name}: {error:.1f}", flush=True)
            if error > WORST:
                raise SystemExit(f"{path}: no sprite fits it")
            file = subject.folder / "masks" / f"{path.stem}.png"
            file.parent.mkdir(exist_ok=True)
            mask.save(file, optimize=True)


if __name__ == "__main__":
    main()
