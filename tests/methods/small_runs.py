"""The product's own training on the smallest model, compiled once: K subjects of one method, side by side."""

from dataclasses import replace
from functools import cache, lru_cache

import compiler
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from method_cases import CASES
from small_sd import CAT, DOG, small_family, small_sd

from jaxbooth.data.new_tokens import new_tokens, subject_text
from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.diffusion.loss import Objective
from jaxbooth.families import ModelFamily
from jaxbooth.methods import Method
from jaxbooth.pipeline import StableDiffusion, tokenize
from jaxbooth.sharding import MeshConfig, batch_sharding, make_mesh, put
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.state import TrainState, init_state
from jaxbooth.training.step import make_train_step
from jaxbooth.types import Batch, SubjectText, Text

SEED, ROWS = 5, 4
SUBJECTS = (DOG, CAT)
# An epsilon above the gradients themselves: AdamW's step is then as exact as they are.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, embedding_learning_rate=10.0, weight_decay=0.1, epsilon=0.1)


def family_of(method: Method, subject: SubjectConfig = DOG) -> ModelFamily:
    """The family whose tokenizer knows a subject's new word, if the method makes one."""
    return replace(small_family(), new_tokens=new_tokens(method, [subject]))


def text_of(method: Method, subject: SubjectConfig = DOG) -> SubjectText | None:
    """What a method must know of a subject's words."""
    return subject_text(small_family(), method, [subject]) if method.vectors_per_token else None


def caption(method: Method, subject: SubjectConfig = DOG) -> str:
    """How the subject is called in prompts."""
    token = subject.token if method.vectors_per_token else "sks"
    return f"a photo of a {token}" + (f" {subject.class_noun}" if method.class_noun_in_prompts else "")


@lru_cache(maxsize=64)
def _states(prompts: tuple[str, ...]) -> np.ndarray:
    return np.asarray(small_sd().encode_ids(jnp.asarray(tokenize(small_family(), list(prompts))))[0])


def with_own_keys(method: Method) -> Method:
    """Draws noise from what rows are called and not from a subject's place, which differs between K runs and one."""

    class OwnKeys(type(method), frozen=True):
        def loss(self, sd, batch, objective, keys, reference=None):
            return super().loss(sd, batch, objective, jax.vmap(jax.random.key)(batch.rows), reference)

    return OwnKeys(**method.model_dump())


