"""Stable Diffusion as one plain module tree, and pictures from prompts."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from transformers import AddedToken, CLIPTokenizer

from jaxbooth.diffusion.sample import SAMPLERS, classifier_free_guidance
from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.errors import ConfigError, ConversionError
from jaxbooth.families import ModelFamily, NewToken
from jaxbooth.nn.clip_text import CLIPTextModel
from jaxbooth.nn.unet import UNet2DConditionModel
from jaxbooth.nn.vae import AutoencoderKL
from jaxbooth.sharding import AXES, put, rows_sharding
from jaxbooth.types import Remat

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class StableDiffusion(nnx.Module):
    """Text encoders, UNet and VAE of one checkpoint, under their diffusers names.

    `vae` is None inside the training step, which works on cached VAE moments.
    """

    def __init__(self, unet, vae, text_encoders, family: ModelFamily):
        self.unet: UNet2DConditionModel = unet
        self.vae: AutoencoderKL | None = vae
        self.text_encoders: nnx.List = nnx.List(text_encoders)
        self.family = family
        # What some methods do with a prompt's states (methods/perfusion.py).
        self.concepts: nnx.Module | None = nnx.data(None)

    @classmethod
    def from_components(cls, family: ModelFamily, components: dict[str, nnx.Module]) -> "StableDiffusion":
        """The inverse of `components`."""
        encoders = [components[name] for name in TEXT_ENCODERS if name in components]
        return cls(components["unet"], components.get("vae"), encoders, family)

    def components(self) -> Iterator[tuple[str, nnx.Module]]:
        """(folder name, module) of every part that has weights."""
        yield "unet", self.unet
        if self.vae is not None:
            yield "vae", self.vae
        yield from zip(TEXT_ENCODERS, self.text_encoders, strict=False)

    @property
    def schedule(self) -> NoiseSchedule:
        """The checkpoint's own noise schedule and prediction type."""
        return schedule_of(self.family)

    def tokenize(self, prompts: list[str]) -> Int[np.ndarray, "b e n"]:
        """Token ids of prompts for each text encoder, padded and cut to the encoder's length."""
        return tokenize(self.family, prompts)

    def encode_ids(self, input_ids: Int[Array, "b e n"]) -> tuple[Float[Array, "b n d"], Float[Array, "b d2"] | None]:
        """Text states that the UNet attends to, and SDXL's pooled text (else None)."""
        states, pooled = self.encode_plain(input_ids)
        return (states if self.concepts is None else self.concepts(self, input_ids, states)), pooled

    def encode_plain(self, input_ids: Int[Array, "b e n"]) -> tuple[Float[Array, "b n d"], Float[Array, "b d2"] | None]:
        """What the text encoders say, before a method has looked at it."""
        outputs = [encoder(input_ids[:, index]) for index, encoder in enumerate(self.text_encoders)]
        if self.family.text_states == "last":
            return outputs[0].last_hidden_state, None
        return jnp.concatenate([output.penultimate_hidden_state for output in outputs], axis=-1), outputs[-1].pooled

    def encode_prompts(self, prompts: list[str]):
        """Text states `[b, n, d]` of prompts; for SDXL `(states, pooled [b, d2])`."""
        states, pooled = encode_text(self, self.tokenize(prompts))
        return states if pooled is None else (states, pooled)

    def generate(self, prompts: list[str], **options) -> Float[np.ndarray, "b h w 3"]:
        """Pictures of prompts; the arguments are those of `generate`."""
        return generate(self, prompts, **options)


def schedule_of(family: ModelFamily) -> NoiseSchedule:
    """The noise schedule in a family's scheduler config.

    Raises:
        ConversionError: a value of the config is not supported.
    """
    config = json.loads(family.scheduler_config)
    if family.pipeline_class == "StableDiffusionPipeline":
        # What that class of diffusers sets by itself, whatever old files say.
        config |= {"steps_offset": 1, "clip_sample": False}
    return NoiseSchedule.from_config(config)


