"""A diffusers folder (or hub id, or `pocket`) -> StableDiffusion, strictly."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from jaxbooth import families
from jaxbooth.errors import ConversionError, list_problems
from jaxbooth.families import ModelFamily
from jaxbooth.pipeline import StableDiffusion, build
from jaxbooth.sharding import parameter_sharding, put
from jaxbooth.types import Remat
from jaxbooth.weights.hub import resolve
from jaxbooth.weights.torch_keys import Entry, canonical_key, entries, key_problems

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PLAIN_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
DTYPES = ("F16", "BF16", "F32", "F64")  # safetensors' names


def load_pipeline(
    path: str | Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    *,
    param_dtype: str | None = None,
    revision: str | None = None,
    remat: Remat = "none",
    rounded: bool = False,
) -> StableDiffusion:
    """Loads Stable Diffusion from a diffusers folder, a hub id or the embedded base `pocket`.

    Args:
        path: Folder with model_index.json, or `owner/name` on the hub, or `pocket`.
        dtype: Compute dtype of UNet and text encoders (the VAE always computes in float32).
        mesh: Where to place the parameters (fsdp rule); default: one device.
        param_dtype: Dtype in which UNet and text-encoder parameters are kept; default: `dtype`.
        revision: Commit, tag or branch of a hub id.
        remat: What the backward pass computes again instead of keeping it (types.py).
        rounded: Keep what is multiplied with in `dtype`, for weights that nothing trains (`nn.layers.LayerFactory`).

    Raises:
        ConversionError: not a Stable Diffusion, weights in pickle files, or keys or shapes that do not fit.
    """
    folder = resolve(path, revision)
    family = families.from_diffusers(folder)
    kinds = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype or dtype)}
    return load_weights(family, folder, mesh, **kinds, remat=remat, rounded=rounded)


def load_weights(
    family: ModelFamily, folder: Path, mesh: Mesh | None, *, dtype: DTypeLike, param_dtype: DTypeLike, **options
) -> StableDiffusion:
    """The weights below `folder` in modules of `family`; `options` are those of `pipeline.build`."""
    kinds = {"dtype": dtype, "param_dtype": param_dtype, **options}
    sd = nnx.eval_shape(lambda: build(family, **kinds, rngs=nnx.Rngs(0)))
    readers = open_components(sd, folder)
    loaded = {name: _fill(module, readers[name], mesh) for name, module in sd.components()}
    return StableDiffusion.from_components(family, loaded)


def check_weight_files(family: ModelFamily, folder: Path) -> None:
    """Reads the headers only: raises the ConversionError that `load_pipeline` would raise for keys and shapes."""
    open_components(
        nnx.eval_shape(lambda: build(family, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))), folder
    )


def open_components(sd: StableDiffusion, folder: Path) -> dict[str, Callable[[str], np.ndarray]]:
    """A tensor reader for each component; all problems of all components in one ConversionError."""
    problems, readers = [], {}
    for name, module in sd.components():
        try:
            readers[name], wrong = open_component(folder / name, entries(module))
            problems += [f"{name}: {problem}" for problem in wrong]
        except ConversionError as error:
            problems.append(f"{name}: {error}")
    if problems:
        heading = f"{len(problems)} weights of {folder} do not fit {sd.family.name}:"
        advice = "Check that the folder is complete and that its config.json files belong to its weights."
        raise ConversionError(list_problems(heading, problems, advice))
    return readers


def open_component(folder: Path, wanted: list[Entry]) -> tuple[Callable[[str], np.ndarray], list[str]]:
    """A function that reads one tensor by its canonical key, and what does not fit `wanted`."""
    where, shapes, problems = {}, {}, []
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as handle:
                for key in handle.keys():  # noqa: SIM118 (no mapping)
                    if (name := canonical_key(key)) is None:
                        continue
                    if name in where:
                        problems.append(f"twice: {name}, as {where[name][1]} and as {key}")
                    if (dtype := handle.get_slice(key).get_dtype()) not in DTYPES:
                        problems.append(f"quantised: {key} holds {dtype}; {', '.join(DTYPES)} can be read")
                    where[name], shapes[name] = (file, key), tuple(handle.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{file.name} cannot be read ({error}): download it again") from error
    wanted_keys = {entry.torch_key for entry in wanted}
    if not any(key.startswith("text_projection") for key in wanted_keys):
        # A CLIPTextModelWithProjection's file serves a plain CLIPTextModel as well.
        shapes.pop("text_projection.weight", None)

    def read(key: str) -> np.ndarray:
        file, stored_key = where[key]
        with safe_open(file, framework="numpy") as handle:
            return handle.get_tensor(stored_key)

    return read, problems + key_problems(wanted, shapes)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component: single, sharded with an index, or a variant when it is the only one.

    Raises:
        ConversionError: there are none; says so when only pickle files are there, which are never opened.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder} is missing")
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index*.json")], key=_preference)
    if files:
        return _shards(files[0]) if files[0].suffix == ".json" else [files[0]]
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
    if pickles:
        raise ConversionError(
            f"only pickle weights are there ({', '.join(pickles)}); they can run code when opened and are never loaded. "  # noqa: E501
            "Convert them: pipe.save_pretrained(folder, safe_serialization=True) in diffusers"
        )
    raise ConversionError("no .safetensors file")


def _preference(file: Path) -> tuple:
    """Sorts a component's files: those without variant (`fp16`, `non_ema`) first, indices before what they name."""
    is_plain = file.name.removesuffix(".index.json") in PLAIN_NAMES
    return not is_plain, file.suffix != ".json", len(file.name), file.name


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index.name} cannot be read ({error!r}): download it again") from error
    gone = [name for name in names if not (index.parent / name).is_file()]
    if gone:
        raise ConversionError(f"{index.name} names files that are missing: {', '.join(gone)}")
    return [index.parent / name for name in names]


def _fill(module: nnx.Module, read: Callable[[str], np.ndarray], mesh: Mesh | None) -> nnx.Module:
    """Replaces the abstract parameters of a module by those in the file, one tensor at a time."""
    graphdef, _ = nnx.split(module)
    nested: dict = {}
    for entry in entries(module):
        array = np.asarray(entry.layout.from_torch(read(entry.torch_key)), dtype=entry.dtype)
        sharding = parameter_sharding(entry.shape, mesh) if mesh is not None else None
        value = jnp.asarray(array) if sharding is None else put(array, sharding)
        parent = nested
        for part in entry.path[:-1]:
            parent = parent.setdefault(part, {})
        parent[entry.path[-1]] = value
    jax.block_until_ready(nested)
    return nnx.merge(graphdef, nested)
