"""LoRA in kohya's layout: the file that A1111, Forge, ComfyUI and InvokeAI load, and diffusers too.

A module's path has `_` for every dot; SDXL's UNet goes by the names of Stability's code (`sgm_blocks`):

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight    [r, in]    SD 1 and 2
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight                [out, r]   SDXL
    lora_te_..., SDXL: lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha                    [], scale = alpha / r
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save

from jaxbooth.errors import ConversionError, list_problems
from jaxbooth.export.lora_weights import LoRALayer, LoRAWeights, by_component, check_layers, split_component
from jaxbooth.export.sgm_blocks import sgm_path
from jaxbooth.export.tensor_file import as_dtype, read_tensors, write_tensors

FamilyName = Literal["sd1", "sd2", "sdxl"]
# A1111 knows SD 2's text encoder as lora_te only, SDXL's two as lora_te1 and lora_te2.
PREFIXES = {
    "sd1": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sd2": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
READ_PREFIXES = {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha", "dora_scale": "magnitude"}


def save_kohya_lora(
    weights: LoRAWeights,
    file: str | Path,
    *,
    family_name: FamilyName,
    metadata: Mapping[str, str] | None = None,
    prediction_type: str = "epsilon",
    layers_per_block: int = 2,
    dtype: str = "float32",
) -> Path:
    """Writes a LoRA in kohya's layout.

    rsLoRA's scale becomes an alpha. diffusers mistakes the scale of attention layers where alphas differ within a
    component, so they are made one: the most common stays, layers with another get the difference in `lora_up`.

    DoRA is written as `dora_scale` `[out, 1]`, but clients differ: diffusers drops it with a warning and applies a
    wrong LoRA; A1111 takes it for norms along the input; some versions of ComfyUI and Forge divide by the norm of the
    base weight instead of the changed one. For DoRA give diffusers the file of `save_peft_lora`, others a merged model.

    Args:
        weights: Any alphas and ranks.
        file: Ends in `.safetensors`.
        family_name: Decides the names.
        metadata: Header entries beside and instead of the usual `ss_*` and `modelspec.*` ones.
        prediction_type: Of the base, `epsilon` or `v_prediction`; told to clients.
        layers_per_block: Of the UNet's config; counts in SDXL's names.
        dtype: `float32`, `float16` or `bfloat16`.

    Raises:
        ConversionError: the layers cannot be used or do not belong to the family, or the file cannot be written.
    """
    check_layers(weights, str(file))
    prefixes = PREFIXES[family_name]
    weights = with_one_alpha(weights)
    tensors, problems = {}, []
    for path, layer in weights.items():
        component, module = split_component(path)
        named = sgm_path(module, layers_per_block) if (family_name, component) == ("sdxl", "unet") else module
        if component not in prefixes or named is None:
            problems.append(f"{path} is no module of {family_name}")
            continue
        name = f"{prefixes[component]}_{named.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = as_dtype(layer.down, dtype)
        tensors[f"{name}.lora_up.weight"] = as_dtype(layer.up, dtype)
        tensors[f"{name}.alpha"] = np.asarray(layer.alpha, np.float32)
        if layer.magnitude is not None:
            ones = (1,) * (layer.down.ndim - 1)
            tensors[f"{name}.dora_scale"] = as_dtype(layer.magnitude.reshape(-1, *ones), dtype)
    if problems:
        raise ConversionError(list_problems(f"{file}: {len(problems)} LoRA layers have no name there:", problems))
    header = kohya_metadata(weights, family_name, prediction_type) | _hashes(tensors)
    header |= {"modelspec.title": Path(file).stem, "ss_output_name": Path(file).stem} | dict(metadata or {})
    return write_tensors(tensors, file, header)


def with_one_alpha(weights: LoRAWeights) -> LoRAWeights:
    """The same changes with one alpha for each component (the most common) and no rsLoRA."""
    alphas = {path: layer.scale * layer.rank for path, layer in weights.items()}
    common = {
        component: Counter(alphas[f"{component}.{name}"] for name in layers).most_common(1)[0][0]
        for component, layers in by_component(weights).items()
    }
    result = {}
    for path, layer in weights.items():
        alpha = common[split_component(path)[0]]
        # Spelled alpha * sqrt(r), rsLoRA keeps its factors bit for bit.
        same = replace(layer, alpha=alphas[path], use_rslora=False)
        result[path] = same if alphas[path] == alpha else layer.with_alpha(alpha)
    return result


def kohya_metadata(weights: LoRAWeights, family_name: FamilyName, prediction_type: str) -> dict[str, str]:
    """What clients look at: `ss_*` entries as kohya's trainer writes them, `modelspec.*` as Stability specifies."""
    is_v, is_xl = prediction_type == "v_prediction", family_name == "sdxl"
    version = "sdxl_base_v1-0" if is_xl else f"sd_v{family_name[-1]}{'_v' if is_v else ''}"
    v2 = "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"
    side = {"sd1": 512, "sd2": 768 if is_v else 512, "sdxl": 1024}[family_name]
    ranks = {layer.rank for layer in weights.values()}
    alphas = {f"{layer.alpha:g}" for layer in weights.values()}
    architectures = {"sd1": "stable-diffusion-v1", "sd2": v2, "sdxl": "stable-diffusion-xl-v1-base"}
    return {
        "ss_v2": str(family_name == "sd2"),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(*alphas) if len(alphas) == 1 else "Dynamic",
        "ss_network_args": json.dumps({}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architectures[family_name]}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if is_xl else "diffusers",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if is_v else "epsilon",
    }


