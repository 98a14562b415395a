"""The base's own prediction, the adapter at strength 0, as the prior: no class pictures are needed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_cases import CASES
from small_runs import OPTIMIZER, SmallRun, error, run_of
from small_sd import DOG

from jaxbooth.config import validate
from jaxbooth.errors import ConfigError
from jaxbooth.training.state import TrainState

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")


@pytest.fixture(scope="module", params=["rslora_regex", "custom_diffusion"])
def runs(request) -> tuple[SmallRun, SmallRun]:
    """A method with and without the option."""
    return SmallRun(CASES[request.param].method, OPTIMIZER, prior_by_prediction=True), run_of(request.param)


def gradient(run: SmallRun, state: TrainState, instance: float, prior: float) -> dict[str, np.ndarray]:
    """A step's clipped gradient, up to a factor, when the two kinds of rows have these weights."""
    batch = run.batch(0)
    batch = batch._replace(weights=jnp.where(batch.is_prior, prior, instance).astype(jnp.float32))
    state = replace(jax.tree.map(jnp.copy, state), opt_state=run.start().opt_state)
    after, _ = run.program()(state, batch)
    return {
        path[-1].key: np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(after.opt_state)
        if any(getattr(key, "name", "") == "mu" for key in path)
    }


def size(gradient: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in gradient.values())))


def test_at_init_prior_rows_give_no_gradient(runs):
    with_option, _ = runs
    found, of_pictures = (gradient(run, run.start(), 0.0, 1.0) for run in runs)
    assert set(found) == set(with_option.start().adapter)
    print(f"{with_option.method.type}: gradient of prior rows {size(found):.1e}, of pictures {size(of_pictures):.1e}")
    assert size(found) <= 1e-6


def test_gradients_of_instance_rows_are_unchanged(runs):
    with_option, without = runs
    state, _ = without.train(without.start(), range(3))
    for place in (with_option.start(), state):
        found, expected = (gradient(run, place, 1.0, 0.0) for run in runs)
        assert size(expected) > 0
        assert max(error(found[name], expected[name]) for name in expected) <= 1e-5


def test_once_the_subject_is_learned_prior_rows_pull_back_to_the_base(runs):
    with_option, without = runs
    state, _ = without.train(without.start(), range(3))
    assert size(gradient(with_option, state, 0.0, 1.0)) > 1e-4


@pytest.mark.parametrize(("method", "refused"), [("dreambooth", True), ("lora", False), ("textual_inversion", False)])
def test_the_option_is_offered_for_every_adapter_and_refused_for_what_changes_the_base(method, refused):
    values = {"base": {"path": "pocket"}, "method": {"type": method}, "subjects": [DOG.model_dump()]}
    values["prior"] = {"by_prediction": True}
    if refused:
        with pytest.raises(ConfigError, match="prior.by_prediction: method dreambooth changes the base itself"):
            validate(values, "a.yaml")
    else:
        assert validate(values, "a.yaml").prior.by_prediction
