"""A LoRA file of either layout, checked against the model that it is for."""

from collections.abc import Iterable
from pathlib import Path

from jaxbooth.errors import ConversionError, list_problems
from jaxbooth.export.kohya_lora import READ_PREFIXES, load_kohya_lora
from jaxbooth.export.lora_weights import COMPONENTS, LoRAWeights
from jaxbooth.export.peft_lora import FILE_NAME, load_peft_lora
from jaxbooth.export.tensor_file import read_tensors

KOHYA = tuple(f"{prefix}_" for prefixes in READ_PREFIXES.values() for prefix in prefixes)
DIFFUSERS = tuple(f"{component}." for component in COMPONENTS)


def load_lora(file: str | Path, module_paths: Iterable[str]) -> LoRAWeights:
    """Reads a LoRA in diffusers' or kohya's layout, whichever it is.

    Args:
        file: A .safetensors file, or a folder with `pytorch_lora_weights.safetensors`.
        module_paths: All modules of the model, with their components (`unet.conv_in`, ...).

    Raises:
        ConversionError: no such layout, or layers for modules that the model does not have; lists all of them.
    """
    file = Path(file) / FILE_NAME if Path(file).is_dir() else Path(file)
    module_paths = list(module_paths)
    keys = list(read_tensors(file)[0])
    if any(key.startswith(KOHYA) for key in keys):
        return load_kohya_lora(file, module_paths)
    if not any(key.startswith(DIFFUSERS) for key in keys):
        shown = ", ".join(keys[:3]) or "nothing"
        raise ConversionError(
            f"{file} is no LoRA for Stable Diffusion: keys begin with {', '.join(DIFFUSERS + KOHYA)}; it has {shown}"
        )
    weights = load_peft_lora(file)
    if strangers := sorted(weights.keys() - set(module_paths)):
        heading = f"{file}: {len(strangers)} layers are for modules that this model does not have:"
        raise ConversionError(list_problems(heading, strangers, "Is it for this family of models?"))
    return weights
