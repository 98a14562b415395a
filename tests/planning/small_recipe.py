"""A training step that compiles in seconds, and plans that no compiler has made."""

from dataclasses import replace

import jax

from jaxbooth.diffusion.loss import Objective
from jaxbooth.families import ModelFamily, tiny_family
from jaxbooth.methods import LoRA
from jaxbooth.pipeline import schedule_of
from jaxbooth.planning.plan import Memory, StepPlan
from jaxbooth.planning.step import StepRecipe
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.training.optimizer import OptimizerConfig


def small_family(kind: str = "sd1", width: int = 32) -> ModelFamily:
    """One level of convolutions, a transformer in the middle, one layer of text encoder."""
    tiny = tiny_family(kind)
    sizes = {"block_out_channels": (width,), "layers_per_block": (0,), "num_attention_heads": (2,)}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = replace(tiny.unet, **sizes, **blocks, transformer_layers_per_block=(1,))
    encoders = tuple(replace(encoder, num_hidden_layers=2) for encoder in tiny.text_encoders)
    return replace(tiny, unet=unet, text_encoders=encoders)


def small_recipe(method=None, *, kind: str = "sd1", width: int = 32, rows: int = 2, **options) -> StepRecipe:
    family = small_family(kind, width)
    method, tx = method or LoRA(rank=2), OptimizerConfig().build(10)
    return StepRecipe(family, method, tx, Objective(schedule_of(family)), rows, 16, **options)


def mesh_of(subject: int = 1, data: int = 1, fsdp: int = 1):
    return make_mesh(MeshConfig(subject=subject, data=data, fsdp=fsdp), jax.devices()[: subject * data * fsdp])


def said(
    size: int, fits: bool = True, kind: str = "TPU v5 lite", flops: float = 1e12, gigabytes: float = 1.0
) -> StepPlan:
    """What a compiler could have said of a pack: `gigabytes` moved, a GiB needed for each subject."""
    needed, available = size * 2**30, 16 * 2**30
    plan = StepPlan(size, 8, {"subject": 8, "data": 1, "fsdp": 1}, kind, fits, needed, available, compile_seconds=1.0)
    if not fits:
        return plan
    memory = Memory(2**29, 2**20, 2**20, needed - 2**29, 0)
    moved = {"flops": flops, "bytes_accessed": gigabytes * 1e9, "collectives": {}, "base_bytes_moved": 5 * 10**9}
    return replace(plan, memory=memory, arguments={"base": 3 * 10**9, "state": size}, **moved)
