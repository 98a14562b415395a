"""LoRA, rsLoRA and DoRA by their formulas; items 2.3.1 to 2.3.6 are those of the list of what LoRA must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_runs import computed, error, run_of, same_bits
from small_sd import DOG, small_family, small_sd

from jaxbooth.config import validate
from jaxbooth.errors import ConfigError, MethodError
from jaxbooth.methods import LoRA
from jaxbooth.nn.clip_text import CLIPTextConfig, CLIPTextModel
from jaxbooth.nn.layers import LayerFactory
from jaxbooth.nn.lora import LoRAConv, LoRALinear, LowRank, first_factors
from jaxbooth.nn.surgery import AdapterParam
from jaxbooth.nn.unet import UNet2DConditionModel, UNetConfig
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.training.state import flatten

RANK, SCALE = 4, 0.7
BASES = {  # every kind of layer that can be wrapped
    "linear": lambda make: make.linear(12, 10),
    "linear without bias": lambda make: make.linear(12, 10, bias=False),
    "3x3": lambda make: make.conv(12, 10),
    "1x1": lambda make: make.conv1x1(12, 10),
    "stride 2": lambda make: make.conv(12, 10, stride=2),
}
every_base = pytest.mark.parametrize("kind", BASES)
every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def values(number: int, shape, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(number).standard_normal(shape), dtype)


def base_of(kind: str, dtype=jnp.float32) -> nnx.Linear | nnx.Conv:
    base = nnx.eval_shape(lambda: BASES[kind](LayerFactory(dtype, dtype, nnx.Rngs(0))))
    base.kernel = nnx.Param(values(0, base.kernel.shape, dtype) / 10)
    if base.bias is not None:
        base.bias = nnx.Param(values(1, base.bias.shape, dtype))
    return base


def layer_of(kind: str, dtype=jnp.float32, dora: bool = False, learned: bool = True) -> LowRank:
    base = base_of(kind, dtype)
    first = values(2, (*base.kernel.shape[:-1], RANK)) / RANK
    layer = (LoRALinear if isinstance(base, nnx.Linear) else LoRAConv)(base, first, SCALE, dora=dora)
    if learned:
        layer.lora_b[...] = values(3, (RANK, 10))
        if dora:
            layer.magnitude[...] = layer.magnitude[...] * jnp.linspace(0.5, 2.0, 10)
    return layer


def inputs(kind: str, dtype=jnp.float32) -> jax.Array:
    return values(4, (3, 5, 12) if kind.startswith("linear") else (3, 6, 6, 12), dtype)


# ---- 2.3.1 to 2.3.6


@every_base
@every_dtype
def test_2_3_1_at_init_the_output_is_the_base_s_bit_for_bit(kind, dtype):
    layer = layer_of(kind, dtype, learned=False)
    assert same_bits(layer(inputs(kind, dtype)), layer.base(inputs(kind, dtype)))


@every_base
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@every_dtype
def test_2_3_2_merged_equals_unmerged(kind, dora, dtype):
    layer, x, bound = layer_of(kind, dtype, dora), inputs(kind, dtype), 1e-5 if dtype == jnp.float32 else 2e-2
    for strength in (1.0, 0.3, -0.5):
        layer.strength = strength
        merged = layer.merged()
        assert type(merged) is type(layer.base) and merged.kernel[...].dtype == dtype
        of_merged, of_layer, of_base = computed(lambda m=merged: (m(x), layer(x), layer.base(x)))
        assert error(of_merged, of_layer) <= bound
        assert error(of_layer, of_base) > 10 * bound


@every_base
def test_2_3_2_unmerging_returns_the_base_since_it_was_kept(kind):
    layer = layer_of(kind)
    before = flatten(nnx.state(layer.base))
    layer.merged().kernel[...] = 0.0
    assert same_bits(flatten(nnx.state(layer.base)), before)
    layer.strength = 0.0
    assert same_bits(flatten(nnx.state(layer.merged())), before)


def test_2_3_3_grad_of_a_is_exactly_zero_at_step_0_and_of_b_is_not():
    run = run_of("lora")
    state, _ = run.train(run.start(), [0])
    moments = state.opt_state[1][0].mu  # a tenth of the first step's gradient
    assert set(moments) == {name for name in run.start().adapter}
    assert {name.rsplit(".", 1)[1] for name in moments} == {"lora_a", "lora_b"}
    for name, moment in moments.items():
        assert bool(jnp.any(moment)) == name.endswith("lora_b"), name


@every_base
def test_2_3_4_concatenated_factors_give_the_sum_of_the_deltas(kind):
    one, other, both = layer_of(kind), layer_of(kind), layer_of(kind)
    other.lora_a[...] = one.lora_a[...][..., ::-1] * 0.3 + 0.1
    other.lora_b[...] = one.lora_b[...][::-1] - 0.2
    both.lora_a = AdapterParam(jnp.concatenate([one.lora_a[...], other.lora_a[...]], axis=-1))
    both.lora_b = AdapterParam(jnp.concatenate([one.lora_b[...], other.lora_b[...]]))
    assert error(both.delta(), one.delta() + other.delta()) <= 1e-6


@every_base
def test_2_3_5_half_of_alpha_is_half_of_the_strength(kind):
    half, whole = layer_of(kind), layer_of(kind)
    half.scale, whole.scale = LoRA(rank=8, alpha=4).scale(8), LoRA(rank=8, alpha=8).scale(8)
    whole.strength = 0.5
    x = inputs(kind)
    of_half, of_whole = computed(lambda: ((half(x), half.delta()), (whole(x), whole.delta())))
    assert max(map(error, of_half, of_whole)) <= 1e-6


@pytest.mark.parametrize(
    ("options", "scale", "of_rank_4"),
    [
        ({}, 1.0, 1.0),
        ({"alpha": 8}, 0.5, 2.0),
        ({"use_rslora": True}, 4.0, 2.0),
        ({"alpha": 8, "use_rslora": True}, 2.0, 4.0),
    ],
)
def test_2_3_5_the_scale_is_alpha_over_rank_or_over_its_root(options, scale, of_rank_4):
    method = LoRA(rank=16, **options)
    assert (method.scale(16), method.scale(4)) == (scale, of_rank_4)


SDXL_UNET = UNetConfig(
    block_out_channels=(320, 640, 1280), layers_per_block=(2, 2, 2), num_attention_heads=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048, use_linear_projection=True,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
BIG_CLIP = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
SIZES = {
    "sd1": (UNetConfig(), [CLIPTextConfig()]),
    "sdxl": (SDXL_UNET, [CLIPTextConfig(), CLIPTextConfig(**BIG_CLIP, projection_dim=1280)]),
}


def full_size_adapter(kind: str, method: LoRA) -> dict[str, jax.ShapeDtypeStruct]:
    """What a method trains of a full-size model; nothing is allocated."""
    unet, clips = SIZES[kind]

    def make():
        encoders = [CLIPTextModel(clip, rngs=nnx.Rngs(0)) for clip in clips]
        sd = StableDiffusion(UNet2DConditionModel(unet, rngs=nnx.Rngs(0)), None, encoders, small_family())
        method.attach(sd, rngs=nnx.Rngs(params=0))
        return sd

    return flatten(nnx.state(nnx.eval_shape(make), AdapterParam))


def count(adapter: dict, part: str) -> int:
    return sum(name.startswith(part) and name.endswith("lora_a") for name in adapter)


def test_2_3_6_attn_are_exactly_128_projections_of_sd1():
    adapter = full_size_adapter("sd1", LoRA(rank=4, targets="attn"))
    assert count(adapter, "unet") == len(adapter) / 2 == 128
    assert sum(leaf.size for leaf in adapter.values()) == 797_184


@pytest.mark.parametrize(("kind", "counts"), [("sd1", (192, 72)), ("sdxl", (722, 72, 192))])
def test_2_3_6_attn_mlp_and_text_encoders_are_the_modules_that_kohya_s_trainers_wrap(kind, counts):
    adapter = full_size_adapter(kind, LoRA(rank=4, text_encoder=True))
    parts = ("unet", *(f"text_encoders.{number}" for number in range(len(counts) - 1)))
    assert tuple(count(adapter, part) for part in parts) == counts


# ---- first factors


def test_first_factors_have_the_published_spread_and_repeat_nothing():
    def make_bases():
        make = LayerFactory(jnp.float32, jnp.float32, nnx.Rngs(0))
        return {f"layer.{number}": make.linear(200, 8) for number in range(3)} | {"conv": make.conv(64, 8)}

    bases = nnx.eval_shape(make_bases)
    factors = first_factors(bases, 8, jax.random.key(0))
    shapes = {path: factor.shape for path, factor in factors.items()}
    assert shapes == {"conv": (3, 3, 64, 8), "layer.0": (200, 8), "layer.1": (200, 8), "layer.2": (200, 8)}
    values = np.concatenate([np.ravel(factor) for factor in factors.values()])
    assert len(set(values.tolist())) > 0.99 * len(values)
    assert values.std() == pytest.approx(1 / 8, rel=0.03) and abs(values.mean()) < 0.01
    other = first_factors(bases, 8, jax.random.key(1))
    assert all(not np.array_equal(other[path], factor) for path, factor in factors.items())


# ---- what is refused


def test_unknown_targets_list_what_they_could_have_matched():
    with pytest.raises(MethodError) as error:
        LoRA(targets="attn3").attach(small_sd(), rngs=nnx.Rngs(params=0))
    for line in (
        'method.targets "attn3" matches no layer',
        "attn, attn-mlp, attn-mlp-conv",
        "mid_block.attentions.N.transformer_blocks.N.attnN.to_q (2)",
        "up_blocks.N.resnets.N.conv_shortcut (1)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "method.rank"),
        ({"text_encoder": True, "text_encoder_rank": 0}, "method.text_encoder_rank"),
        ({"alpha": 0}, "method.alpha"),
        ({"targets": "attn(1"}, "no regular expression"),
        ({"rnk": 4}, "rank"),
    ],
    ids=["rank 0", "text encoder rank 0", "alpha 0", "broken expression", "misspelt"],
)
def test_settings_that_cannot_be_are_refused_by_name(options, message):
    values = {"base": {"path": "pocket"}, "subjects": [DOG.model_dump()], "method": {"type": "lora", **options}}
    with pytest.raises(ConfigError, match=message):
        validate(values, "a.yaml")


# ---- DoRA


def published(layer: LowRank, a, b, magnitude):
    """W' = m (W + s A B) / ||W + s A B||, the norm of each output, everything written out: its three parts."""
    kernel = layer.base.kernel[...]
    changed = kernel + layer.scale * (a.reshape(-1, RANK) @ b).reshape(kernel.shape)
    per_output = (1,) * (changed.ndim - 1) + (-1,)
    norms = jnp.sqrt(jnp.sum(changed**2, axis=tuple(range(changed.ndim - 1))))
    return jnp.reshape(magnitude, per_output), changed, jnp.reshape(norms, per_output)


