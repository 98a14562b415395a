"""Every method, in every way of setting it up that changes its modules. A new method is one line in CASES.

The conformance suite runs over all of them. What trains is listed in golden/NAME.txt, one parameter and its shape a
line: names are what checkpoints and exports are keyed by, so a change of them is a change of format. For a new case the
suite prints the list; read it, and write it down.
"""

from dataclasses import dataclass
from pathlib import Path

from documented import documented_method

from jaxbooth.methods import (
    CustomDiffusion,
    DreamBooth,
    Finetune,
    LoRA,
    Method,
    Perfusion,
    Pivotal,
    TextualInversion,
)

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """A method and what is special about it.

    Attributes:
        method: as it is configured.
        start: largest relative change of the output by `attach`; 0 is equality in every bit.
        learning_rate: at which a few steps learn a few rows by heart.
    """

    method: Method
    start: float = 0.0
    learning_rate: float = 0.1


CASES = {
    "dreambooth": Case(DreamBooth(), learning_rate=0.03),
    "dreambooth_cross_attention": Case(DreamBooth(unet_part="cross_attention"), learning_rate=0.03),
    "finetune_text_encoder": Case(Finetune(train_text_encoder=True), learning_rate=0.03),
    "lora": Case(LoRA(rank=4, alpha=2)),
    "lora_conv": Case(LoRA(rank=4, targets="attn-mlp-conv")),
    "lora_text_encoder": Case(LoRA(rank=4, targets="attn", text_encoder=True, text_encoder_rank=2)),
    "rslora_regex": Case(LoRA(rank=4, targets=r"attn2\.to_q$", use_rslora=True)),
    "dora": Case(LoRA(rank=4, targets=r"attn2\.to|conv1$", use_dora=True)),
    "textual_inversion": Case(TextualInversion()),
    "textual_inversion_3_vectors": Case(TextualInversion(num_vectors=3)),
    "custom_diffusion": Case(CustomDiffusion()),
    "perfusion": Case(Perfusion(), learning_rate=1.0),
    "pivotal": Case(Pivotal(rank=4, targets="attn")),
    "documented": Case(documented_method()()),
}