@lru_cache(maxsize=64)
def small_batch(method: Method, number: int, subjects: int) -> Batch:
    """Step `number`'s host batch: every other row is a prior row. Subject i is the same, however many there are."""

    def one(index: int, subject: SubjectConfig) -> Batch:
        rng = np.random.default_rng([number, index])
        prompts = [caption(method, subject), f"a photo of a {subject.class_noun}"] * (ROWS // 2)
        text = Text(input_ids=tokenize(family_of(method, subject), prompts))
        if not method.trains_text_encoder:
            text = Text(encoder_hidden_states=_states(tuple(prompts)))
        moments = rng.standard_normal((ROWS, 8, 8, 8)).astype(np.float32)
        weights = np.asarray([1.0, 0.5] * (ROWS // 2), np.float32) / (ROWS // 2)
        rows = 1000 * number + 100 * index + np.arange(ROWS, dtype=np.int32)
        return Batch(moments, text, None, weights, np.arange(ROWS) % 2 == 1, rows)

    each = [one(index, subject) for index, subject in enumerate(SUBJECTS[:subjects])]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


class Program:
    """The training step of a number of subjects, compiled; states go in and come out."""

    def __init__(self, run: "SmallRun", subjects: int):
        state = run.start(subjects)
        step = make_train_step(run.method, run.split, run.tx, run.objective, run.mesh, state)
        self._run = run
        self._pack = pack_arrays(alike(subjects, SEED, 100), run.mesh)
        lowered = step.lower(state, run.split.base, run.batch(0, subjects), self._pack)
        self._step = lowered.compile(compiler_options=compiler.options())

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, np.ndarray]]:
        state, metrics = self._step(state, self._run.split.base, batch, self._pack)
        return state, on_host(metrics)


class SmallRun:
    """A method on its way from the start, with one subject or two."""

    def __init__(self, method: Method, optimizer: OptimizerConfig = OPTIMIZER, prior_by_prediction: bool = False):
        self.method, self.mesh = with_own_keys(method), make_mesh(MeshConfig(), jax.devices()[:1])
        sd = small_sd(method)
        self.objective = Objective(sd.schedule, prior_by_prediction=prior_by_prediction)
        self.tx = optimizer.build(100, method.learning_windows(100))
        texts = [text_of(method, subject) for subject in SUBJECTS]
        texts = jax.tree.map(lambda *arrays: np.stack(arrays), *texts) if texts[0] is not None else None
        self.split, state = init_state(
            self.method, sd, alike(len(SUBJECTS), SEED, 100), self.tx, self.mesh, texts=texts
        )
        self._start, self._programs = on_host(state), {}

    def start(self, subjects: int = 1, first: int = 0) -> TrainState:
        """The state before the first step, of some of the subjects; each call gives arrays of its own."""
        chosen = jax.tree.map(lambda leaf: leaf[first : first + subjects] if leaf.ndim else leaf, self._start)
        return jax.tree.map(jnp.array, chosen)

    def batch(self, number: int, subjects: int = 1, first: int = 0) -> Batch:
        """A step's batch on the device."""
        whole = small_batch(self.method, number, first + subjects)
        return jax.tree.map(lambda leaf: put(leaf[first:], batch_sharding(self.mesh)), whole)

    def program(self, subjects: int = 1) -> Program:
        """The compiled step."""
        if subjects not in self._programs:
            self._programs[subjects] = Program(self, subjects)
        return self._programs[subjects]

    def train(self, state: TrainState, numbers, subjects: int = 1, first: int = 0):
        """The state after some steps, and each step's metrics."""
        seen = []
        for number in numbers:
            state, metrics = self.program(subjects)(state, self.batch(number, subjects, first))
            seen.append(metrics)
        return state, seen


@cache
def run_of(name: str) -> SmallRun:
    """The run of a case, compiled once however many tests look at it."""
    case = CASES[name]
    return SmallRun(case.method, OPTIMIZER.model_copy(update={"learning_rate": case.learning_rate}))


def computed(function, *arguments):
    """A function's result, compiled in one piece: much faster than its many operations one by one."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=compiler.options())(*arguments)


def attached_sd(method: Method, subject: SubjectConfig = DOG) -> StableDiffusion:
    """The small model right after `attach`."""
    plain, state = nnx.split(small_sd(method))
    seen = []

    def attach(state):
        sd = nnx.merge(plain, state)
        method.attach(sd, rngs=nnx.Rngs(params=jax.random.key(0)), text=text_of(method, subject))
        graphdef, state = nnx.split(sd)
        seen.append(graphdef)
        return state

    state = computed(attach, state)
    sd = nnx.merge(seen[0], state)
    sd.family = family_of(method, subject)
    return sd


def on_host(tree):
    """Copies that stay when the step takes its state."""
    return jax.tree.map(np.array, tree)


def error(ours, theirs) -> float:
    """Largest difference, over the largest number of the reference; 0 where both are 0."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max(initial=0.0) / (np.abs(theirs).max(initial=0.0) or 1.0))


def worst(ours: dict, theirs: dict) -> float:
    """The largest `error` of arrays of the same names."""
    assert ours.keys() == theirs.keys()
    return max((error(ours[name], theirs[name]) for name in theirs), default=0.0)


def same_bits(ours, theirs) -> bool:
    """Whether two trees are equal in structure and in every bit."""
    if jax.tree.structure(ours) != jax.tree.structure(theirs):
        return False
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