def _hashes(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of everything behind the header, by which clients tell a LoRA again after its header was edited."""
    whole = save({key: np.ascontiguousarray(array).reshape(array.shape) for key, array in tensors.items()})
    digest = hashlib.sha256(whole[8 + int.from_bytes(whole[:8], "little") :]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def load_kohya_lora(file: str | Path, module_paths: Iterable[str]) -> LoRAWeights:
    """Reads kohya's layout, SDXL's UNet by its names in Stability's code or in diffusers.

    An alpha that is 0 or missing means alpha = r, as it does for kohya.

    Args:
        file: The .safetensors file.
        module_paths: All modules of the model (`unet.conv_in`, ...): `_` for a dot cannot be undone without them.

    Raises:
        ConversionError: names that are no module of the model, tensors that are no LoRA's, halves of pairs, shapes
            that do not fit; lists all of them.
    """
    tensors, _ = read_tensors(file)
    names, parts, problems = kohya_names(module_paths), {}, []
    for key, array in tensors.items():
        name, _, part = key.partition(".")
        paths = names.get(name, ())
        if part not in PARTS or len(paths) != 1:
            why = "unknown tensor" if part not in PARTS else "ambiguous" if paths else "no module of this model"
            problems.append(f"{why}: {key}")
        elif PARTS[part] in parts.setdefault(paths[0], {}):
            problems.append(f"twice: {paths[0]}, once as {key}")
        else:
            parts[paths[0]][PARTS[part]] = array
    for path, found in parts.items():
        problems += [f"missing: {part} of {path}" for part in ("down", "up") if part not in found]
        problems += [f"{path}: {problem}" for problem in _scalar_problems(found)]
    if problems:
        advice = "Is it a LoRA, and for this family of models? Other kinds of adapter cannot be read."
        raise ConversionError(list_problems(f"{file}: {len(problems)} keys do not fit:", problems, advice))
    weights = {path: _layer(found) for path, found in sorted(parts.items())}
    check_layers(weights, str(file))
    return weights


def kohya_names(module_paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Every name under which a file may hold one of the modules -> the modules that it can mean (one, as a rule)."""
    module_paths = list(module_paths)
    layers_per_block = _layers_per_block(module_paths)
    names: dict[str, tuple[str, ...]] = {}
    for path in module_paths:
        component, module = split_component(path)
        spellings = {module}
        if component == "unet":
            spellings |= {sgm_path(module, layers_per_block, index) for index in (1, 2)} - {None}
        for prefix in READ_PREFIXES.get(component, ()):
            for spelling in spellings:
                name = f"{prefix}_{spelling.replace('.', '_')}"
                names[name] = tuple(dict.fromkeys((*names.get(name, ()), path)))
    return names


def _layers_per_block(module_paths: list[str]) -> int:
    resnets = {path.split(".")[4] for path in module_paths if path.startswith("unet.down_blocks.0.resnets.")}
    return len(resnets) or 2


def _scalar_problems(found: dict[str, np.ndarray]) -> list[str]:
    problems = []
    if "alpha" in found and found["alpha"].size != 1:
        problems.append(f"alpha has shape {found['alpha'].shape}, one number is needed")
    if "magnitude" in found and "up" in found and found["magnitude"].size != found["up"].shape[0]:
        problems.append(
            f"dora_scale has shape {found['magnitude'].shape}; one number for each of {found['up'].shape[0]} outputs "
            "is needed (norms along the input are not supported)"
        )
    return problems


def _layer(found: dict[str, np.ndarray]) -> LoRALayer:
    down, up = found["down"].astype(np.float32), found["up"].astype(np.float32)
    alpha = float(found["alpha"].reshape(())) if "alpha" in found else 0.0
    magnitude = found.get("magnitude")
    return LoRALayer(
        down=down,
        up=up,
        alpha=alpha or float(down.shape[0]),
        magnitude=None if magnitude is None else magnitude.astype(np.float32).reshape(-1),
    )
