"""The paper's encoders through transformers: DINO (ViT-S/16, the first DINO) and CLIP (ViT-B/32), in fp32.

    DINO    short side 256 px, bicubic; central 224 px; ImageNet's mean and deviation; CLS token after the last norm
    CLIP    short side 224 px, bicubic; central 224 px; CLIP's mean and deviation; projected, 512 numbers

Caron et al. 2021 and Radford et al. 2021. The paper names ViT-S/16 but no variant of CLIP; ViT-B/32 is what Textual
Inversion and Custom Diffusion measure with. `published.calibration` tells whether both are what the paper used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.evaluation.image_rows import normalised

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
INSTALL = "pip install 'jaxbooth[eval]'"
TEXTS = 64  # encoded at once


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes numbers.

    Attributes:
        short_side: In px, before the crop.
        size: Side of the central square that is cut out, in px.
        mean, std: Of each channel, of values in [0, 1].
    """

    short_side: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "h w 3"]:
        """Resizes (bicubic, antialiased, as torchvision does PIL pictures), crops, normalises."""
        width, height = image.size
        scale = self.short_side / min(width, height)
        wide, high = (max(self.short_side, int(side * scale)) for side in (width, height))
        resized = image if image.size == (wide, high) else image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((wide - self.size) / 2), round((high - self.size) / 2)
        cut = resized.crop((left, top, left + self.size, top + self.size))
        return (np.asarray(cut, np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)


class Dino:
    """A `transformers.ViTModel`."""

    def __init__(self, model: Any, name: str):
        size = model.config.image_size
        self.model, self.name = model, name
        self.prepare = Preprocessing(round(size * 256 / 224), size, IMAGENET_MEAN, IMAGENET_STD)

    @property
    def is_papers(self) -> bool:
        """Whether it has the sizes of ViT-S/16."""
        config = self.model.config
        return (config.hidden_size, config.patch_size, config.image_size) == (384, 16, 224)

    def encode(self, pixels: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
        """The CLS token after the final norm."""
        return _run(self.model, lambda x: self.model(pixel_values=x).last_hidden_state[:, 0], pixels)


class Clip:
    """A `transformers.CLIPModel` with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, name: str):
        size = model.config.vision_config.image_size
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.prepare = Preprocessing(size, size, CLIP_MEAN, CLIP_STD)

    @property
    def is_papers(self) -> bool:
        """Whether it has the sizes of ViT-B/32."""
        config = self.model.config
        vision = config.vision_config
        return (vision.hidden_size, vision.patch_size, vision.image_size, config.projection_dim) == (768, 32, 224, 512)

    def encode(self, pixels: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
        """Projected image features."""
        model = self.model
        return _run(model, lambda x: model.visual_projection(model.vision_model(pixel_values=x).pooler_output), pixels)

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "b d"]:
        """Projected text features, L2-normalised; a text over 77 tokens is cut."""
        import torch

        rows = []
        for start in range(0, len(texts), TEXTS):
            part = list(texts[start : start + TEXTS])
            length = self.model.config.text_config.max_position_embeddings
            found = self.tokenizer(
                part, padding="max_length", max_length=length, truncation=True, return_tensors="np"
            ).input_ids
            with torch.inference_mode():
                ids = torch.from_numpy(np.asarray(found, np.int64)).to(self.model.device)
                pooled = self.model.text_model(input_ids=ids).pooler_output
                rows.append(self.model.text_projection(pooled).float().cpu().numpy())
        return normalised(np.concatenate(rows))


def load_paper_encoders(clip: str = CLIP, dino: str = DINO) -> tuple[Clip, Dino]:
    """Both encoders, each from a folder or the hub; weights are read as tensors only, never as a pickled program.

    Raises:
        ConfigError: torch is missing, or an encoder cannot be had; names both where both cannot.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"DINO and CLIP need PyTorch ({error}): {INSTALL}, or measure with --encoder efficientnet-lite0"
        ) from error
    device, problems = "cuda" if torch.cuda.is_available() else "cpu", []

    def load(what: str, option: str, path: str, kind: Callable[[str], Any]) -> Any:
        try:
            return kind(path)
        except Exception as error:  # transformers and the hub raise many kinds: offline, absent, another model
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            problems.append(f"{what}: {option} {path} cannot be loaded ({reason})")

    def model(kind: type, path: str, **options) -> Any:
        _check_kind(path, kind.config_class.model_type)
        found, report = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
        if missing := sorted(report["missing_keys"]):
            raise ConfigError(f"{len(missing)} weights are missing, such as {missing[0]}")
        return found.to(device).eval()

    found_clip = load("CLIP ViT-B/32", "--clip", clip, lambda path: model(transformers.CLIPModel, path))
    tokenizer = load("CLIP's tokenizer", "--clip", clip, transformers.CLIPTokenizer.from_pretrained)
    found_dino = load(
        "DINO ViT-S/16", "--dino", dino, lambda path: model(transformers.ViTModel, path, add_pooling_layer=False)
    )
    if problems:
        advice = (
            "Download them where there is a network (`hf download NAME --local-dir FOLDER`) and give the folders, or "
            "measure subject fidelity with --encoder efficientnet-lite0."
        )
        raise ConfigError(list_problems("the paper's encoders cannot be had:", problems, advice))
    return Clip(found_clip, tokenizer, clip), Dino(found_dino, dino)


def _check_kind(path: str, wanted: str) -> None:
    """transformers fills what a file of another model lacks with random numbers: a warning, and wrong scores."""
    import transformers

    found = transformers.AutoConfig.from_pretrained(path).model_type
    if found != wanted:
        raise ConfigError(f"it is a model of type {found}, {wanted} is needed")


def _run(model: Any, features: Callable[[Any], Any], pixels: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        channels_first = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(model.device)
        return features(channels_first).float().cpu().numpy()
