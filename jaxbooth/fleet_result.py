"""A fleet's committed result as a model to draw with: its files folded into the base that they were learned on."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxbooth.config import Config
from jaxbooth.errors import ConversionError
from jaxbooth.export.custom_diffusion import COMPRESSED, load_custom_diffusion
from jaxbooth.export.custom_diffusion import FILE_NAME as CUSTOM_DIFFUSION
from jaxbooth.export.embeddings import load_embeddings
from jaxbooth.export.formats import own_formats
from jaxbooth.export.lora import load_adapter_lora
from jaxbooth.export.peft_lora import FILE_NAME as PEFT_LORA
from jaxbooth.families import NewToken, with_new_tokens
from jaxbooth.merge import TABLE, arrays, replaced
from jaxbooth.pipeline import TEXT_ENCODERS, StableDiffusion
from jaxbooth.text_metric import load_with_concepts
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.hub import resolve
from jaxbooth.weights.load import load_pipeline
from jaxbooth.weights.torch_keys import Entry, entries


def load_result(folder: Path, config: Config) -> StableDiffusion:
    """The model of a result with one subject.

    Args:
        folder: What was committed: a folder for each format.
        config: The fleet's, with this subject.

    Raises:
        ConversionError: A file is missing or does not fit.
        MethodError: It was learned on another base.
    """
    method = config.method
    kind = (own_formats(method) or ("merged",))[0]
    files, dtype = folder / kind, config.base.dtype
    if not files.is_dir():
        raise ConversionError(f"{folder} has no {kind}: it is no result of {method.type}")
    if kind == "merged":
        return load_pipeline(files, dtype)
    base = resolve(config.base.path, config.base.revision)
    if kind == "perfusion":
        return load_with_concepts(base, sorted(files.glob("*.safetensors")), dtype)
    sd, digest = load_pipeline(base, dtype, param_dtype="float32"), base_digest(base)
    if kind == "peft-lora":
        sd = replaced(sd, _with_lora(sd, files, digest))
    elif kind == "custom-diffusion":
        sd = replaced(sd, _with_matrices(sd, files, digest))
    return _with_word(sd, files, digest, config) if method.vectors_per_token else sd


def _named(sd: StableDiffusion) -> dict[str, tuple[str, Entry]]:
    """Each weight's name here and its entry in the table of keys, by its module's path in PyTorch."""
    found = {}
    for component, module in sd.components():
        ours = f"text_encoders.{TEXT_ENCODERS.index(component)}" if component in TEXT_ENCODERS else component
        for entry in entries(module):
            if entry.torch_key.endswith(".weight"):
                path = f"{component}.{entry.torch_key.removesuffix('.weight')}"
                found[path] = (".".join((ours, *map(str, entry.path))), entry)
    return found


def _with_lora(sd: StableDiffusion, files: Path, digest: str) -> dict[str, np.ndarray]:
    known, values, new = _named(sd), arrays(sd), {}
    for path, layer in load_adapter_lora(files / PEFT_LORA, sd, digest).items():
        name, entry = known[path]
        weight = entry.layout.to_torch(np.asarray(values[name], np.float32))
        new[name] = entry.layout.from_torch(weight + layer.delta(weight))
    return new


def _with_matrices(sd: StableDiffusion, files: Path, digest: str) -> dict[str, np.ndarray]:
    known, new, strangers = _named(sd), {}, []
    for path, weight in load_custom_diffusion(files, digest).items():
        if path not in known or known[path][1].torch_shape != weight.shape:
            strangers.append(path)
            continue
        name, entry = known[path]
        new[name] = entry.layout.from_torch(weight)
    if strangers:
        raise ConversionError(f"{files / CUSTOM_DIFFUSION}: {', '.join(strangers)} do not fit this base")
    return new


def _with_word(sd: StableDiffusion, files: Path, digest: str, config: Config) -> StableDiffusion:
    """The base with the subject's word behind its vocabulary; the second text encoder's file comes second by name."""
    others = {PEFT_LORA, CUSTOM_DIFFUSION, COMPRESSED}
    words = sorted(file for file in files.glob("*.safetensors") if file.name not in others)
    if len(words) != len(sd.text_encoders):
        raise ConversionError(f"{files}: {len(words)} files of words for {len(sd.text_encoders)} text encoders")
    values, new = arrays(sd), {}
    for number, file in enumerate(words):
        (rows,) = load_embeddings(file, digest).values()
        name = f"text_encoders.{number}.text_model.embeddings.{TABLE}"
        new[name] = jnp.concatenate([values[name], jnp.asarray(rows, values[name].dtype)])
    grown = replaced(sd, new)
    token = NewToken(config.subjects[0].token, config.method.vectors_per_token)
    grown.family = with_new_tokens(replace(sd.family, new_tokens=(token,)))
    return grown
