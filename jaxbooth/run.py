"""One run from a checked configuration to pictures and an exported pipeline; each stage skips what is already there."""

import logging
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxbooth.config import Config
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.examples import Examples, encode_examples
from jaxbooth.data.prior import ensure_prior
from jaxbooth.errors import ConfigError
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, prepare
from jaxbooth.previews import draw_contact_sheet, draw_samples
from jaxbooth.run_folder import RunFolder, versions
from jaxbooth.sharding import MeshConfig
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.loop import LoopConfig, train
from jaxbooth.training.state import Split, TrainState, init_state, state_shardings, subject_adapter
from jaxbooth.training.step import make_train_step
from jaxbooth.weights.digest import base_digest, component_digest
from jaxbooth.weights.hub import commit_of
from jaxbooth.weights.load import load_pipeline
from jaxbooth.weights.save import save_pipeline

log = logging.getLogger(__name__)


def train_run(prepared: Prepared) -> StableDiffusion:
    """Trains, or goes on where the run stopped; draws, exports. Returns the trained model.

    Raises:
        Preempted: the run was asked to stop and has saved.
        JaxboothError: training broke down, or a checkpoint cannot be used.
    """
    config, run, mesh = prepared.config, prepared.run, prepared.mesh
    digest = base_digest(prepared.base)
    run.claim(config, {"base": digest, "commit": commit_of(prepared.base), "versions": versions()})
    sd = load_base(config, prepared.base, mesh)
    stream = make_stream(prepared, sd, digest)
    draw_samples(prepared, sd, run.samples / "before")
    split, state = start(prepared, sd)
    step = partial(_step_with_base, compile_step(prepared, split, state), split.base)
    with CheckpointStore(
        run.checkpoints, keep=config.checkpoint.keep, fingerprint=_fingerprint(prepared, digest)
    ) as store:
        restored = store.restore_newest(abstract(state, mesh))
        if restored is not None:
            state = restored[1]
            log.info("going on from step %d", int(state.step))
            if int(state.step) < config.train.steps:
                run.set_aside_results()
        state = train(
            LoopConfig(config.train.steps, config.train.log_every_steps, config.checkpoint.save_every_steps),
            state, step, stream.device_batch, store, run.path, prepared.names,
            config.optimizer.schedule(config.train.steps),
        )  # fmt: skip
    trained = assemble(config, sd, split, state)
    draw_samples(prepared, trained, run.samples / "after")
    if jax.process_index() == 0:
        draw_contact_sheet(prepared)
    if config.export and not run.pipeline.exists():
        save_pipeline(trained, run.pipeline)
    return trained


def load_base(config: Config, folder: Path, mesh: Mesh) -> StableDiffusion:
    """The base with compute dtype as configured and float32 weights: what trains stays exact."""
    return load_pipeline(folder, config.base.dtype, mesh, param_dtype="float32", remat=config.base.remat)


def make_stream(prepared: Prepared, sd: StableDiffusion, digest: str) -> BatchStream:
    """Draws missing prior pictures, encodes everything once, and gives the batches."""
    config, mesh = prepared.config, prepared.mesh
    vae_digest = component_digest(prepared.base / "vae")

    def encode(images: list[CaptionedImage]) -> Examples:
        return encode_examples(
            sd, images, config.data, prepared.resolution, seed=config.train.seed, mesh=mesh, vae_digest=vae_digest,
            trains_text_encoder=config.method.trains_text_encoder,
        )  # fmt: skip

    prior = [encode(images) for images in prior_images(prepared, sd, digest)] if prepared.uses_prior else None
    return BatchStream(
        instance=[encode(images) for images in prepared.instance_images()],
        prior=prior,
        batch_size=config.train.batch_size,
        prior_weight=config.prior.loss_weight,
        seed=config.train.seed,
        mesh=mesh,
        caption_dropout=config.data.caption_dropout,
    )


