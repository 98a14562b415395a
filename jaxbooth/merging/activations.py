"""What linear layers are given while a model draws a concept: second moments of their inputs."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxbooth.diffusion.schedule import add_noise
from jaxbooth.nn.surgery import Statistic, in_float32, replace_modules
from jaxbooth.pipeline import StableDiffusion, size_ids

TIMESTEPS = (50, 250, 450, 650, 850)  # of the noise that the concept's pictures are seen through
ROUNDING = 32 * float(np.finfo(np.float32).eps)  # of a sum of thousands in float32, as a share of the trace
DRAW = {"num_steps": 20, "guidance_scale": 5.0, "sampler": "euler"}


class Recorder(nnx.Module):
    """A linear layer that adds up X^T X of what it is given."""

    def __init__(self, base: nnx.Linear):
        self.base = base
        width = base.kernel.shape[0]
        self.moment = Statistic(jnp.zeros((width, width)))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d2"]:
        """The layer's answer."""
        rows = in_float32(x).reshape(-1, x.shape[-1])
        self.moment[...] += jnp.matmul(rows.T, rows, precision="highest")
        return self.base(x)


def input_moments(
    sd: StableDiffusion, names: Sequence[str], prompts: list[str], *, seed: int = 0
) -> dict[str, Float[np.ndarray, "d d"]]:
    """S = X^T X of the inputs of linear layers while a concept's model sees its own pictures at several noise levels.

    Args:
        sd: One concept's plain model.
        names: Dotted names of kernels: "unet.….attn2.to_k.kernel".
        prompts: What the concept is drawn with; the pictures are its own, so no photos are needed.
        seed: Of the pictures and the noise.

    Returns:
        For each name the sum over all prompts, noise levels and tokens, float64, positive definite.
    """
    if not names:
        return {}
    images = sd.generate(prompts, seed=seed, **DRAW)
    mean = jnp.split(sd.vae.encode(jnp.asarray(images) * 2 - 1), 2, axis=-1)[0]
    latents, ids = mean * sd.family.vae.scaling_factor, jnp.asarray(sd.tokenize(prompts))
    tree = StableDiffusion(sd.unet, None, list(sd.text_encoders), sd.family)
    tree = nnx.merge(*nnx.split(tree))
    wanted = {name.removesuffix(".kernel") for name in names}
    replace_modules(tree, nnx.Linear, lambda path, layer: Recorder(layer) if path in wanted else layer)
    graphdef, statistics, rest = nnx.split(tree, Statistic, ...)
    see = jax.jit(partial(_see, graphdef, rest, ids, images.shape[1:3]))
    for number, timestep in enumerate(TIMESTEPS):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), latents.shape)
        times = jnp.full(len(prompts), timestep)
        statistics = see(statistics, add_noise(sd.schedule, latents, noise, times), times)
    found = nnx.merge(graphdef, statistics, rest)
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(found)}
    return {name: _above_rounding(modules[name.removesuffix(".kernel")].moment[...]) for name in names}


def _above_rounding(moment: Float[Array, "d d"]) -> Float[np.ndarray, "d d"]:
    """A moment summed in float32, raised by what rounding may have taken from its smallest eigenvalues.

    Inputs that hardly vary in some direction would otherwise leave a negative one, and nothing could be solved.
    """
    moment = np.asarray(moment, np.float64)
    return moment + ROUNDING * np.trace(moment) * np.eye(len(moment))


def _see(graphdef, rest, ids, size, statistics, noisy_latents, timesteps):
    tree = nnx.merge(graphdef, statistics, rest)
    states, pooled = tree.encode_ids(ids)
    sizes = jnp.asarray(size_ids(*size, len(ids))) if tree.family.size_conditioning else None
    tree.unet(noisy_latents, timesteps, states, pooled, sizes)
    return nnx.state(tree, Statistic)
