"""From picture files to one subject's measures, and from all subjects' to scores.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxbooth.errors import ConfigError
from jaxbooth.evaluation import lpips, scores
from jaxbooth.evaluation.fidelity import EfficientNet
from jaxbooth.evaluation.image_rows import ImageEncoder, embed
from jaxbooth.evaluation.metrics import (
    Measure,
    image_similarity,
    mean_distance,
    pairwise_cosine_distances,
    real_similarity,
    text_similarity,
)
from jaxbooth.evaluation.paper_encoders import Clip, load_paper_encoders
from jaxbooth.evaluation.places import PLACES, prompt_fidelity

PAPER, EFFICIENTNET = "clip-dino", "efficientnet-lite0"
POCKET_SIDE = 64  # px of the pictures in which places can be told
REAL_NAMES = {"dino": "dino", "clip": "clip_i", EFFICIENTNET: "subject_fidelity"}
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Files:
    """The pictures that were drawn of one subject.

    Attributes:
        pictures: By prompt, then k.
        of_class: "a {class}" by the trained model; may be none.
        of_class_base: The same by the base; may be none.
        prompts: As drawn.
        texts: What a picture should show: the prompts without the identifier.
        side: Of a drawn picture, in px.
    """

    pictures: Sequence[Sequence[Path]]
    of_class: Sequence[Path]
    of_class_base: Sequence[Path]
    prompts: Sequence[str]
    texts: Sequence[str]
    side: int


@dataclass(frozen=True)
class Encoders:
    """What pictures are measured with.

    Attributes:
        kind: `PAPER` or `EFFICIENTNET`.
        images: Image encoders by name: `dino` and `clip`, or `efficientnet-lite0`.
        names: What each is, for scores.json.
        text: CLIP, if it is there.
        lpips_weights: For DIV, if they are there.
        notes: What the user should know of them.
    """

    kind: str
    images: Mapping[str, ImageEncoder]
    names: dict[str, str]
    text: Clip | None = None
    lpips_weights: lpips.Weights | None = None
    notes: list[str] = field(default_factory=list)


def load_encoders(kind: str, clip: str, dino: str, lpips_source: str, side: int | None) -> Encoders:
    """Loads all that is wanted, before anything is drawn.

    Args:
        kind: `PAPER` or `EFFICIENTNET`.
        clip, dino: Folder or hub id of the paper's encoders.
        lpips_source: As `lpips.load_weights` has it.
        side: Of the drawn pictures in px, to which EfficientNet sees photos cut; None: there are none.

    Raises:
        ConfigError: Something cannot be had.
        DataError: EfficientNet's weights are not installed.
    """
    weights, notes = lpips.load_weights(lpips_source), []
    if weights is None and lpips_source == "auto":
        notes.append(f"DIV is left out: LPIPS' weights are not installed ({lpips.INSTALL})")
    if weights is not None and side is not None and side < lpips.SMALLEST_SIDE:
        weights = None
        notes.append(
            f"DIV is left out: pictures of {side} px are too small for LPIPS ({lpips.SMALLEST_SIDE} px or more)"
        )
    if kind == EFFICIENTNET:
        notes.append(
            "measured with EfficientNet-Lite0: these are not DINO, CLIP-I or PRES, and compare with themselves"
        )
        names = {EFFICIENTNET: "EfficientNet-Lite0, ImageNet, 1280 numbers"}
        return Encoders(kind, {EFFICIENTNET: EfficientNet(side)}, names, None, weights, notes)
    if kind != PAPER:
        raise ConfigError(f"--encoder {kind} is not known. Encoders: {PAPER}, {EFFICIENTNET}")
    found_clip, found_dino = load_paper_encoders(clip, dino)
    names = {"dino": found_dino.name, "clip": found_clip.name}
    if not found_dino.is_papers:
        notes.append(f"WARNING: {dino} has not the sizes of ViT-S/16: not to be compared with published DINO scores")
    if not found_clip.is_papers:
        notes.append(f"WARNING: {clip} has not the sizes of ViT-B/32: not to be compared with published CLIP scores")
    return Encoders(kind, {"dino": found_dino, "clip": found_clip}, names, found_clip, weights, notes)


def real_measures(photos: Rows, self_pairs: bool = False) -> dict[str, Measure]:
    """What a subject's own photos score; nothing for a single one."""
    return {REAL_NAMES[name]: real_similarity(rows, self_pairs) for name, rows in photos.items() if len(rows) > 1}