def with_kernel(layer: LowRank, kernel) -> nnx.Module:
    plain = nnx.merge(*nnx.split(layer.base))
    plain.kernel = nnx.Param(kernel)
    return plain


@every_base
def test_dora_equals_the_published_formula_with_materialised_weights(kind):
    layer = layer_of(kind, dora=True)
    x = inputs(kind)

    def both():
        magnitude, changed, norms = published(layer, layer.lora_a[...], layer.lora_b[...], layer.magnitude[...])
        kernel = magnitude * changed / norms
        return (layer(x), layer.merged().kernel[...]), (with_kernel(layer, kernel)(x), kernel)

    found, expected = computed(both)
    assert max(map(error, found, expected)) <= 1e-5


@pytest.mark.parametrize("kind", ["linear", "3x3"])
def test_dora_s_gradient_holds_the_norm_constant(kind):
    """Section 4.3 of the paper."""
    layer, x = layer_of(kind, dora=True), inputs(kind)
    cotangent = values(5, x.shape[:-1] + (10,))
    graphdef, adapter, rest = nnx.split(layer, AdapterParam, ...)

    def ours(adapter):
        return jnp.sum(nnx.merge(graphdef, adapter, rest)(x) * cotangent)

    def theirs(adapter, hold=jax.lax.stop_gradient):
        values = (adapter[name].get_value() for name in ("lora_a", "lora_b", "magnitude"))
        magnitude, changed, norms = published(layer, *values)
        return jnp.sum(with_kernel(layer, magnitude * changed / hold(norms))(x) * cotangent)

    losses = (ours, theirs, lambda adapter: theirs(adapter, hold=lambda norms: norms))
    found, expected, not_held = computed(lambda adapter: [jax.grad(loss)(adapter) for loss in losses], adapter)
    for name in ("lora_a", "lora_b", "magnitude"):
        assert error(found[name].get_value(), expected[name].get_value()) <= 2e-5, name
        assert name == "magnitude" or error(found[name].get_value(), not_held[name].get_value()) > 1e-2


# ---- what a step costs


@pytest.mark.parametrize("subjects", [1, 3])
def test_the_step_never_forms_a_changed_weight(subjects):
    base = nnx.eval_shape(lambda: LayerFactory(jnp.float32, jnp.float32, nnx.Rngs(0)).linear(48, 40))
    base.kernel, base.bias = nnx.Param(jnp.ones((48, 40))), nnx.Param(jnp.ones(40))
    graphdef, adapter, rest = nnx.split(LoRALinear(base, jnp.ones((48, RANK)), SCALE), AdapterParam, ...)

    def loss(adapter, x):
        return jnp.sum(nnx.merge(graphdef, adapter, rest)(x) ** 2)

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * subjects), adapter)
    jaxpr = jax.make_jaxpr(jax.vmap(jax.grad(loss)))(stacked, jnp.ones((subjects, 6, 48)))
    shapes = {variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars}
    assert any({48, RANK} <= set(shape) for shape in shapes)  # or the test looks at nothing
    assert not [shape for shape in shapes if {48, 40} <= set(shape)]
