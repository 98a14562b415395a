"""Masks: which pixels of a picture show the subject, and what they weigh in the loss.

A mask is the picture's own transparency, or a PNG beside it: `01.mask.png` or `masks/01.png` belongs to `01.jpg`. It is
white where the subject is and black everywhere else; greys are soft edges. Masks come in through the image gate, as
pictures do, and are given as numbers from 0 to 1.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxbooth.data.images import MASK_SUFFIX, decode, list_images
from jaxbooth.errors import DataError, list_problems

MASK_FOLDER = "masks"
ADVICE = (
    "Save the picture as PNG with the background transparent, or put a mask beside it, white where the subject is and "
    f"black elsewhere: NAME{MASK_SUFFIX} or {MASK_FOLDER}/NAME.png for NAME.jpg."
)
_GREY_TOLERANCE = 8  # levels of 255 between red, green and blue that rounding can put into a grey mask saved in colour
_WHITE = 128  # level that the brightest pixel must reach: masks of 0 and 1 instead of 0 and 255 are a common slip


def find_masks(folder: Path, images: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Finds the mask files of a folder's pictures; not every picture must have one, problems are collected, not raised.

    Returns:
        Masks by the picture's file name, and what is wrong.

    Raises:
        DataError: The folder cannot be read.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    problems = []
    for path in _mask_files(folder):
        if path.suffix.lower() != ".png":
            problems.append(f"{_name(path, folder)}: masks are PNG files")
            continue
        found[path.name[: -len(MASK_SUFFIX)] if _is_sidecar(path.name) else path.stem].append(path)
    named = Counter(image.stem for image in images)
    files = {}
    for stem, paths in found.items():
        names = " and ".join(_name(path, folder) for path in paths)
        pictures = [image.name for image in images if image.stem == stem]
        if not pictures:
            problems.append(f"{names}: there is no picture {stem}")
        elif len(paths) > 1:
            problems.append(f"{pictures[0]}: has both {names}, keep one")
        elif named[stem] > 1:
            problems.append(f"{names}: belongs to {' or '.join(pictures)}? Rename one of them")
        else:
            files[pictures[0]] = paths[0]
    return files, problems


def load_mask(
    source: Path | str | bytes, size: tuple[int, int], *, name: str | None = None
) -> Float[np.ndarray, "h w"]:
    """Decodes one mask file: float32, 1 where the subject is, 0 elsewhere.

    A mask with transparency is that transparency; any other must be grey. One of the picture's shape in another size is
    resized.

    Args:
        source: A path, or the encoded bytes.
        size: Width and height of the upright picture, as Pillow's `image.size`.
        name: What error messages call the mask; the path if left out.

    Raises:
        DataError: The gate refuses the file, its shape is not the picture's, or it is coloured or black.
    """
    name = name or ("mask" if isinstance(source, bytes) else str(source))
    levels = decode(source, lambda image: _grey(image, name), name=name)
    if not _same_shape(levels.size, size):
        turned = _same_shape(levels.size[::-1], size)
        hint = " It lies on its side: turn it as the picture stands." if turned else ""
        raise DataError(
            f"{name}: the mask is {_pixels(levels.size)}, its picture {_pixels(size)} (upright): make them the same "
            f"size.{hint}"
        )
    if (brightest := levels.getextrema()[1]) < _WHITE:
        raise DataError(
            f"{name}: its brightest pixel is {brightest} of 255; a mask is white (255) where the subject is."
        )
    if levels.size != size:
        levels = levels.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(levels, np.float32) / np.float32(255)


def alpha_mask(source: Path | str | bytes, *, name: str | None = None) -> Float[np.ndarray, "h w"] | None:
    """A picture's transparency as its mask: float32, 1 where it is opaque; upright, as `load_image` gives the picture.

    Returns:
        None for a picture without transparency, also if it has an alpha channel and that is opaque all over.

    Raises:
        DataError: The gate refuses the file, or nothing in it can be seen.
    """
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    alpha = decode(source, _transparency, name=name)
    if alpha is None:
        return None
    if alpha.getextrema()[1] == 0:
        raise DataError(f"{name}: the picture is transparent all over, nothing in it can be seen.")
    return np.asarray(alpha, np.float32) / np.float32(255)


def require_masks(
    subject: str, masks: Mapping[str, Float[np.ndarray, "h w"] | None]
) -> dict[str, Float[np.ndarray, "h w"]]:
    """The masks of a subject's pictures, by the picture's name, if all have one.

    Raises:
        DataError: Names the pictures without a mask and says how to supply them.
    """
    if missing := [picture for picture, mask in masks.items() if mask is None]:
        heading = f'Subject "{subject}": {len(missing)} of {len(masks)} pictures have no mask:'
        raise DataError(list_problems(heading, missing, ADVICE))
    return {picture: mask for picture, mask in masks.items() if mask is not None}


def latent_mask(mask: Float[np.ndarray, "h w"], factor: int) -> Float[np.ndarray, "h2 w2"]:
    """A mask at the latents' resolution: the mean over each cell of `factor` x `factor` pixels.

    Raises:
        ValueError: The mask's sides are no multiples of `factor`.
    """
    height, width = mask.shape
    if height % factor or width % factor:
        raise ValueError(f"a mask of {height}x{width} pixels does not divide into cells of {factor}x{factor}")
    cells = mask.reshape(height // factor, factor, width // factor, factor)
    return cells.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)


def with_unmasked_weight(mask: Float[np.ndarray, "h w"], weight: float) -> Float[np.ndarray, "h w"]:
    """Gives what a mask leaves out a weight of its own, 0 to 1: m (1 - w) + w. 0 keeps the mask, 1 undoes it."""
    return mask * np.float32(1 - weight) + np.float32(weight)


def _mask_files(folder: Path) -> list[Path]:
    """Everything in a folder that claims to be a mask."""
    others = list_images(folder).ignored
    files = [folder / name for name in others if _is_sidecar(name)]
    if f"{MASK_FOLDER}/" not in others:
        return files
    inside = list_images(folder / MASK_FOLDER)
    return [*files, *inside.images, *(folder / MASK_FOLDER / name for name in inside.ignored if _is_sidecar(name))]


def _is_sidecar(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX) and not name.startswith(".")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other resized: rounding may put a side off by less than a pixel of the coarser one."""
    (width, height), (other_width, other_height) = size, other
    return abs(width * other_height - height * other_width) < max(*size, *other)


def _grey(image: Image.Image, name: str) -> Image.Image:
    """The levels of a mask, mode L."""
    if (alpha := _transparency(image)) is not None:
        return alpha
    channels = np.asarray(image.convert("RGB"))
    if np.any(channels.max(-1) - channels.min(-1) > _GREY_TOLERANCE):
        raise DataError(f"{name}: is in colour; a mask is grey, white where the subject is and black elsewhere.")
    return image.convert("L")


def _transparency(image: Image.Image) -> Image.Image | None:
    """The alpha channel, mode L, whatever way the file holds it; None where all is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha
