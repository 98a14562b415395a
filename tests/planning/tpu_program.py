"""Plans Stable Diffusion 1.5 LoRA packs for a TPU slice, one JSON line for each: TOPOLOGY REMAT PARTS SIZE [SIZE ...].

A process of its own, because the tests' exact matrix products would be another program. Prints the figures of
docs/benchmarks.md:

    python tests/planning/tpu_program.py v5e:2x4 layers 1 8 32
"""

import json
import sys
from dataclasses import asdict

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods import LoRA
from jaxbooth.pipeline import schedule_of
from jaxbooth.planning.effort import OPTIONS
from jaxbooth.planning.full_size import full_size_family
from jaxbooth.planning.machine import this_machine
from jaxbooth.planning.step import StepRecipe
from jaxbooth.training.optimizer import OptimizerConfig


def sd15_lora(remat: str, accumulation: int) -> StepRecipe:
    """Rank 16 on attention and MLP layers, 512 px, bfloat16, one instance and one prior row."""
    family, tx = full_size_family("sd15"), OptimizerConfig(learning_rate=1e-4).build(500)
    how = {"dtype": "bfloat16", "remat": remat, "accumulation": accumulation}
    return StepRecipe(family, LoRA(rank=16), tx, Objective(schedule_of(family)), rows=2, resolution=512, **how)


if __name__ == "__main__":
    name, remat, parts, *sizes = sys.argv[1:]
    machine, recipe = this_machine(name), sd15_lora(remat, int(parts))
    for size in map(int, sizes):
        plan = machine.plan(recipe, size, OPTIONS["low"])
        settings = {"topology": name, "remat": recipe.remat, "accumulation": recipe.accumulation}
        derived = {"least_seconds": plan.least_seconds, "bound_by": plan.bound_by}
        print(json.dumps(settings | asdict(plan) | derived), flush=True)