def prior_images(prepared: Prepared, sd: StableDiffusion, digest: str) -> list[list[CaptionedImage]]:
    """Each subject's class pictures with the class prompt as caption; missing ones are drawn first."""
    images = []
    for subject in prepared.subjects:
        prompt = prepared.prior_prompt(subject)
        paths = ensure_prior(sd, prepared.config.prior, prompt, digest, prepared.resolution, prepared.mesh)
        images.append([CaptionedImage(path, prompt, path.name) for path in paths])
    return images


def start(prepared: Prepared, sd: StableDiffusion) -> tuple[Split, TrainState]:
    """The state before the first step; consumes the arrays of `sd` that train."""
    config = prepared.config
    tx = config.optimizer.build(config.train.steps)
    ema = config.train.ema_decay is not None
    return init_state(config.method, sd, len(prepared.names), tx, config.train.seed, prepared.mesh, ema)


def compile_step(prepared: Prepared, split: Split, state: TrainState):
    """The jitted `(state, base, batch) -> (state, metrics)`."""
    config = prepared.config
    return make_train_step(
        config.method, split, config.optimizer.build(config.train.steps), prepared.objective, prepared.mesh, state,
        seed=config.train.seed, accumulation=config.train.gradient_accumulation_steps,
        ema_decay=config.train.ema_decay,
    )  # fmt: skip


def _step_with_base(step, base, state, batch):
    return step(state, base, batch)


def abstract(state: TrainState, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and layout of a state: what a checkpoint is compared with."""
    layout = state_shardings(state, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)


def assemble(config: Config, sd: StableDiffusion, split: Split, state: TrainState, subject: int = 0) -> StableDiffusion:
    """One subject's model, plain and complete: merged UNet, trained or original text encoders, the base's VAE."""
    tree = split.merge(subject_adapter(state, subject))
    config.method.merge(tree)
    encoders = list(tree.text_encoders) or list(sd.text_encoders)
    return StableDiffusion(tree.unet, sd.vae, encoders, sd.family)


def _fingerprint(prepared: Prepared, digest: str) -> dict[str, str]:
    config = prepared.config
    images = ", ".join(subject.digest for subject in prepared.subjects)
    method, optimizer = config.method.model_dump_json(), config.optimizer.model_dump_json(include={"type"})
    return {"base": digest, "method": method, "optimizer": optimizer, "images": images}


def load_trained(run: RunFolder) -> StableDiffusion:
    """The model of a run: its exported pipeline, else its newest checkpoint.

    Raises:
        ConfigError: the run has not saved anything yet.
    """
    if (run.pipeline / "model_index.json").is_file():
        return load_pipeline(run.pipeline)
    # On one device, whatever it was trained on: sampling and export happen on other machines.
    config = run.config().model_copy(update={"run_dir": str(run.path), "mesh": MeshConfig()})
    prepared = prepare(config, jax.devices()[:1])
    sd = load_base(prepared.config, prepared.base, prepared.mesh)
    split, state = start(prepared, sd)
    fingerprint = _fingerprint(prepared, base_digest(prepared.base))
    with CheckpointStore(run.checkpoints, keep=None, fingerprint=fingerprint, read_only=True) as store:
        restored = store.restore_newest(abstract(state, prepared.mesh))
    if restored is None:
        raise ConfigError(f"{run.path} has no checkpoint yet: run `jaxbooth train` to its first save")
    return assemble(prepared.config, sd, split, restored[1])


def load_any(path: str) -> StableDiffusion:
    """A run, a pipeline folder, a hub id or `pocket`."""
    run = RunFolder(Path(path))
    return load_trained(run) if run.config_file.is_file() else load_pipeline(path)


def draw_prior(config: Config) -> list[Path]:
    """Only the prior pictures of a configuration, e.g. ahead of training; returns their paths."""
    prepared = prepare(config)
    if not prepared.uses_prior:
        raise ConfigError("this configuration uses no prior pictures (prior.loss_weight is 0, or there is no subject)")
    sd = load_base(config, prepared.base, prepared.mesh)
    images = prior_images(prepared, sd, base_digest(prepared.base))
    return [image.source for subject in images for image in subject]
