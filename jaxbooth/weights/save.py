"""StableDiffusion -> a diffusers folder that PyTorch's `StableDiffusionPipeline.from_pretrained` opens; no torch."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from jaxbooth.errors import ConversionError
from jaxbooth.families import ModelFamily
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.weights.added_tokens import add_tokens, new_token_ids
from jaxbooth.weights.torch_keys import Entry, entries

TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"


def save_pipeline(sd: StableDiffusion, folder: str | Path, *, dtype: str | None = None) -> Path:
    """Writes every component with the base model's own configs, scheduler and tokenizer.

    On several processes all must call it; the first one writes.

    Args:
        sd: Plain modules (adapters merged).
        folder: Is made; what is there already is never overwritten.
        dtype: Dtype of the saved weights, e.g. `float16`; default: as they are.

    Raises:
        ConversionError: the folder is not empty or cannot be made, or an adapter is still attached.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(f"{folder} is not empty: give a new folder, nothing is overwritten")
    tables = {name: entries(module) for name, module in sd.components()}
    draft = folder.with_name(f".{folder.name}.writing")
    if jax.process_index() == 0:
        shutil.rmtree(draft, ignore_errors=True)
        _make(draft)
        _write_configs(sd.family, draft)
    for name, module in sd.components():
        tensors = torch_tensors(module, tables[name], dtype)
        if jax.process_index() == 0:
            file = draft / name / (DIFFUSERS_WEIGHTS if name in ("unet", "vae") else TRANSFORMERS_WEIGHTS)
            # Every loader of this format asks for the "format" entry.
            save_file(tensors, file, metadata={"format": "pt"})
    if jax.process_index() == 0:
        if folder.exists():
            folder.rmdir()
        draft.replace(folder)  # whole or not there
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConversionError(f"{folder.parent} cannot be written ({error.strerror})") from error


def torch_tensors(module: nnx.Module, table: list[Entry], dtype: str | None) -> dict[str, np.ndarray]:
    """The module's parameters under PyTorch's keys and layout, gathered from all processes."""
    values = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    return {e.torch_key: e.layout.to_torch(on_host(values[e.path][...], dtype)) for e in table}


def on_host(array: jax.Array | np.ndarray, dtype: str | None = None) -> np.ndarray:
    """The whole of an array, in a dtype or as it is; on several processes all must call it."""
    is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
    whole = array if is_here else multihost_utils.process_allgather(array, tiled=True)
    host = np.asarray(whole)
    return np.ascontiguousarray(host if dtype is None else host.astype(dtype))


def _write_configs(family: ModelFamily, folder: Path) -> None:
    """The JSON files as they were read, and the tokenizers' files as they lie in the base, with what was added."""
    for name, text in zip(family.component_names, family.component_configs, strict=True):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text, encoding="utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(family.scheduler_config, encoding="utf-8")
    (folder / "model_index.json").write_text(model_index(family), encoding="utf-8")
    added = new_token_ids(family) if family.new_tokens else ({},) * len(family.tokenizer_names)
    for name, ids in zip(family.tokenizer_names, added, strict=True):
        (folder / name).mkdir()
        for file in TOKENIZER_FILES:
            if (Path(family.folder) / name / file).is_file():
                shutil.copyfile(Path(family.folder) / name / file, folder / name / file)
        add_tokens(folder / name, ids)


def model_index(family: ModelFamily) -> str:
    """The base's model_index.json without the parts that are not written (safety checker, feature extractor)."""
    index, written = json.loads(family.model_index), {*family.component_names, *family.tokenizer_names, "scheduler"}
    index = {k: [None, None] if isinstance(v, list) and k not in written else v for k, v in index.items()}
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    return json.dumps(index, indent=2) + "\n"
