"""Training in miniature: a UNet of three layers that compiles in a second, beside a real (tiny) text encoder."""

import compiler
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.diffusion.loss import Objective
from jaxbooth.families import tiny_family
from jaxbooth.methods import DreamBooth
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.pipeline import StableDiffusion, schedule_of
from jaxbooth.sharding import MeshConfig, batch_sharding, make_mesh, put
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.state import init_state
from jaxbooth.training.step import make_train_step
from jaxbooth.types import Batch, Text

SEED = 5
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)


class SmallUNet(nnx.Module):
    """Speaks the UNet's language: convolutions, a time, and text that is attended to in the simplest way."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv_in = nnx.Conv(4, width, (3, 3), rngs=rngs)
        self.to_k = nnx.Linear(32, width, use_bias=False, rngs=rngs)
        self.ff = nnx.Linear(width, 4 * width, rngs=rngs)
        self.conv_out = nnx.Conv(4 * width, 4, (3, 3), rngs=rngs)

    def __call__(self, latents, timesteps, encoder_hidden_states, text_embeds=None, time_ids=None):
        text = self.to_k(encoder_hidden_states).mean(axis=1)[:, None, None, :]
        hidden = self.conv_in(latents) + text + jnp.cos(timesteps / 100.0)[:, None, None, None]
        return self.conv_out(nnx.silu(self.ff(nnx.silu(hidden))))


class KeysOnly(DreamBooth, frozen=True):
    """Trains the projection of the text alone; the text encoder is in the step, but frozen."""

    train_text_encoder: bool = True

    def is_trainable(self, path, variable):
        return "to_k" in path


def small_model(width: int = 16) -> StableDiffusion:
    family = tiny_family("sd1")
    return StableDiffusion(
        SmallUNet(width, nnx.Rngs(0)), None, [CLIPTextModel(family.text_encoders[0], rngs=nnx.Rngs(1))], family
    )


def mesh_of(subject: int = 1, data: int = 1, fsdp: int = 1):
    count = subject * data * fsdp
    return make_mesh(MeshConfig(subject=subject, data=data, fsdp=fsdp), jax.devices()[:count])


def small_batch(
    number: int, subjects: int = 1, rows: int = 8, prior_weight: float = 0.5, with_ids: bool = False
) -> Batch:
    """Step `number`'s host batch: every other row is a prior row. Subject i is the same, however many there are."""

    def one(subject: int) -> Batch:
        rng = np.random.default_rng([number, subject])
        is_prior = np.arange(rows) % 2 == 1
        text = Text(input_ids=rng.integers(0, 999, (rows, 1, 77)).astype(np.int32))
        if not with_ids:
            text = Text(encoder_hidden_states=rng.standard_normal((rows, 77, 32)).astype(np.float32))
        moments = rng.standard_normal((rows, 8, 8, 8)).astype(np.float32)
        weights = np.where(is_prior, prior_weight, 1.0).astype(np.float32) / np.float32(rows / 2)
        return Batch(moments, text, None, weights, is_prior, np.arange(rows, dtype=np.int32))

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(one, range(subjects)))


class Trainer:
    """The product's own `init_state` and `make_train_step` on a mesh, and batches put on it."""

    def __init__(
        self,
        sd,
        mesh,
        method=None,
        *,
        subjects=1,
        optimizer=OPTIMIZER,
        total=100,
        ema_decay=None,
        terms=None,
        **options,
    ):
        terms = terms or alike(subjects, SEED, total)
        self.mesh, self.method, self.subjects = mesh, method or DreamBooth(), len(terms)
        self.tx = optimizer.build(total)
        ema = ema_decay is not None
        self.pack = pack_arrays(terms, mesh)
        self.split, self.state = init_state(self.method, sd, terms, self.tx, mesh, ema)
        step = make_train_step(
            self.method, self.split, self.tx, Objective(schedule_of(sd.family)), mesh, self.state,
            ema_decay=ema_decay, **options,
        )  # fmt: skip
        self._step, self._compiled = step, None

    def step(self, batch: Batch) -> dict[str, np.ndarray]:
        batch = jax.tree.map(lambda leaf: put(leaf, batch_sharding(self.mesh)), batch)
        if self._compiled is None:
            lowered = self._step.lower(self.state, self.split.base, batch, self.pack)
            self._compiled = lowered.compile(compiler_options=compiler.options())
        self.state, metrics = self._compiled(self.state, self.split.base, batch, self.pack)
        return {name: np.array(value) for name, value in metrics.items()}

    def steps(self, count: int, **options) -> list[dict[str, np.ndarray]]:
        start = int(self.state.step)
        return [self.step(small_batch(start + i, self.subjects, **options)) for i in range(count)]


def on_host(tree):
    return jax.tree.map(np.array, tree)


def error(ours, theirs) -> float:
    """Largest difference, over the largest number of the reference; 0 where both are 0."""
    scale = np.abs(theirs).max(initial=0.0)
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max(initial=0.0) / (scale or 1.0))


def worst(ours, theirs) -> float:
    """The largest `error` of two trees' leaves."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(error(np.asarray(a), np.asarray(b)) for a, b in pairs)


def same_bits(ours, theirs) -> bool:
    """Whether two trees are equal in structure and in every bit."""
    if jax.tree.structure(ours) != jax.tree.structure(theirs):
        return False
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
