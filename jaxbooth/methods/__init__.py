"""The methods of the field, one file each; a new one is added to this union."""

from typing import Annotated

from pydantic import Field

from jaxbooth.methods.base import Method
from jaxbooth.methods.custom_diffusion import CustomDiffusion
from jaxbooth.methods.dreambooth import DreamBooth
from jaxbooth.methods.finetune import Finetune
from jaxbooth.methods.lora import LoRA
from jaxbooth.methods.perfusion import Perfusion
from jaxbooth.methods.pivotal import Pivotal
from jaxbooth.methods.textual_inversion import TextualInversion

AnyMethod = Annotated[
    DreamBooth | Finetune | LoRA | TextualInversion | CustomDiffusion | Perfusion | Pivotal,
    Field(discriminator="type"),
]

__all__ = ["AnyMethod", "CustomDiffusion", "DreamBooth", "Finetune", "LoRA", "Method", "Perfusion", "Pivotal",
           "TextualInversion"]  # fmt: skip
