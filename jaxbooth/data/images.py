"""The image gate: every picture from outside comes in here, checked from its header before it is decoded.

A photo of 17 KB can unpack to gigabytes, a truncated one can pass Pillow's `verify`, and a 16-bit one turns white when
it is merely converted. So: few formats, a cap on bytes and pixels, a full decode, and conversions that are stated.
Colour profiles are not applied and no metadata survives: what leaves is plain 8-bit RGB.
"""

import hashlib
import io
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxbooth.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow opens a multi-picture JPEG under "JPEG" and then calls it "MPO"
MAX_FILE_BYTES = 128 * 2**20
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
MAX_ASPECT_RATIO = 8
WHITE = (255, 255, 255)

READ_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp"})
# Pictures that the gate refuses: listed all the same, so that they are refused by name and not passed over.
REFUSED_SUFFIXES = frozenset({".gif", ".apng", ".heic", ".heif", ".avif", ".tif", ".tiff", ".jxl"})
MASK_SUFFIX = ".mask.png"  # `01.mask.png` is the mask of the picture `01.jpg` (data/masks.py), not a picture itself

# First bytes of what people take for a JPEG or PNG, at their offset in the file.
_OTHER_FILES = (
    (0, b"GIF8", "a GIF"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyp", "a HEIC picture or a video"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"<", "HTML, XML or SVG text"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
)

# EXIF tag 274: how the stored picture must be turned to stand upright.
_ORIENTATION_TAG = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


T = TypeVar("T")


class Listing(NamedTuple):
    """The pictures of a folder, and the names of everything else in it (folders end in a slash)."""

    images: tuple[Path, ...]
    ignored: tuple[str, ...]


def load_image(
    source: Path | str | bytes, *, name: str | None = None, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Decodes one picture to upright 8-bit RGB without metadata.

    EXIF rotation is applied; of a multi-picture JPEG (MPO) the first picture is taken; 16-bit grey is scaled to 8 bit;
    CMYK is converted; transparency is laid over `background`. Animations are refused.

    Args:
        source: A path, or the encoded bytes.
        name: What error messages call the picture; the path if left out.
        background: RGB colour, 0 to 255, that shows through transparency.

    Raises:
        DataError: The picture is missing, damaged, of another format, too big, too small or too narrow.
    """
    return decode(source, lambda image: _to_rgb(image, background), name=name)


def decode(source: Path | str | bytes, convert: Callable[[Image.Image], T], *, name: str | None = None) -> T:
    """Takes one picture through the gate and gives what `convert` makes of it: upright, 8 bit, in the file's own mode.

    Raises:
        DataError: As `load_image`.
    """
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_bytes(Path(source), name=name)
    check_byte_count(len(data), name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if problems := header_problems(image):
                raise DataError(f"{name}: {'; '.join(problems)}.")
            image.load()
            return convert(_eight_bit(_upright(image)))
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: {describe_bytes(data)}. Pictures may be JPEG, PNG, WebP or BMP.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels ({error}).") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged bytes.
        raise DataError(f"{name}: cannot be decoded, it is damaged or cut short ({error}).") from error


def read_bytes(path: Path, *, name: str | None = None) -> bytes:
    """Reads a picture's file: a regular one, not empty and not over `MAX_FILE_BYTES`.

    Raises:
        DataError: The file cannot be read or is of a wrong size.
    """
    name = name or str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{name}: not a regular file.")
        check_byte_count(status.st_size, name)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error}).") from error


def check_images(paths: Iterable[Path]) -> list[str]:
    """Decodes every picture and returns all the problems, one line each; an empty list means that all are fine."""
    problems = []
    for path in paths:
        try:
            load_image(path)
        except DataError as error:
            problems.append(str(error))
    return problems


def digest_pixels(image: Image.Image) -> str:
    """SHA-256 of what a picture shows: the same for a copy saved in another lossless format."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def list_images(folder: Path) -> Listing:
    """Lists a folder's pictures, sorted by name, and what else lies there; hidden files, masks, subfolders are ignored.

    Raises:
        DataError: The folder cannot be read.
    """
    images, ignored = [], []
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if path.is_dir():
                ignored.append(f"{path.name}/")
            elif is_image_name(path.name):
                images.append(path)
            else:
                ignored.append(path.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}).") from error
    return Listing(tuple(images), tuple(ignored))


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as a picture: by its suffix, not hidden, and not a picture's mask."""
    if name.startswith(".") or name.lower().endswith(MASK_SUFFIX):
        return False
    return Path(name).suffix.lower() in READ_SUFFIXES | REFUSED_SUFFIXES


def check_byte_count(count: int, name: str) -> None:
    """Raises DataError for a file too large to be read."""
    if count > MAX_FILE_BYTES:
        raise DataError(f"{name}: {count / 2**20:.0f} MiB, the limit is {MAX_FILE_BYTES // 2**20} MiB.")


def header_problems(image: Image.Image) -> list[str]:
    """What is wrong with a picture that is opened but not yet decoded."""
    width, height = image.size
    problems = []
    if width * height > MAX_PIXELS:
        problems.append(f"{width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        problems.append(f"{width}x{height} pixels, the shorter side must have at least {MIN_SIDE}")
    elif max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        problems.append(f"{width}x{height} pixels, longer than {MAX_ASPECT_RATIO} to 1: crop it")
    # The further pictures of an MPO are depth maps or other views, not frames of a film.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        problems.append(f"an animation of {image.n_frames} frames: save one frame as PNG")
    return problems


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG))
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey ("I;16", or "I" in older Pillows), of which `convert` would clip all over 255 to white."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Converts any mode that the accepted formats give to plain RGB."""
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    rgb = image.convert("RGB")
    rgb.info = {}  # EXIF may hold the place where the photo was taken: nothing written later may carry it.
    return rgb


def describe_bytes(data: bytes) -> str:
    """Says what unrecognised bytes seem to be."""
    if not data:
        return "the file is empty"
    for offset, magic, what in _OTHER_FILES:
        if data[offset:].startswith(magic):
            return f"this is {what}"
    return "not a picture that can be read"
