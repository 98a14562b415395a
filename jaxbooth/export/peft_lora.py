"""LoRA in diffusers' layout, `pytorch_lora_weights.safetensors`, as `pipe.load_lora_weights(folder)` reads it.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight     [r, in]
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight           [out, r]

The layout has no alpha: diffusers takes alpha = r, scale 1, so the scale is folded into `lora_B` here. ComfyUI and
A1111 load such a file by halves or not at all; `kohya_lora` is for them.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxbooth.errors import ConversionError, list_problems
from jaxbooth.export.lora_weights import (
    COMPONENTS,
    LoRALayer,
    LoRAWeights,
    by_component,
    check_layers,
    split_component,
)
from jaxbooth.export.tensor_file import as_dtype, read_tensors, write_tensors

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a folder
METADATA_KEY = "lora_adapter_metadata"

# Suffixes of current and of old files, and what they hold.
PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
# Attention of diffusers' first LoRA files: `attn1.processor.to_out_lora.down.weight`.
OLD_SPELLINGS = (
    (re.compile(r"\.processor\."), "."),
    (re.compile(r"\.to_out_lora\."), ".to_out.0.lora."),
    (re.compile(r"\.to_([qkv])_lora\."), r".to_\1.lora."),
)
TEXT_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}


def save_peft_lora(
    weights: LoRAWeights,
    folder_or_file: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes a LoRA for diffusers' `load_lora_weights`; a folder gets `pytorch_lora_weights.safetensors`.

    DoRA is kept (`lora_magnitude_vector`) and loads to the right weights.

    Args:
        weights: Any alphas and ranks; every layer's scale is folded into its `lora_B`.
        folder_or_file: A folder, or a file name ending in `.safetensors`.
        metadata: More entries of the header; clients ignore them.
        dtype: `float32`, `float16` or `bfloat16`.

    Raises:
        ConversionError: the layers cannot be used, a component has both DoRA and plain layers (PEFT knows one
            setting for all), or the file cannot be written.
    """
    file = Path(folder_or_file)
    file = file if file.suffix == ".safetensors" else file / FILE_NAME
    check_layers(weights, str(file))
    _check_one_kind(weights, file)
    tensors = {}
    for path, layer in weights.items():
        layer = layer.with_alpha(layer.rank)
        tensors[f"{path}.lora_A.weight"] = as_dtype(layer.down, dtype)
        tensors[f"{path}.lora_B.weight"] = as_dtype(layer.up, dtype)
        if layer.magnitude is not None:
            # PEFT keeps a convolution's magnitudes as [1, out, 1, 1], and leaves `.weight` away in files. Text encoders
            # of transformers 5 look for it all the same, those of 4.57 take either.
            shape = (1, -1, 1, 1) if layer.down.ndim == 4 else (-1,)
            ending = "" if path.startswith("unet.") else ".weight"
            tensors[f"{path}.lora_magnitude_vector{ending}"] = as_dtype(layer.magnitude.reshape(shape), dtype)
    header = dict(metadata or {}) | {METADATA_KEY: json.dumps(adapter_metadata(weights), sort_keys=True)}
    return write_tensors(tensors, file, header)


def adapter_metadata(weights: LoRAWeights) -> dict[str, object]:
    """PEFT's settings for each component, as diffusers keeps them in the header.

    When they are there, diffusers hands them to `peft.LoraConfig` in place of what it infers, so they must be
    complete. What older versions infer is wrong for mixed ranks (diffusers 0.36: other scales) and fails for text
    encoders whose modules have lost `text_model.` (diffusers 0.37 on transformers >= 5.6). PEFT matches a name against
    the end of a module's path, so names without `text_model.` fit either.
    """
    settings: dict[str, object] = {}
    for component, layers in by_component(weights).items():
        ranks = {name.removeprefix("text_model."): layer.rank for name, layer in layers.items()}
        rank = Counter(ranks.values()).most_common(1)[0][0]
        others = {name: other for name, other in ranks.items() if other != rank}
        values = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,  # alpha = r everywhere: scale 1
            "target_modules": sorted(ranks),
            "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        }
        settings |= {f"{component}.{key}": value for key, value in values.items()}
    return settings


