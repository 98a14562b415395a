"""Models as training leaves them, without training: a method attached to a twin, and random numbers in its adapter."""

from dataclasses import replace
from functools import partial

import compiler
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.data.new_tokens import new_tokens, subject_text
from jaxbooth.data.subjects import SubjectConfig
from jaxbooth.export.source import Base, SubjectNames, Trained
from jaxbooth.methods import Perfusion
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.nn.surgery import AdapterParam, set_strength
from jaxbooth.pipeline import encode_text

KINDS = ("sd1", "sd2", "sdxl")
DIGEST = "0123456789abcdef"
REX = SubjectConfig(name="my-rex", images="photos", class_noun="dog", token="<rex>")
TOM = SubjectConfig(name="tom", images="photos", class_noun="cat", token="<tom>")


def trained(sd, method, subjects=(REX,), strength=1.0, seed=0, base=None) -> Trained:
    """`sd` stays as it is."""
    model = nnx.merge(*nnx.split(sd))
    if isinstance(method, Perfusion):
        model.concepts = nnx.data(TextMetric(jnp.eye(sd.family.unet.cross_attention_dim)))
    text = None
    if method.vectors_per_token:
        text = jax.tree.map(jnp.asarray, subject_text(sd.family, method, subjects))
    method.attach(model, rngs=nnx.Rngs(params=0), text=text)
    randomise(model, seed)
    method.for_sampling(model)
    set_strength(model, strength)
    model.family = replace(sd.family, new_tokens=new_tokens(method, subjects))
    names = tuple(SubjectNames(subject.name, subject.token, subject.class_noun) for subject in subjects)
    base = base or Base("owner/tiny-diffusion", DIGEST)
    return Trained(method, model, base, names, 123, "adamw, learning rate 0.0001", strength)


def randomise(model, seed=0) -> None:
    """Adds numbers to what trains that no client can overlook."""
    draw = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(model, AdapterParam)):
        size = 0.1 if path[-1] in ("lora_b", "delta") else 0.3
        # Summed up by numpy: nothing is compiled for it.
        variable[...] = jnp.asarray(
            np.asarray(variable[...]) + size * draw.standard_normal(variable.shape), jnp.float32
        )


@partial(jax.jit, static_argnums=0, compiler_options=compiler.options())
def _unet(graphdef, state, *inputs):
    return nnx.merge(graphdef, state)(*inputs)


def latents() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 8, 8, 4)).astype(np.float32)


SIZES = np.float32([[16, 16, 0, 0, 16, 16]])
TIMESTEP = 501


def states_of(sd, prompt) -> tuple[np.ndarray, np.ndarray | None]:
    """Our prompt states and pooled text."""
    states, pooled = encode_text(sd, sd.tokenize([prompt]))
    return np.asarray(states), None if pooled is None else np.asarray(pooled)


def unet_of(sd, states, pooled) -> np.ndarray:
    """Our UNet's answer, NCHW; models of one kind are compiled once."""
    graphdef, state = nnx.split(sd.unet)
    sizes = SIZES if sd.family.size_conditioning else None
    answer = _unet(graphdef, state, latents(), jnp.asarray([TIMESTEP]), states, pooled, sizes)
    return np.asarray(answer).transpose(0, 3, 1, 2)


def answer_of(sd, prompt) -> np.ndarray:
    return unet_of(sd, *states_of(sd, prompt))
