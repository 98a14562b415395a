"""The probe of every method: a figure of the rows and the weights, and of nothing else."""

from functools import partial

import compiler
import jax
import numpy as np
import pytest
from method_cases import CASES
from small_runs import SmallRun, caption, family_of, on_host, run_of, same_bits

from jaxbooth.methods import LoRA
from jaxbooth.pipeline import tokenize
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.probe import bind_probe, probe_program
from jaxbooth.types import Text

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Programs compiled as fast as can be."""
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=compiler.options()))


def probed(run, program, state, parts=1):
    """What is found in four rows at fixed timesteps, looked at together or in parts."""
    batch = run.batch(0)._replace(timesteps=jax.numpy.asarray([[100, 100, 700, 700]]))
    if batch.text.input_ids is not None:
        # Photos with different captions: what is taken over the rows of a batch differs between batches.
        ids = np.array(batch.text.input_ids)
        ids[0, 2] = tokenize(family_of(run.method), [f"on the beach, {caption(run.method)}"])[0]
        batch = batch._replace(text=Text(input_ids=jax.numpy.asarray(ids)))
    cuts = np.array_split(np.arange(4), parts)
    batches = [jax.tree.map(lambda leaf, cut=cut: leaf[:, cut], batch) for cut in cuts]
    return bind_probe(program, run.split.base, batches, pack_arrays(alike(1, 5, 9), run.mesh), 0.5)(state)


# Of the others in the slow suite: each is a program to compile.
EVERY = [name if name == "perfusion" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", EVERY)
def test_a_row_counts_the_same_whatever_rows_are_beside_it_and_nothing_moves(name):
    """Perfusion's running mean would follow the rows, as it does in a step."""
    run = run_of(name)
    state, _ = run.train(run.start(), range(2))
    before = on_host(state)
    program = probe_program(run.method, run.split, run.objective, run.mesh, state)
    together, apart = probed(run, program, state), probed(run, program, state, parts=2)
    assert same_bits(on_host(state), before)
    for figure in ("instance", "class", "total"):
        np.testing.assert_allclose(together[figure], apart[figure], rtol=1e-6)
    assert together["instance"] > 0 and together["instance"] != together["class"]


def test_a_prior_by_prediction_tells_how_far_the_model_is_from_the_base():
    run = SmallRun(LoRA(rank=2), prior_by_prediction=True)
    state = run.start()
    program = probe_program(run.method, run.split, run.objective, run.mesh, state)
    assert probed(run, program, state)["class"] == 0
    trained, _ = run.train(state, range(2))
    assert probed(run, program, trained)["class"] > 0