def build(
    family: ModelFamily, *, dtype, param_dtype, rngs: nnx.Rngs, remat: Remat = "none", rounded: bool = False
) -> StableDiffusion:
    """A `StableDiffusion` of a family with random weights (call under `nnx.eval_shape` to have none)."""
    kinds = {"dtype": dtype, "param_dtype": param_dtype, "rounded": rounded, "rngs": rngs}
    unet = UNet2DConditionModel(family.unet, remat=remat, **kinds)
    vae = AutoencoderKL(family.vae, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
    return StableDiffusion(unet, vae, [CLIPTextModel(config, **kinds) for config in family.text_encoders], family)


def text_only(sd: StableDiffusion) -> StableDiffusion:
    """The parts that `encode_plain` reads, as a tree of its own."""
    return StableDiffusion(None, None, list(sd.text_encoders), sd.family)


@lru_cache(maxsize=64)
def tokenizers(folder: str, count: int, new_tokens: tuple[NewToken, ...] = ()) -> tuple[CLIPTokenizer, ...]:
    """The tokenizers of a pipeline folder, `vocab.json` + `merges.txt` or `tokenizer.json`, with new tokens added.

    Raises:
        ConversionError: their files are damaged.
    """
    folders = [Path(folder) / name for name in ("tokenizer", "tokenizer_2")[:count]]
    try:
        found = tuple(CLIPTokenizer.from_pretrained(str(path), local_files_only=True) for path in folders)
    except Exception as error:  # the tokenizers library raises bare ones
        raise ConversionError(f"{folder}: the tokenizer cannot be read ({error}). Download it again.") from error
    for tokenizer in found:
        # Found as typed: what lower case does to added words differs between versions of transformers.
        words = [AddedToken(name, normalized=False) for token in new_tokens for name in token.names]
        tokenizer.add_tokens(words)
    return found


def spell_out(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """Writes all vectors of each added token into a prompt, as diffusers does: `<dog>` -> `<dog> <dog>_1`."""
    added = tokenizer.get_added_vocab()
    for token in sorted(added, key=len, reverse=True):
        if f"{token}_1" in added and token in prompt:
            names = [token]
            while f"{token}_{len(names)}" in added:
                names.append(f"{token}_{len(names)}")
            prompt = re.sub(re.escape(token) + r"(?!_\d)", lambda _, names=names: " ".join(names), prompt)
    return prompt


def tokenize(family: ModelFamily, prompts: list[str]) -> Int[np.ndarray, "b e n"]:
    """Token ids of prompts for each text encoder of a family."""
    ids = [
        tokenizer(
            [spell_out(tokenizer, prompt) for prompt in prompts],
            padding="max_length",
            max_length=config.max_position_embeddings,
            truncation=True,
            return_tensors="np",
        ).input_ids
        for tokenizer, config in zip(
            tokenizers(family.folder, len(family.text_encoders), family.new_tokens), family.text_encoders, strict=True
        )
    ]
    return np.stack(ids, axis=1).astype(np.int32)


def encode_text(
    sd: StableDiffusion, input_ids: Int[Array, "b e n"]
) -> tuple[Float[Array, "b n d"], Float[Array, "b d2"] | None]:
    """`encode_plain`, compiled."""
    return _encode_text(*nnx.split(text_only(sd)), jnp.asarray(input_ids))


@jax.jit
def _encode_text(graphdef, state, input_ids):
    return nnx.merge(graphdef, state).encode_plain(input_ids)


def size_ids(height: int, width: int, rows: int) -> Float[np.ndarray, "b 6"]:
    """SDXL's time ids of uncropped pictures: original size, crop corner, target size, in pixels."""
    return np.tile(np.asarray([height, width, 0, 0, height, width], np.float32), (rows, 1))


def generate(
    sd: StableDiffusion,
    prompts: list[str],
    *,
    seed: int,
    num_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str = "",
    sampler: str = "ddim",
    height: int | None = None,
    width: int | None = None,
    noise: Float[np.ndarray, "b h w c"] | None = None,
    indices: list[int] | None = None,
    batch_size: int = 8,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "b h w 3"]:
    """Samples one picture for each prompt.

    Args:
        sd: The model.
        prompts: One per picture.
        seed: Picture i is drawn with the key `fold_in(seed, i)`, whatever the batch size and the mesh.
        num_steps: Denoising steps.
        guidance_scale: Classifier-free guidance (Ho and Salimans 2022); 1 switches it off and halves the work.
        negative_prompt: Text of the unconditional half.
        sampler: One of `ddim`, `euler`, `dpmpp_2m`, `euler_ancestral`.
        height, width: Pixels; default: the size that the checkpoint's UNet was made for.
        noise: Starting noise ~ N(0, 1) in place of the seed's.
        indices: The pictures' numbers i; default 0, 1, 2, ...
        batch_size: Pictures per program call and device.
        mesh: Spreads the pictures over all its devices; default: the device of the parameters.

    Returns:
        Pictures in [0, 1].

    Raises:
        ConfigError: unknown sampler, or a size that the model cannot draw.
    """
    shape = latent_shape(sd.family, height, width)
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler {sampler} is not known. Samplers: {', '.join(SAMPLERS)}")
    zeros = sd.family.force_zeros_for_empty_prompt and not negative_prompt
    # What new words are called and where files lie is the tokenizer's business: models that differ in it alone share a
    # program.
    nameless = replace(sd.family, new_tokens=(), folder="")
    program = _program(nameless, sampler, num_steps, guidance_scale != 1.0, zeros, mesh)
    drawing = StableDiffusion(sd.unet, sd.vae, list(sd.text_encoders), nameless)
    drawing.concepts = nnx.data(sd.concepts)
    graphdef, state = nnx.split(drawing)
    numbers = np.arange(len(prompts)) if indices is None else np.asarray(indices)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), numbers)
    noise = np.asarray(_start_noise(keys, shape) if noise is None else noise, np.float32)
    ids, negative = tokenize(sd.family, prompts), tokenize(sd.family, [negative_prompt])
    rows = batch_size * (mesh.size if mesh is not None else 1)
    rows = min(rows, -(-len(prompts) // (mesh.size if mesh else 1)) * (mesh.size if mesh else 1))
    key_data, pictures = np.asarray(jax.random.key_data(keys)), []
    for start in range(0, len(prompts), rows):
        # The last call is filled up with repeated rows so that nothing compiles twice.
        index = np.minimum(np.arange(start, start + rows), len(prompts) - 1)
        inputs = (noise[index], ids[index], np.repeat(negative, rows, axis=0), key_data[index])
        if mesh is not None:
            inputs = tuple(put(array, rows_sharding(mesh)) for array in inputs)
        images = program(graphdef, state, *inputs, jnp.float32(guidance_scale))
        pictures.append(_to_host(images)[: len(prompts) - start])
    return np.concatenate(pictures)


def latent_shape(family: ModelFamily, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Latent height, width and channels of a picture size in pixels."""
    factor, height, width = family.vae.downscale, height or family.resolution, width or family.resolution
    multiple = factor * family.unet.downscale
    if height % multiple or width % multiple or min(height, width) < multiple:
        raise ConfigError(f"picture size {height}x{width}: both sides must be multiples of {multiple} for this model")
    return height // factor, width // factor, family.unet.in_channels


def _start_noise(keys, shape):
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)


def _to_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@lru_cache(maxsize=16)
def _program(family: ModelFamily, sampler: str, num_steps: int, guided: bool, zeros: bool, mesh: Mesh | None):
    """Compiles token ids -> pictures for one family, sampler and number of steps.

    `zeros`: the unconditional half sees zeros instead of the encoded empty prompt, as SDXL was trained.
    """
    schedule = schedule_of(family)
    factor = family.vae.downscale

    def run(graphdef, state, noise, ids, negative_ids, key_data, guidance_scale):
        sd = nnx.merge(graphdef, state)
        states, pooled = sd.encode_ids(jnp.concatenate([negative_ids, ids]) if guided else ids)
        rows, height, width, _ = noise.shape
        if guided and zeros:
            states, pooled = jax.tree.map(lambda x: x.at[:rows].set(0), (states, pooled))
        time_ids = None
        if family.size_conditioning:
            time_ids = jnp.asarray(size_ids(height * factor, width * factor, states.shape[0]))

        def predict(latents, timesteps):
            return sd.unet(latents, timesteps, states, pooled, time_ids)

        if guided:
            predict = classifier_free_guidance(predict, guidance_scale)
        # Stream 1 of each picture's key; stream 0 gave its starting noise.
        keys = jax.vmap(partial(jax.random.fold_in, data=1))(jax.random.wrap_key_data(key_data))
        latents = SAMPLERS[sampler](predict, schedule, noise, num_steps, keys)
        return decode_latents(sd, latents)

    if mesh is None:
        return jax.jit(run)
    # Each device draws its own pictures (fused attention cannot be split by the compiler), with whole parameters.
    rows = P(AXES)
    spread = jax.shard_map(
        run, mesh=mesh, in_specs=(P(), P(), rows, rows, rows, rows, P()), out_specs=rows, check_vma=False
    )
    return jax.jit(spread)


def decode_latents(sd: StableDiffusion, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
    """Pictures in [0, 1] of latents that are scaled by the VAE's scaling factor."""
    images = sd.vae.decode(latents.astype(jnp.float32) / sd.family.vae.scaling_factor)
    return jnp.clip(images / 2 + 0.5, 0.0, 1.0)