def load_peft_lora(file: str | Path) -> LoRAWeights:
    """Reads diffusers' layout, today's and the older spellings; a folder's `pytorch_lora_weights.safetensors`.

    Alphas are those of the header's `lora_adapter_metadata` if it is there, else alpha = r.

    Raises:
        ConversionError: keys are unknown or one half of a pair is missing, or shapes do not fit; lists all of them.
    """
    file = Path(file) / FILE_NAME if Path(file).is_dir() else Path(file)
    tensors, header = read_tensors(file)
    parts: dict[str, dict[str, np.ndarray]] = {}
    problems = []
    for key, array in tensors.items():
        path, part = _parse(key)
        if path is None:
            problems.append(f"unknown: {key}")
        elif part in parts.setdefault(path, {}):
            problems.append(f"twice: {path}, once as {key}")
        else:
            parts[path][part] = array
    for path, found in parts.items():
        problems += [f"missing: {part} of {path}" for part in ("down", "up") if part not in found]
    settings = _settings(header, file)
    incomplete = {name for name in by_component(parts) if settings.get(name) and "lora_alpha" not in settings[name]}
    problems += [f"{METADATA_KEY} has no {name}.lora_alpha" for name in sorted(incomplete)]
    if problems:
        raise ConversionError(list_problems(f"{file}: {len(problems)} keys do not fit:", problems))
    weights = {path: _layer(path, found, settings) for path, found in sorted(parts.items())}
    check_layers(weights, str(file))
    return weights


def _check_one_kind(weights: LoRAWeights, file: Path) -> None:
    problems = []
    for component, layers in by_component(weights).items():
        plain = [name for name, layer in layers.items() if layer.magnitude is None]
        if plain and len(plain) < len(layers):
            problems.append(f"{component}: {len(plain)} of {len(layers)} layers are plain LoRA, e.g. {plain[0]}")
    if problems:
        raise ConversionError(list_problems(f"{file}: DoRA and plain layers cannot be mixed:", problems))


def _parse(key: str) -> tuple[str | None, str]:
    """(canonical module path, part) of a key; (None, ``) if it is none of a LoRA."""
    for pattern, replacement in OLD_SPELLINGS:
        key = pattern.sub(replacement, key)
    suffix = next((suffix for suffix in PARTS if key.endswith(suffix)), "")
    component, module = split_component(key.removesuffix(suffix))
    if not suffix or component not in COMPONENTS or not module:
        return None, ""
    if component != "unet":
        for old, new in TEXT_ATTENTION.items():
            module = f"{module.removesuffix(old)}{new}" if module.endswith(f".{old}") else module
        if module.startswith("encoder."):  # saved with transformers >= 5.6
            module = f"text_model.{module}"
    return f"{component}.{module}", PARTS[suffix]


def _settings(header: Mapping[str, str], file: Path) -> dict[str, dict]:
    """The header's PEFT settings by component."""
    try:
        flat = json.loads(header.get(METADATA_KEY, "{}"))
        return {
            component: {
                key.removeprefix(f"{component}."): value
                for key, value in flat.items()
                if key.startswith(f"{component}.")
            }
            for component in COMPONENTS
        }
    except (ValueError, AttributeError) as error:
        raise ConversionError(f"{file}: its {METADATA_KEY} is no JSON object ({error})") from error


def _layer(path: str, found: dict[str, np.ndarray], settings: dict[str, dict]) -> LoRALayer:
    component, module = split_component(path)
    config = settings[component]
    # PEFT's patterns are regular expressions for the end of a path.
    matches = [a for p, a in config.get("alpha_pattern", {}).items() if re.fullmatch(rf"(.*\.)?({p})", module)]
    alpha = matches[0] if matches else config.get("lora_alpha", found["down"].shape[0])
    magnitude = found.get("magnitude")
    return LoRALayer(
        down=found["down"].astype(np.float32),
        up=found["up"].astype(np.float32),
        alpha=float(alpha),
        magnitude=None if magnitude is None else magnitude.astype(np.float32).reshape(-1),
        use_rslora=bool(config.get("use_rslora", False)),
    )
