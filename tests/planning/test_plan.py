import compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_recipe import mesh_of, said, small_recipe

from jaxbooth.errors import MeshError, MethodError
from jaxbooth.methods import LoRA
from jaxbooth.planning import plan as planning
from jaxbooth.planning.full_size import FULL_SIZE, full_size_family
from jaxbooth.planning.plan import plan_step, refusal
from jaxbooth.planning.step import lower_step
from jaxbooth.planning.text import need

GIB = 2**30
NEW = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: the total memory required (16.00G) exceeds available HBM (15.75G)",
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.00G) exceeds "
    "available HBM (15.75G).",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.00G of 15.75G hbm. Exceeded hbm by 256.00M",
)


@pytest.fixture(scope="module")
def plans():
    """A pack of two and one of four, on one device."""
    options = {"compiler_options": compiler.options(), "memory_bytes": GIB}
    return {size: plan_step(small_recipe(), size, mesh_of(), **options) for size in (2, 4)}


def test_a_larger_pack_needs_more_for_its_subjects_only(plans):
    two, four = plans[2].arguments, plans[4].arguments
    assert four["base"] == two["base"] > 0
    scalar = 4  # the step's number, which they share
    assert four["state"] - scalar == pytest.approx(2 * (two["state"] - scalar), rel=0.01)
    assert four["batch"] == 2 * two["batch"] and four["pack"] == 2 * two["pack"]
    assert plans[4].memory.arguments == sum(four.values())
    assert plans[2].needed_bytes < plans[4].needed_bytes


def test_frozen_weights_are_moved_once_for_all_subjects(plans):
    assert plans[2].base_bytes_moved >= plans[2].arguments["base"]
    assert plans[4].base_bytes_moved <= 1.1 * plans[2].base_bytes_moved


def test_work_grows_with_the_subjects_and_needs_no_talk_on_one_device(plans):
    assert plans[4].flops == pytest.approx(2 * plans[2].flops, rel=0.1)
    assert plans[2].bytes_accessed < plans[4].bytes_accessed < 2.2 * plans[2].bytes_accessed
    assert plans[2].collectives == plans[4].collectives == {}


def test_a_step_fits_while_there_is_room_for_its_peak(plans):
    plan = plans[2]
    assert plan.fits and plan.available_bytes == GIB and plan.needed_bytes == plan.memory.peak
    less = plan_step(
        small_recipe(), 2, mesh_of(), memory_bytes=plan.needed_bytes - 1, compiler_options=compiler.options()
    )
    assert not less.fits and less.memory is not None


def test_the_bound_is_the_slower_of_products_and_bytes_at_the_chip_s_peaks(plans):
    assert plans[2].least_seconds is None and plans[2].bound_by is None  # no figures for CPUs
    products, moved = said(8, flops=197e12, gigabytes=1.0), said(8, flops=1.0, gigabytes=819.0)
    assert (products.least_seconds, products.bound_by) == (1.0, "flops")
    assert (moved.least_seconds, moved.bound_by) == (1.0, "bytes")
    assert said(8, fits=False).least_seconds is None


def test_a_fit_whose_parts_are_more_than_there_is_says_who_has_judged():
    assert need(said(16)) == "fits, 16.00 GiB of 16.00"
    assert need(said(17)) == "just fits by the compiler's own check, 17.00 GiB of 16.00 as the sum of its parts"
    assert need(said(17, fits=False)) == "does not fit, needs 17.00 GiB of 16.00"


@pytest.mark.parametrize("message", NEW)
def test_a_compiler_s_refusal_is_a_verdict_with_numbers(message, monkeypatch):
    assert refusal(message) == (16 * GIB, int(15.75 * GIB))
    monkeypatch.setattr(planning, "trace_step", lambda *_: Refusing(message))
    plan = plan_step(small_recipe(), 2, mesh_of())
    assert not plan.fits and plan.memory is None
    assert (plan.needed_bytes, plan.available_bytes) == (16 * GIB, int(15.75 * GIB))


def test_what_is_not_the_device_s_memory_is_no_verdict(monkeypatch):
    monkeypatch.setattr(planning, "trace_step", lambda *_: Refusing("RESOURCE_EXHAUSTED: scoped vmem limit exceeded"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        plan_step(small_recipe(), 2, mesh_of())


class Refusing:
    """A program that the compiler does not take."""

    def __init__(self, message: str):
        self.message = message

    def lower(self):
        return self

    def compile(self, compiler_options=None):
        raise jax.errors.JaxRuntimeError(self.message)


def test_what_cannot_be_laid_out_or_trained_is_told_before_the_compiler_is_asked():
    with pytest.raises(MeshError, match="3 subjects do not divide"):
        lower_step(small_recipe(), 3, mesh_of(subject=2))
    with pytest.raises(MethodError, match="matches no layer"):
        lower_step(small_recipe(LoRA(targets="nowhere")), 2, mesh_of())


@pytest.mark.parametrize(
    ("name", "parameters"), [("sd15", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684)]
)
def test_published_bases_have_their_published_sizes(name, parameters):
    from flax import nnx

    from jaxbooth.nn.unet import UNet2DConditionModel

    assert name in FULL_SIZE
    family = full_size_family(name)
    kinds = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    unet = nnx.eval_shape(lambda: UNet2DConditionModel(family.unet, **kinds, rngs=nnx.Rngs(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(unet))) == parameters
