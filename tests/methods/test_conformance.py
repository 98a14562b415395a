"""What every method must do, shown for all of them. A new method gets all of it by one line in method_cases.py."""

from functools import cache
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from method_cases import CASES, GOLDEN
from small_runs import OPTIMIZER, attached_sd, caption, error, on_host, run_of, same_bits, worst
from small_sd import DOG, small_sd

from jaxbooth import config as configuration
from jaxbooth.methods import AnyMethod
from jaxbooth.nn.surgery import Adapter, AdapterParam, Statistic, find_modules, set_strength
from jaxbooth.pipeline import StableDiffusion, tokenize
from jaxbooth.strict_yaml import write_yaml
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.state import flatten

# The state that a run starts from is a copy of a host's, so its arrays cannot always be reused in place.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")

every_method = pytest.mark.parametrize("name", CASES)
every_adapter = pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.method.has_adapter])


def test_every_method_of_the_union_has_a_case():
    methods = set(get_args(get_args(AnyMethod)[0]))
    assert {type(case.method) for name, case in CASES.items() if name != "documented"} == methods
    assert {file.stem for file in GOLDEN.iterdir()} == set(CASES)


# ---- the model


@cache
def attached(name: str) -> StableDiffusion:
    """A method's model right after `attach`; do not change it."""
    return attached_sd(CASES[name].method)


@cache
def learned(name: str) -> StableDiffusion:
    """The same with random values added to everything that trains, as it draws; do not change it."""
    graphdef, adapter, rest = nnx.split(attached(name), CASES[name].method.is_trainable, ...)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), adapter)
    sd = nnx.merge(graphdef, adapter, rest)
    CASES[name].method.for_sampling(sd)
    return sd


def output(sd: StableDiffusion, *prompts: str) -> np.ndarray:
    """What the UNet says to some prompts; not compiled, so that the same arithmetic gives the same bits."""
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.standard_normal((len(prompts), 8, 8, 4)), jnp.float32)
    states, _ = sd.encode_ids(jnp.asarray(tokenize(sd.family, list(prompts))))
    return np.asarray(sd.unet(noise, jnp.asarray([7, 800])[: len(prompts)], states))


def at_strength(sd: StableDiffusion, strength: float) -> StableDiffusion:
    copy = nnx.merge(*nnx.split(sd))
    set_strength(copy, strength)
    return copy


def merged(name: str, sd: StableDiffusion) -> StableDiffusion:
    copy = nnx.merge(*nnx.split(sd))
    CASES[name].method.merge(copy)
    return copy


WITHOUT_TOKEN = ("a photo of a dog", "a cat on the beach")


def with_token(name: str) -> tuple[str, str]:
    return caption(CASES[name].method), "a cat on the beach"


@every_method
def test_output_is_unchanged_right_after_attach(name):
    """With new words: of prompts that do not have them."""
    ours, base = output(attached(name), *WITHOUT_TOKEN), output(small_sd(), *WITHOUT_TOKEN)
    assert same_bits(ours, base) or error(ours, base) <= CASES[name].start


@every_method
def test_merge_equals_attached_forward(name):
    method, prompts = CASES[name].method, with_token(name)
    plain, ours = merged(name, learned(name)), output(learned(name), *prompts)
    assert not list(find_modules(plain, Adapter))
    assert not nnx.to_flat_state(nnx.state(plain, (AdapterParam, Statistic)))
    assert plain.family.text_encoders[0].vocab_size == 49408 + method.vectors_per_token
    assert error(ours, output(attached(name), *prompts)) > 1e-3
    if method.merge_is_exact:
        found = error(output(plain, *prompts), ours)
        print(f"{name}: merged against attached {found:.1e}")
        assert found <= 1e-5


@every_method
def test_merging_leaves_the_attached_model_and_its_base_as_they_were(name):
    before, expected = on_host(flatten(nnx.state(learned(name)))), output(learned(name), *with_token(name))
    merged(name, learned(name))
    assert same_bits(on_host(flatten(nnx.state(learned(name)))), before)
    assert same_bits(output(learned(name), *with_token(name)), expected)


@every_adapter
def test_strength_0_is_the_base_to_the_bit(name):
    sd, base = at_strength(learned(name), 0.0), small_sd()
    assert same_bits(output(sd, *WITHOUT_TOKEN), output(base, *WITHOUT_TOKEN))
    found = flatten(nnx.state(merged(name, sd)))
    table = "text_encoders.0.text_model.embeddings.token_embedding.embedding"
    found[table] = found[table][:49408]  # a word has no base to go back to
    assert same_bits(found, flatten(nnx.state(base)))


