"""The methods of the field, one file each; a new one is added to this union."""

from typing import Annotated

from pydantic import Field

from jaxbooth.methods.base import Method
from jaxbooth.methods.dreambooth import DreamBooth
from jaxbooth.methods.finetune import Finetune

AnyMethod = Annotated[DreamBooth | Finetune, Field(discriminator="type")]

__all__ = ["AnyMethod", "DreamBooth", "Finetune", "Method"]
