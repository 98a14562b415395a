"""Whole optimiser steps against PyTorch: diffusers' and transformers' modules, torch's AdamW and clipping.

Both sides see the same pictures, captions, latents, noise and timesteps. What is compared:

- of one step the gradients, as the first moments that they leave, and the parameters, which must be those that the
  definition of AdamW gives for these gradients;
- after 20 steps every parameter tensor, and the way that all of them went.

AdamW divides a gradient by its own size: between two right answers, an element whose gradient is no larger than its
rounding errors may go either way at full speed. And one tensor has no gradient at all: the bias of the text encoder's
keys, since softmax does not see what is added to all scores of a row. So these cases take an epsilon above the rounding
errors, which makes the comparison of every single element well-posed, and a large learning rate and decay. The default
optimiser, with its epsilon of 1e-8, takes the UNet through v-prediction, at the small steps that are its own.
"""

from functools import cache

import compiler
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.training_utils import compute_snr
from twins import SMALLEST, make_twin

from jaxbooth import load_pipeline
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.examples import Examples, encode_text
from jaxbooth.diffusion.loss import Objective, draw
from jaxbooth.methods import DreamBooth
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.training.gradients import row_keys
from jaxbooth.training.optimizer import OptimizerConfig
from jaxbooth.training.pack import alike, pack_arrays
from jaxbooth.training.state import init_state, state_shardings
from jaxbooth.training.step import make_train_step
from jaxbooth.weights.torch_keys import canonical_key, to_torch

STEPS, SEED = 20, 3
WELL_POSED = OptimizerConfig(learning_rate=3e-4, weight_decay=0.1, epsilon=1e-6, beta1=0.8, beta2=0.99)
DEFAULT = OptimizerConfig()
NO_GRADIENT = "self_attn.k_proj.bias"  # see above; rounding errors are all that is there
CAPTIONS = ["a sks dog", "a sks dog in the snow", "a photo of a sks dog"]
CLASS_PROMPT = "a dog"


class Ours:
    """The product's own step on one device, compiled once for each kind of model."""

    def __init__(self, folder, trains_text_encoder, snr_gamma, optimizer):
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        sd, method, tx = (
            load_pipeline(folder),
            DreamBooth(train_text_encoder=trains_text_encoder),
            optimizer.build(STEPS),
        )
        self.objective = Objective(sd.schedule, snr_gamma, scaling_factor=sd.family.vae.scaling_factor)
        self.text = encode_text(sd, [*CAPTIONS, CLASS_PROMPT], trains_text_encoder)[0]
        self.split, state = init_state(method, sd, alike(1, SEED, STEPS), tx, self.mesh)
        self.layout = state_shardings(state, self.mesh)
        step = make_train_step(method, self.split, tx, self.objective, self.mesh, state)
        self.pack = pack_arrays(alike(1, SEED, STEPS), self.mesh)
        lowered = step.lower(state, self.split.base, self.stream(1.0).device_batch(0), self.pack)
        self.compiled = lowered.compile(compiler_options=compiler.options())
        self.initial = jax.tree.map(np.array, state)

    def stream(self, prior_weight):
        """Four rows a step: four of the subject, or two and two of its class."""
        rng = np.random.default_rng(0)

        def examples(count, text_index):
            moments = rng.standard_normal((count, 8, 8, 8)).astype(np.float32) * np.float32(3)
            return Examples(moments, np.asarray(text_index, np.int32)[:, None], self.text, None)

        instance, prior = [examples(3, [0, 1, 2])], [examples(5, [3] * 5)]
        parts = (instance, prior, 2) if prior_weight else (instance, None, 4)
        return BatchStream(*parts, prior_weight, SEED, self.mesh)

    def train(self, prior_weight):
        """Yields each step's metrics and the state after it."""
        stream, state = self.stream(prior_weight), jax.device_put(self.initial, self.layout)
        for number in range(STEPS):
            state, metrics = self.compiled(state, self.split.base, stream.device_batch(number), self.pack)
            yield {name: float(value[0]) for name, value in metrics.items()}, state

    def by_torch_key(self, adapter):
        """The parameters, or what is shaped like them, as PyTorch calls them and lays them out."""
        tree = self.split.merge({name: np.array(value)[0] for name, value in adapter.items()})
        parts = {part: to_torch(module) for part, module in tree.components()}
        return {f"{part}.{key}": array for part, arrays in parts.items() for key, array in arrays.items()}

    def captions(self, text):
        """The captions of a batch, from its ids or states."""
        table = np.asarray(jax.tree.leaves(self.text)[0])
        rows = [np.flatnonzero((table == row).reshape(len(table), -1).all(1))[0] for row in jax.tree.leaves(text)[0]]
        return [[*CAPTIONS, CLASS_PROMPT][row] for row in rows]


