"""Plain fine-tuning on captioned pictures: no subject, no prior; what trains or continues a base."""

from typing import ClassVar, Literal

from jaxbooth.methods.dreambooth import FullWeights


class Finetune(FullWeights, frozen=True):
    """All of the UNet (and the text encoder if asked) on the pictures and captions of `dataset`."""

    type: Literal["finetune"] = "finetune"
    needs_subject: ClassVar[bool] = False
