"""Fidelity, drift and diversity of pictures, by the cosine of EfficientNet-Lite0's pooled features.

Measured on the 106 photos of 20 DreamBooth subjects: two photos of one subject 0.65, of two subjects of one class 0.33,
of two classes 0.26, and the nearest photo is of the same subject in 99 % of the cases; with all photos first cut to
64 px 0.62, 0.42, 0.35 and 92 %.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from jaxbooth.evaluation import efficientnet, scores
from jaxbooth.evaluation.image_rows import embed

Picture = UInt8[np.ndarray, "h w 3"]
Pictures = UInt8[np.ndarray, "b h w 3"]


class EfficientNet:
    """EfficientNet-Lite0's pooled features.

    Args:
        cut: Side in px that every picture is first cut to, the generator's: a sharp photo is unlike every small
            picture for its sharpness alone. None: pictures as they are.

    Raises:
        DataError: The extra `[eval]` is not installed.
    """

    name = "EfficientNet-Lite0"

    def __init__(self, cut: int | None = None):
        self.cut, self._weights = cut, efficientnet.load_weights()

    def prepare(self, image: Image.Image) -> Pictures:
        """8-bit pixels, 224 px, resized bicubic."""
        if self.cut is not None and image.size != (self.cut, self.cut):
            image = ImageOps.fit(image, (self.cut, self.cut), Image.Resampling.LANCZOS)
        side = efficientnet.IMAGE_SIZE
        return np.asarray(image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC))

    def encode(self, pixels: Pictures) -> Float[np.ndarray, "b 1280"]:
        """Pooled features, not normalised."""
        return np.asarray(efficientnet.forward(self._weights, (jnp.asarray(pixels, jnp.float32) - 127.0) / 128.0))


def features(images: Pictures) -> Float[np.ndarray, "b 1280"]:
    """L2-normalised features of RGB pictures; other sizes than 224 px are resized, bicubic.

    Raises:
        DataError: The extra `[eval]` is not installed.
    """
    encoder = EfficientNet()
    return embed({encoder.name: encoder}, [Image.fromarray(image) for image in images])[encoder.name]


def subject_fidelity(generated: Pictures, references: Sequence[Picture]) -> float:
    """Mean cosine between generated pictures and the subject's photos.

    The photos are first cut to the generator's square size: a sharp photo is unlike every small picture for its
    sharpness alone.
    """
    cut = np.stack([centre_square(photo, generated.shape[1]) for photo in references])
    return scores.subject_fidelity(features(generated), features(cut))


def class_drift(before: Pictures, after: Pictures) -> float:
    """How far "a {class}" pictures moved from the base model's: pairs by the same prompt and noise; 0 is unmoved."""
    return scores.class_drift(features(before), features(after))


def diversity(images: Pictures) -> float:
    """How varied pictures of one prompt are; 0 is all the same."""
    return scores.diversity(features(images))


def centre_square(image: Picture, size: int) -> Picture:
    """The central square of a picture, resized to `size` px with antialiasing."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS))
