"""One run from a checked configuration to pictures and an exported pipeline; each stage skips what is already there."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from jaxbooth.config import Config
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.collage import collage_images
from jaxbooth.data.examples import Examples, encode_examples, joined
from jaxbooth.data.prior import ensure_prior
from jaxbooth.data.prompts import render
from jaxbooth.errors import ConfigError
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, prepare
from jaxbooth.previews import draw_contact_sheet, draw_samples
from jaxbooth.run_folder import versions
from jaxbooth.trained import TrainedRun, abstract, fingerprint, load_base, optimizer, start
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.loop import LoopConfig, train
from jaxbooth.training.state import Split, TrainState
from jaxbooth.training.step import make_train_step
from jaxbooth.weights.digest import base_digest, component_digest
from jaxbooth.weights.hub import commit_of

log = logging.getLogger(__name__)

COLLAGES = 128  # drawn before training


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
        run.checkpoints, keep=config.checkpoint.keep, fingerprint=fingerprint(prepared, digest)
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
    # Two thirds of a full-weight method's state, and of no use any more.
    state = replace(state, opt_state=())
    trained = TrainedRun(prepared, sd, split, state, digest)
    draw_samples(prepared, trained.to_sample(), run.samples / "after")
    if jax.process_index() == 0:
        draw_contact_sheet(prepared)
    if config.export:
        trained.write(run)
    return trained.to_sample()


def make_stream(prepared: Prepared, sd: StableDiffusion, digest: str) -> BatchStream:
    """Draws missing prior pictures, encodes everything once, and gives the batches."""
    config, mesh = prepared.config, prepared.mesh
    vae_digest = component_digest(prepared.base / "vae")

    def encode(images: list[CaptionedImage], group: int, size_augmentation: int = 0) -> Examples:
        return encode_examples(
            sd, images, config.data, prepared.resolution, seed=config.train.seed, mesh=mesh, vae_digest=vae_digest,
            trains_text_encoder=config.method.trains_text_encoder, new_tokens=prepared.new_tokens(group),
            size_augmentation=size_augmentation,
        )  # fmt: skip

    def of_models(images: list[list[CaptionedImage]], size_augmentation: int = 0) -> list[Examples]:
        models = enumerate(prepared.by_model(images))
        return [joined([encode(part, group, size_augmentation) for part in parts]) for group, parts in models]

    augmentation = config.method.size_augmented_views
    collages = draw_collages(prepared) if config.train.collage_share else None
    if not prepared.uses_prior:
        prior = None
    elif config.prior.by_prediction:
        prior = of_models(class_captioned(prepared), augmentation)
    else:
        prior = of_models(prior_images(prepared, sd, digest))
    return BatchStream(
        instance=of_models(prepared.instance_images(), augmentation),
        prior=prior,
        batch_size=config.train.batch_size,
        prior_weight=config.prior.loss_weight,
        seed=config.train.seed,
        mesh=mesh,
        caption_dropout=config.data.caption_dropout,
        collages=None if collages is None else [encode(collages, 0)],
        collage_share=config.train.collage_share,
    )


def draw_collages(prepared: Prepared) -> list[CaptionedImage]:
    """Pictures of two subjects side by side, for subjects that are learned together."""
    phrases = [render("{token} {class_noun}", s.token, s.class_noun) for s in prepared.config.subjects]
    images = [subject.images for subject in prepared.subjects]
    return collage_images(images, phrases, COLLAGES, prepared.resolution, prepared.config.train.seed)


def class_captioned(prepared: Prepared) -> list[list[CaptionedImage]]:
    """Each subject's own pictures under the class prompt: the rows of a prior by prediction."""
    return [
        [replace(image, caption=prepared.prior_prompt(subject), more_captions=()) for image in subject.images]
        for subject in prepared.subjects
    ]


def prior_images(prepared: Prepared, sd: StableDiffusion, digest: str) -> list[list[CaptionedImage]]:
    """Each subject's class pictures with the class prompt as caption; missing ones are drawn first."""
    images = []
    for subject in prepared.subjects:
        prompt = prepared.prior_prompt(subject)
        paths = ensure_prior(sd, prepared.config.prior, prompt, digest, prepared.resolution, prepared.mesh)
        images.append([CaptionedImage(path, prompt, path.name) for path in paths])
    return images


def compile_step(prepared: Prepared, split: Split, state: TrainState):
    """The jitted `(state, base, batch) -> (state, metrics)`."""
    config = prepared.config
    return make_train_step(
        config.method, split, optimizer(config), prepared.objective, prepared.mesh, state,
        seed=config.train.seed, accumulation=config.train.gradient_accumulation_steps,
        ema_decay=config.train.ema_decay,
    )  # fmt: skip


def _step_with_base(step, base, state, batch):
    return step(state, base, batch)


def draw_prior(config: Config) -> list[Path]:
    """Only the prior pictures of a configuration, e.g. ahead of training; returns their paths."""
    prepared = prepare(config)
    if not prepared.uses_prior or config.prior.by_prediction:
        raise ConfigError("this configuration uses no prior pictures (prior.loss_weight is 0, or there is no subject)")
    sd = load_base(config, prepared.base, prepared.mesh)
    images = prior_images(prepared, sd, base_digest(prepared.base))
    return [image.source for subject in images for image in subject]