def measure(files: Files, photos: Rows, encoders: Encoders) -> dict[str, Measure]:
    """All measures of one subject.

    Args:
        files: Its pictures.
        photos: Rows of its photos.
        encoders: What it is measured with.
    """
    count = len(files.pictures), len(files.pictures[0])
    flat = [path for of_prompt in files.pictures for path in of_prompt]
    drawn = embed(encoders.images, flat)
    of_class = embed(encoders.images, files.of_class) if files.of_class else None
    if encoders.kind == PAPER:
        found = {
            "dino": image_similarity(drawn["dino"], photos["dino"]),
            "clip_i": image_similarity(drawn["clip"], photos["clip"]),
            "clip_t": text_similarity(encoders.text.encode_texts(files.texts), drawn["clip"].reshape(*count, -1)),
            "clip_t_with_identifier": text_similarity(
                encoders.text.encode_texts(files.prompts), drawn["clip"].reshape(*count, -1)
            ),
        }
        if of_class is not None:
            found["pres"] = image_similarity(of_class["dino"], photos["dino"])
    else:
        found = _own_measures(files, drawn[EFFICIENTNET], photos[EFFICIENTNET], encoders, of_class, count)
    if encoders.lpips_weights is not None and count[1] > 1:
        distances = [lpips.pairwise_lpips(encoders.lpips_weights, _arrays(of_prompt)) for of_prompt in files.pictures]
        found["div"] = mean_distance(np.stack(distances))
    return found


def _own_measures(
    files: Files, drawn: np.ndarray, photos: np.ndarray, encoders: Encoders, of_class: Rows | None,
    count: tuple[int, int],
) -> dict[str, Measure]:  # fmt: skip
    """EfficientNet's, under names of their own."""
    found = {"subject_fidelity": image_similarity(drawn, photos)}
    if (places := _places(files)) is not None:
        images = np.stack(_arrays([path for of_prompt in files.pictures for path in of_prompt]))
        found["prompt_fidelity"] = Measure(prompt_fidelity(images, places), len(images))
    if count[1] > 1:
        found["diversity"] = mean_distance(pairwise_cosine_distances(drawn.reshape(*count, -1)))
    if of_class is None:
        return found
    rows = of_class[EFFICIENTNET]
    found["class_subject_similarity"] = image_similarity(rows, photos)
    if files.of_class_base:
        before = embed(encoders.images, files.of_class_base)[EFFICIENTNET]
        found["class_drift"] = Measure(scores.class_drift(before, rows), len(rows))
    if len(rows) > 1:
        found["class_diversity"] = Measure(scores.diversity(rows), len(rows) * (len(rows) - 1) // 2)
    return found


def _places(files: Files) -> list[str] | None:
    """The place that each picture should show; None unless all prompts end in one that the pocket world has."""
    if files.side != POCKET_SIDE:
        return None
    found = [next((place for place in PLACES if prompt.endswith(place)), None) for prompt in files.prompts]
    if None in found:
        return None
    return [place for place, _ in product(found, files.pictures[0])]


def _arrays(paths: Sequence[Path]) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def as_json(value: Any) -> Any:
    """Summaries and measures as scores.json has them."""
    if hasattr(value, "_asdict"):
        return {key: as_json(part) for key, part in value._asdict().items()}
    return list(value) if isinstance(value, tuple) else value
