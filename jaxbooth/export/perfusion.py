"""Perfusion's own file: what one concept is beside its base, 100 KB for SD 1.x (Tewel et al. 2023, arXiv 2305.01644).

    text_encoder                                 [d]     v, the word; SDXL: text_encoder_2 beside it
    direction                                    [d]     i*
    unet.….transformer_blocks.0.attn2            [2, o]  o*_K and o*_V of each cross-attention

C^-1, larger than all of it and the same for every concept, is not in the file: the header names what C is of. No other
program reads this file; `jaxbooth.text_metric.load_with_concepts` does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Float

from jaxbooth.errors import ConversionError, MethodError, list_problems
from jaxbooth.export.contents import Contents, Use
from jaxbooth.export.markdown import code, literal
from jaxbooth.export.source import BASE_KEY, Trained
from jaxbooth.export.tensor_file import as_dtype, read_tensors, write_tensors
from jaxbooth.methods.concepts import Concepts, KeyLock
from jaxbooth.methods.tokens import new_token_rows
from jaxbooth.nn.key_locked import KeyLockedLinear
from jaxbooth.nn.surgery import find_modules
from jaxbooth.pipeline import TEXT_ENCODERS
from jaxbooth.weights.save import on_host

FILE_NAME = "perfusion.safetensors"
SETTINGS_KEY = "jaxbooth_perfusion"  # header entry: JSON of `_SETTINGS`
_SETTINGS = {"token": str, "class_noun": str, "beta": int | float, "tau": int | float, "key_lock": str, "bypass": bool}
_SETTINGS |= {"metric": str}


@dataclass(frozen=True, eq=False)
class PerfusionConcept:
    """One concept.

    Attributes:
        token: Its word as prompts write it.
        class_noun: What its keys are locked to.
        words: v, the word's vector for each text encoder.
        direction: i*.
        outputs: o*_K and o*_V of each cross-attention, by its path (`unet.….attn2`).
        beta, tau: Its gate when drawing.
        key_lock: What keys are made of when drawing.
        bypass: Whether prompts without the concept see the base.
        metric: What C was measured on (`TextMetric.name`).
        base: Digest of the base that it was learned on.
    """

    token: str
    class_noun: str
    words: tuple[Float[np.ndarray, " d"], ...]
    direction: Float[np.ndarray, " d2"]
    outputs: Mapping[str, Float[np.ndarray, "2 o"]]
    beta: float
    tau: float
    key_lock: KeyLock
    bypass: bool
    metric: str
    base: str


def perfusion_concepts(trained: Trained) -> tuple[PerfusionConcept, ...]:
    """What a trained model has learned, one for each subject.

    Raises:
        MethodError: the model was not trained by Perfusion.
    """
    concepts = trained.model.concepts
    if not isinstance(concepts, Concepts):
        raise MethodError("this model has no Perfusion concepts to export")
    directions = on_host(concepts.directions[...], "float32")
    tables = [on_host(rows, "float32") for rows in new_token_rows(trained.model)]
    layers: dict[str, dict[str, np.ndarray]] = {}
    for path, layer in find_modules(trained.model.unet, KeyLockedLinear):
        layers.setdefault(f"unet.{path.rpartition('.')[0]}", {})[layer.part] = on_host(layer.outputs[...], "float32")
    return tuple(
        PerfusionConcept(
            token=subject.token, class_noun=subject.class_noun, words=tuple(table[number] for table in tables),
            direction=directions[number],
            outputs={path: np.stack([part["keys"][number], part["values"][number]]) for path, part in layers.items()},
            beta=concepts.beta[number], tau=concepts.tau[number], key_lock=concepts.key_lock, bypass=concepts.bypass,
            metric=concepts.metric.name, base=trained.base.digest,
        )
        for number, subject in enumerate(trained.subjects)
    )  # fmt: skip


def save_perfusion(
    concept: PerfusionConcept, file: str | Path, *, header: Mapping[str, str] | None = None, dtype: str | None = None
) -> Path:
    """Writes one concept.

    Args:
        concept: What to write.
        file: A name that ends in `.safetensors`, or a folder.
        header: Further header entries.
        dtype: `float32` (default), or `float16` or `bfloat16` for half the size; i* stays float32, since C^-1 would
            enlarge what rounding does to it.

    Raises:
        ConversionError: the file cannot be written, or a number is too large for the dtype.
    """
    file = Path(file)
    file = file if file.suffix == ".safetensors" else file / FILE_NAME
    tensors = dict(zip(TEXT_ENCODERS, concept.words, strict=False)) | dict(concept.outputs)
    tensors = {name: as_dtype(array, dtype or "float32") for name, array in tensors.items()}
    settings = json.dumps({name: getattr(concept, name) for name in _SETTINGS}, ensure_ascii=False)
    notes = dict(header or {}) | {BASE_KEY: concept.base, SETTINGS_KEY: settings}
    return write_tensors(tensors | {"direction": concept.direction}, file, notes)


def load_perfusion(file: str | Path) -> PerfusionConcept:
    """Reads what `save_perfusion` wrote, to the bit.

    Args:
        file: The file, or the folder that has it.

    Raises:
        ConversionError: it is missing, damaged or no Perfusion concept; lists everything that is wrong.
    """
    file = Path(file) / FILE_NAME if Path(file).is_dir() else Path(file)
    tensors, header = read_tensors(file)
    settings, problems = _settings(header)
    words = [tensors.pop(name) for name in TEXT_ENCODERS if name in tensors]
    direction = tensors.pop("direction", None)
    problems += [] if words else ["text_encoder is missing"]
    problems += [] if direction is not None else ["direction is missing"]
    problems += [] if tensors else ["no cross-attention's outputs are there"]
    flat = {"text_encoder": words[0], "direction": direction} if words and direction is not None else {}
    problems += [
        f"{name} has shape {array.shape}: one vector is needed" for name, array in flat.items() if array.ndim != 1
    ]
    problems += [
        f"{name} has shape {array.shape}: a key's and a value's output are needed"
        for name, array in tensors.items()
        if array.ndim != 2 or array.shape[0] != 2
    ]
    if problems:
        raise ConversionError(list_problems(f"{file} is no Perfusion concept, or not whole:", problems))
    return PerfusionConcept(
        words=tuple(word.astype(np.float32) for word in words), direction=direction.astype(np.float32),
        outputs={name: array.astype(np.float32) for name, array in tensors.items()}, base=header[BASE_KEY], **settings,
    )  # fmt: skip


def _settings(header: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The header's settings, and what is wrong with them."""
    try:
        settings = json.loads(header.get(SETTINGS_KEY, "null"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        return {}, [f"the header has no {SETTINGS_KEY}"]
    found = {name: settings[name] for name, kind in _SETTINGS.items() if isinstance(settings.get(name), kind)}
    problems = [f"the header's {SETTINGS_KEY} has no {name}" for name in _SETTINGS if name not in found]
    problems += [] if BASE_KEY in header else [f"the header has no {BASE_KEY}"]
    if found.get("key_lock", "local") not in get_args(KeyLock):
        problems.append(f"key_lock {found['key_lock']!r} is not known")
    return found, problems


def write_perfusion(trained: Trained, folder: Path, dtype: str | None = None) -> Contents:
    """Writes each concept's file, and tells how they are used.

    Raises:
        MethodError: the model was not trained by Perfusion.
        ConversionError: a file cannot be written.
    """
    concepts, files = perfusion_concepts(trained), {}
    for subject, concept in zip(trained.subjects, concepts, strict=True):
        name = FILE_NAME if len(concepts) == 1 else f"{subject.name}.safetensors"
        save_perfusion(concept, folder / name, header=trained.header(), dtype=dtype)
        files[name] = f"{code(concept.token)}, a {code(concept.class_noun)}: word, direction, keys and values"
    script = [
        "from jaxbooth.text_metric import load_with_concepts",
        f"sd = load_with_concepts({literal(trained.base.place)}, {[str(name) for name in files]})",
        f"pictures = sd.generate([{literal(trained.prompt())}], seed=0)  # [1, h, w, 3] in [0, 1]",
    ]
    note = (
        "The gate looks at each prompt, so these files cannot be loaded as weights; other clients take the `merged` "
        "pipeline, which is the nearest plain model. Files of several concepts of one base can be given together."
    )
    return Contents(files, (Use("jaxbooth", code="\n".join(script)),), (note,))
