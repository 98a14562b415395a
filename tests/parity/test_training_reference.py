"""Whole optimiser steps against PyTorch: diffusers' and transformers' modules, torch's AdamW and clipping.

Both sides see the same pictures, captions, latents, noise and timesteps. What is compared:

- the gradients, as the first step's first moments, and that step's parameters;
- after 20 steps every parameter tensor, and the way that all of them went.

AdamW divides a gradient by its own size. Where the gradient is mathematically zero it divides rounding errors by
rounding errors, and both sides go anywhere at full speed: that is so for the bias of a key (softmax does not see what
is added to all scores of a row), which only the text encoder has. For those tensors the tests state instead why they
may differ: no gradient on either side, a way no longer than AdamW's, and the same text states with either side's.
"""

from functools import cache

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.training_utils import compute_snr

from jaxbooth import load_pipeline
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.examples import Examples, encode_text
from jaxbooth.diffusion.loss import Objective, draw
from jaxbooth.methods import DreamBooth
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.state import init_state
from jaxbooth.training.step import make_train_step, row_keys
from jaxbooth.weights.torch_keys import canonical_key, to_torch

STEPS, SEED = 20, 3
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, max_grad_norm=1.0)
CAPTIONS = ["a sks dog", "a sks dog in the snow", "a photo of a sks dog"]
# Compiling is nearly all of the time; the arithmetic is the same without LLVM's effort.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEY_BIAS = "self_attn.k_proj.bias"  # its gradient is zero: see above


class Ours:
    """The product's own step on one device, compiled once for each kind of model."""

    def __init__(self, folder, trains_text_encoder, snr_gamma):
        self.folder, self.method = folder, DreamBooth(train_text_encoder=trains_text_encoder)
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        sd = load_pipeline(folder)
        self.objective = Objective(sd.schedule, snr_gamma, scaling_factor=sd.family.vae.scaling_factor)
        self.text = encode_text(sd, [*CAPTIONS, "a dog"], trains_text_encoder)[0]
        self.compiled = None

    def stream(self, prior_weight):
        """Four rows a step: four of the subject, or two and two of its class."""
        rng = np.random.default_rng(0)

        def examples(count, text_index):
            moments = rng.standard_normal((count, 8, 8, 8)).astype(np.float32) * np.float32(3)
            return Examples(moments, np.asarray(text_index, np.int32), self.text, None)

        instance, prior = [examples(3, [0, 1, 2])], [examples(5, [3] * 5)]
        rows = (instance, prior, 2) if prior_weight else (instance, None, 4)
        return BatchStream(*rows, prior_weight, SEED, self.mesh)

    def train(self, prior_weight):
        """Yields the step's metrics, its state and the parameters by PyTorch key; first of all, those before it."""
        sd, tx = load_pipeline(self.folder), OPTIMIZER.build(STEPS)
        split, state = init_state(self.method, sd, 1, tx, SEED, self.mesh)
        stream = self.stream(prior_weight)
        if self.compiled is None:
            step = make_train_step(self.method, split, tx, self.objective, self.mesh, state, seed=SEED)
            lowered = step.lower(state, split.base, stream.device_batch(0))
            self.compiled = lowered.compile(compiler_options=COMPILER_OPTIONS)
        yield None, by_torch_key(split, state.adapter), None
        for number in range(STEPS):
            state, metrics = self.compiled(state, split.base, stream.device_batch(number))
            moments = by_torch_key(split, state.opt_state[1][0].mu)
            yield (
                {name: float(value[0]) for name, value in metrics.items()},
                by_torch_key(split, state.adapter),
                moments,
            )


def by_torch_key(split, adapter):
    tree = split.merge({name: value[0] for name, value in adapter.items()})
    return {
        f"{part}.{key}": np.array(array)
        for part, module in tree.components()
        for key, array in to_torch(module).items()
    }