@every_adapter
def test_strength_one_half_lies_between_and_merges_to_the_same(name):
    sd, prompts = learned(name), with_token(name)
    none, half, whole = (output(at_strength(sd, strength), *prompts) for strength in (0.0, 0.5, 1.0))
    if all(path.endswith("token_embedding.rows") for path in flatten(nnx.state(sd, AdapterParam))):
        assert same_bits(none, whole)  # a word has no base to go back to
    else:
        assert 0 < error(none, half) < error(none, whole) and 0 < error(whole, half) < error(none, whole)
    if CASES[name].method.merge_is_exact:
        assert error(output(merged(name, at_strength(sd, 0.5)), *prompts), half) <= 1e-5


# ---- training


@every_method
def test_adapter_names_and_shapes_are_those_of_the_list(name):
    start = run_of(name).start()
    parts = ((start.adapter, ""), (start.statistics, " statistic"))
    lines = [f"{path} {list(x.shape[1:])}{kind}\n" for part, kind in parts for path, x in part.items()]
    found = "".join(sorted(lines))
    file = GOLDEN / f"{name}.txt"
    assert file.is_file(), f"{file} is missing. What trains is:\n{found}"
    assert found == file.read_text()
    assert {array.dtype for array in start.adapter.values()} == {np.dtype("float32")}


@every_method
def test_only_what_is_trainable_moves_through_weight_decay(name):
    run = run_of(name)
    before, base = run.start(), on_host(run.split.base)
    after, _ = run.train(run.start(), range(2))
    assert OPTIMIZER.weight_decay > 0
    assert same_bits(on_host(run.split.base), base)
    moved = {path for path, array in after.adapter.items() if not same_bits(array, before.adapter[path])}
    assert moved == set(before.adapter)
    arrays = {np.asarray(array).tobytes() for array in base.values()}
    plain = flatten(nnx.state(small_sd()))
    kept = plain if CASES[name].method.has_adapter else {path: plain[path] for path in set(plain) - moved}
    if not run.method.trains_text_encoder:
        kept = {path: array for path, array in kept.items() if not path.startswith("text_encoders.")}
    assert all(np.asarray(array).tobytes() in arrays for array in kept.values())


@every_method
def test_the_optimiser_has_no_leaf_for_what_is_frozen(name):
    run = run_of(name)
    state = run.start()
    assert not set(state.adapter) & set(run.split.base)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in state.adapter.values())


@every_method
def test_the_loss_falls_on_a_tiny_overfit(name):
    run = run_of(name)
    _, metrics = run.train(run.start(), [0] * 12)
    losses = [float(step["loss/total"][0]) for step in metrics]
    print(f"{name}: {losses[0]:.4f} -> {losses[-1]:.4f}")
    assert losses[-1] < 0.99 * losses[0]


@every_method
def test_k_stacked_subjects_equal_k_single_runs(name):
    run, steps = run_of(name), range(3)
    together, metrics = run.train(run.start(2), steps, subjects=2)
    errors = {}
    for subject in range(2):
        alone, expected = run.train(run.start(1, subject), steps, first=subject)
        for part in ("adapter", "statistics"):
            ours = {path: array[subject] for path, array in getattr(together, part).items()}
            theirs = {path: array[0] for path, array in getattr(alone, part).items()}
            errors[part, subject] = worst(ours, theirs)
        losses = [[step["loss/total"][place] for step in steps] for place, steps in ((subject, metrics), (0, expected))]
        errors["loss", subject] = error(*losses)
    print(f"{name}: " + ", ".join(f"{part} {subject} {value:.1e}" for (part, subject), value in errors.items()))
    assert max(errors.values()) <= 5e-6


@every_method
def test_a_checkpoint_comes_back_to_the_bit_and_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    run = run_of(name)
    straight, _ = run.train(run.start(), range(2))
    saved = on_host(straight)
    with CheckpointStore(tmp_path / "checkpoints", fingerprint={}) as store:
        store.save(2, straight)
        straight, expected = run.train(straight, range(2, 4))
        step, again = store.restore_newest(run.start())
    assert step == 2 and same_bits(on_host(again), saved)
    again, metrics = run.train(again, range(2, 4))
    assert same_bits(metrics, expected) and same_bits(on_host(again), on_host(straight))


# ---- configuration


# The documented method is in no union here; tests/cli/test_add_a_method.py puts it there.
@pytest.mark.parametrize("name", [name for name in CASES if name != "documented"])
def test_configuration_survives_yaml(name, tmp_path):
    method = CASES[name].method
    values = {"base": {"path": "pocket"}, "method": method.model_dump(mode="json", exclude_defaults=True)}
    values["method"]["type"] = method.type
    values |= {"subjects": [DOG.model_dump()]} if method.needs_subject else {"dataset": {"path": "photos"}}
    (tmp_path / "short.yaml").write_text(write_yaml(values))
    config = configuration.load(tmp_path / "short.yaml")
    assert config.method == method and type(config.method) is type(method)
    (tmp_path / "whole.yaml").write_text(configuration.dump(config))
    assert configuration.load(tmp_path / "whole.yaml") == config