class Reference:
    """The same in PyTorch, in the words of diffusers' DreamBooth script."""

    def __init__(self, folder, trains_text_encoder, snr_gamma, optimizer):
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        self.text_encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.snr_gamma, self.max_grad_norm = snr_gamma, optimizer.max_grad_norm
        self.text_encoder.requires_grad_(trains_text_encoder)
        modules = {"unet": self.unet} | ({"text_encoder": self.text_encoder} if trains_text_encoder else {})
        self.named = {
            f"{part}.{canonical_key(key)}": parameter
            for part, module in modules.items()
            for key, parameter in module.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.named.values(),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        )

    def step(self, drawn, captions, is_prior, prior_weight):
        latents, noise = (torch.from_numpy(np.array(x)).permute(0, 3, 1, 2) for x in (drawn.latents, drawn.noise))
        timesteps = torch.from_numpy(np.array(drawn.timesteps)).long()
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        model_pred = self.unet(noisy_latents, timesteps, self.text_states(captions)).sample
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
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach()), float(norm)

    def text_states(self, captions):
        ids = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids).last_hidden_state

    def parameters(self):
        return {name: parameter.detach().numpy().copy() for name, parameter in self.named.items()}

    def moments(self):
        state = self.optimizer.state
        return {name: state[parameter]["exp_avg"].numpy().copy() for name, parameter in self.named.items()}


def adamw(optimizer, before, moment):
    """The first step by the formulas of Loshchilov and Hutter 2019, for the gradient that left `moment`; in float64."""
    gradient = moment.astype(np.float64) / (1 - optimizer.beta1)
    update = gradient / (np.abs(gradient) + optimizer.epsilon) + optimizer.weight_decay * before
    return before - optimizer.learning_rate * update


def error(ours, theirs):
    """Largest difference, over the largest number of the reference."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def worst(ours, theirs):
    """The error of the tensor that differs most, and its name."""
    assert ours.keys() == theirs.keys()
    return max((error(ours[name], theirs[name]), name) for name in ours)


def split_gradients(moments):
    """Those that are there; and those that are zero, in parts of a gradient next to them."""
    there = {name: moment for name, moment in moments.items() if not name.endswith(NO_GRADIENT)}
    rest = moments.keys() - there.keys()
    zeros = [np.abs(moments[name]).max() / np.abs(moments[name.replace("k_proj", "q_proj")]).max() for name in rest]
    return there, zeros


def difference(ours, theirs):
    return {name: ours[name] - theirs[name] for name in ours}


def length(tensors):
    return np.sqrt(sum(np.square(tensor, dtype=np.float64).sum() for tensor in tensors.values()))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch's threads wait for each other by spinning: on a busy machine, two take a hundred times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MODELS = {
    "UNet": ("sd1", SMALLEST, False, None, WELL_POSED),
    "UNet and text encoder": ("sd1", {}, True, None, WELL_POSED),
    "UNet with v-prediction and min-SNR": ("sd2", SMALLEST, False, 5.0, DEFAULT),
}


@pytest.fixture(scope="module")
def make_ours(tmp_path_factory):
    """A model by its name in MODELS: its folder, and our side of the comparison."""

    def make(model):
        kind, sizes, *options = MODELS[model]
        folder = make_twin(tmp_path_factory.mktemp("twin"), kind, **sizes)
        return folder, Ours(folder, *options)

    return cache(make)


@pytest.mark.parametrize(
    ("model", "prior_weight"),
    [(model, prior_weight) for model in list(MODELS)[:2] for prior_weight in (0.0, 0.5, 1.0)]
    + [("UNet with v-prediction and min-SNR", 1.0)],
)
def test_one_step_and_then_twenty_equal_pytorch(make_ours, model, prior_weight):
    (folder, ours), (*_, trains_text_encoder, snr_gamma, optimizer) = make_ours(model), MODELS[model]
    reference = Reference(folder, trains_text_encoder, snr_gamma, optimizer)
    stream, before, norms = ours.stream(prior_weight), reference.parameters(), []
    assert worst(ours.by_torch_key(ours.initial.adapter), before)[0] == 0.0

    for number, (metrics, state) in enumerate(ours.train(prior_weight)):
        batch = jax.tree.map(lambda x: x[0], stream.host_batch(number))
        drawn = draw(ours.objective, jnp.asarray(batch.moments), row_keys(jax.random.key(SEED), number, 0, batch.rows))
        loss, norm = reference.step(drawn, ours.captions(batch.text), batch.is_prior, prior_weight)
        assert metrics["loss/total"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        norms.append(norm)
        if number == 0:
            parameters, moments = ours.by_torch_key(state.adapter), ours.by_torch_key(first_moments(state))
            gradients, zeros = split_gradients(moments)
            their_gradients, their_zeros = split_gradients(reference.moments())
            update = worst(parameters, {name: adamw(optimizer, before[name], moments[name]) for name in before})
            one = worst(gradients, their_gradients), update, worst(parameters, reference.parameters())
    assert max(norms) > optimizer.max_grad_norm  # or clipping would not be tested

    parameters, theirs = ours.by_torch_key(state.adapter), reference.parameters()
    twenty, way, astray = worst(parameters, theirs), difference(theirs, before), difference(parameters, theirs)
    print("1 step: gradients {}, update {}, parameters {};".format(*one), end=" ")
    print(f"20: {twenty}, {length(astray):.1e} astray on a way of {length(way):.1e}")
    # Float32 knows the argument of a timestep's fastest sinusoid, up to 999, to 3e-5: so the time embedding's gradient.
    assert one[0][0] <= 5e-5 and one[1][0] <= 1e-6 and one[2][0] <= 2e-5
    assert max(zeros + their_zeros, default=0) <= 1e-5 and bool(zeros) == trains_text_encoder
    assert twenty[0] <= 1e-4
    rounding = STEPS * np.finfo(np.float32).eps * length(theirs)  # of the sums alone
    assert length(astray) <= 1e-3 * length(way) + rounding


def first_moments(state):
    return state.opt_state[1][0].mu