class Reference:
    """The same in PyTorch, in the words of diffusers' DreamBooth script."""

    def __init__(self, folder, trains_text_encoder, snr_gamma):
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        self.text_encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.snr_gamma = snr_gamma
        self.text_encoder.requires_grad_(trains_text_encoder)
        self.modules = {"unet": self.unet} | ({"text_encoder": self.text_encoder} if trains_text_encoder else {})
        self.named = {
            f"{part}.{canonical_key(key)}": parameter
            for part, module in self.modules.items()
            for key, parameter in module.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.named.values(),
            lr=OPTIMIZER.learning_rate,
            betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
            eps=OPTIMIZER.epsilon,
            weight_decay=OPTIMIZER.weight_decay,
        )

    def step(self, drawn, captions, is_prior, prior_weight):
        latents, noise = (torch.from_numpy(np.array(x)).permute(0, 3, 1, 2) for x in (drawn.latents, drawn.noise))
        timesteps = torch.from_numpy(np.array(drawn.timesteps)).long()
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        states = self.text_encoder(ids.input_ids).last_hidden_state
        model_pred = self.unet(noisy_latents, timesteps, states).sample
        v_prediction = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
        losses = (model_pred - target).square().mean((1, 2, 3))
        if self.snr_gamma is not None:
            snr = compute_snr(self.scheduler, timesteps)
            losses = losses * snr.clamp(max=self.snr_gamma) / (snr + 1 if v_prediction else snr)
        is_prior = torch.from_numpy(is_prior)
        loss = losses[~is_prior].mean()
        if is_prior.any():
            loss = loss + prior_weight * losses[is_prior].mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), OPTIMIZER.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach()), float(norm)

    def parameters(self):
        return {name: parameter.detach().numpy().copy() for name, parameter in self.named.items()}

    def moments(self):
        state = self.optimizer.state
        return {name: state[parameter]["exp_avg"].numpy() for name, parameter in self.named.items()}

    def text_states(self, **replaced):
        ids = self.tokenizer(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            for name, array in replaced.items():
                self.named[name].copy_(torch.from_numpy(array))
            return self.text_encoder(ids).last_hidden_state.numpy()


def error(ours, theirs):
    """Largest difference, over the largest number of the reference."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def worst(ours, theirs):
    """The tensor that differs most, and by how much."""
    assert ours.keys() == theirs.keys()
    errors = {name: error(ours[name], theirs[name]) for name in ours if not name.endswith(KEY_BIAS)}
    name = max(errors, key=errors.get)
    return errors[name], name


def length(tensors):
    return np.sqrt(
        sum(np.square(x, dtype=np.float64).sum() for name, x in tensors.items() if not name.endswith(KEY_BIAS))
    )


def difference(ours, theirs):
    return {name: ours[name] - theirs[name] for name in ours}


@pytest.fixture(scope="module")
def make_ours(twin_folder):
    return cache(lambda kind, *arguments: Ours(twin_folder(kind), *arguments))


CASES = {
    "plain fine-tuning of the UNet": ("sd1", False, None, 0.0),
    "UNet, prior weight 0.5": ("sd1", False, None, 0.5),
    "UNet, prior weight 1": ("sd1", False, None, 1.0),
    "UNet and text encoder, no prior": ("sd1", True, None, 0.0),
    "UNet and text encoder, prior weight 0.5": ("sd1", True, None, 0.5),
    "UNet and text encoder, prior weight 1": ("sd1", True, None, 1.0),
    "v-prediction with min-SNR, prior weight 1": ("sd2", False, 5.0, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step_and_then_twenty_equal_pytorch(make_ours, twin_folder, case):
    kind, trains_text_encoder, snr_gamma, prior_weight = CASES[case]
    ours = make_ours(kind, trains_text_encoder, snr_gamma)
    reference = Reference(twin_folder(kind), trains_text_encoder, snr_gamma)
    stream, run = ours.stream(prior_weight), ours.train(prior_weight)
    captions_of = caption_lookup(ours)

    _, before, _ = next(run)
    assert worst(before, reference.parameters())[0] == 0.0
    norms = []
    for number, (metrics, parameters, moments) in enumerate(run):
        batch = jax.tree.map(lambda x: x[0], stream.host_batch(number))
        drawn = draw(ours.objective, jnp.asarray(batch.moments), row_keys(SEED, number, 0, batch.rows))
        loss, norm = reference.step(drawn, captions_of(batch.text), batch.is_prior, prior_weight)
        assert metrics["loss/total"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        norms.append(norm)
        if number == 0:
            first = worst(parameters, reference.parameters()), worst(moments, reference.moments())
    assert max(norms) > OPTIMIZER.max_grad_norm  # or clipping would not be tested

    theirs = reference.parameters()
    ways = [difference(end, before) for end in (parameters, theirs)]
    way = length(difference(*ways)) / length(ways[1])
    last = worst(parameters, theirs)
    print(f"{case}: 1 step {first[0]}, gradients {first[1]}; 20 steps {last}, way {way:.1e}")
    assert first[0][0] <= 1e-5 and first[1][0] <= 1e-4
    assert last[0] <= 1e-4 and way <= 1e-3
    if trains_text_encoder:
        assert_key_biases_only_drift(reference, before, parameters, moments)


def caption_lookup(ours):
    """Which captions a batch has, from its ids or states."""
    table = np.asarray(jax.tree.leaves(ours.text)[0])

    def captions(text):
        rows = [
            int(np.flatnonzero((table == row).all(axis=tuple(range(1, table.ndim))))[0])
            for row in jax.tree.leaves(text)[0]
        ]
        return [[*CAPTIONS, "a dog"][row] for row in rows]

    return captions


def assert_key_biases_only_drift(reference, before, parameters, moments):
    theirs, their_moments = reference.parameters(), reference.moments()
    names = [name for name in theirs if name.endswith(KEY_BIAS)]
    assert names
    for name in names:
        scale = np.abs(their_moments[name.replace("k_proj", "q_proj")]).max()
        for side in (moments, their_moments):
            assert np.abs(side[name]).max() < 1e-5 * scale  # no gradient but rounding
        for side in (parameters, theirs):
            # A step is at most the learning rate times (1 - beta1) / sqrt(1 - beta2), and the decay.
            assert np.abs(side[name] - before[name]).max() < STEPS * OPTIMIZER.learning_rate * 3.2
    states = reference.text_states()
    replaced = reference.text_states(**{name: parameters[name] for name in names})
    assert error(replaced, states) < 1e-5
