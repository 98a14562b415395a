"""One run from a checked configuration to pictures and an exported pipeline; each stage skips what is already there."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax

from jaxbooth.config import Config
from jaxbooth.data.batches import BatchStream
from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.collage import collage_images
from jaxbooth.data.examples import Examples, encode_examples, joined
from jaxbooth.data.fixed_rows import FixedRows
from jaxbooth.data.moments import encode_moments
from jaxbooth.data.picture_views import PictureViews
from jaxbooth.data.prior import ensure_prior
from jaxbooth.data.prompts import render
from jaxbooth.errors import ConfigError
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, prepare
from jaxbooth.previews import StepPreviews, draw_contact_sheet, draw_samples
from jaxbooth.run_folder import versions
from jaxbooth.trained import TrainedRun, abstract, fingerprint, load_base, optimizer, start
from jaxbooth.training.checkpoint import CheckpointStore
from jaxbooth.training.early_stop import EarlyStop, all_ended, bind_fixed_loss
from jaxbooth.training.fixed_rows import fixed_loss_program
from jaxbooth.training.goodput import CHECKPOINT, Goodput
from jaxbooth.training.loop import LoopConfig, train
from jaxbooth.training.pack import pack_arrays
from jaxbooth.training.probe import Probe, bind_probe, probe_program
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
    config, run, mesh, goodput = prepared.config, prepared.run, prepared.mesh, Goodput()
    digest = base_digest(prepared.base)
    devices = {"kind": mesh.devices.flat[0].device_kind, "count": mesh.size}
    run.claim(config, {"base": digest, "commit": commit_of(prepared.base), "versions": versions(), "devices": devices})
    sd = load_base(config, prepared.base, mesh)
    stream = make_stream(prepared, sd, digest)
    draw_samples(prepared, sd, run.samples / "before")
    trained = fit(prepared, sd, stream, digest, goodput=goodput, draws=True)
    draw_samples(prepared, trained.to_sample(), run.samples / "after")
    if jax.process_index() == 0:
        draw_contact_sheet(prepared)
    if config.export:
        trained.write(run)
    return trained.to_sample()


def fit(
    prepared: Prepared, sd: StableDiffusion, stream: BatchStream, digest: str, step_file: Path | None = None,
    steps: "CompiledSteps | None" = None, goodput: Goodput | None = None, draws: bool = False,
) -> TrainedRun:  # fmt: skip
    """Takes the steps that are missing and saves on the way.

    Args:
        prepared: The run.
        sd: The base.
        stream: The batches.
        digest: Of the base.
        step_file: Changes with every step.
        steps: Compiled earlier, by runs of the same configuration with other subjects.
        goodput: Has been counting since the run began; default: from here on.
        draws: Whether pictures are drawn on the way, if they are configured.

    Raises:
        Preempted: the run was asked to stop and has saved.
        JaxboothError: training broke down, or a checkpoint cannot be used.
    """
    config, run, goodput = prepared.config, prepared.run, goodput or Goodput()
    split, state = start(prepared, sd)
    steps = steps or CompiledSteps()
    step, watch = steps.step(prepared, split, state), steps.watch_fixed_rows(prepared, split, state, stream)
    probe, previews = steps.probe(prepared, split, state, stream), None
    if draws and config.sample.every_steps is not None and (prepared.prompts or prepared.class_prompts):
        previews = StepPreviews(
            prepared, config.sample.every_steps,
            lambda state: TrainedRun(prepared, sd, split, state, digest).to_sample(),
        )  # fmt: skip
    last_step, saving = max(terms.steps for terms in prepared.terms), config.checkpoint
    with CheckpointStore(run.checkpoints, keep=saving.keep, fingerprint=fingerprint(prepared, digest)) as store:
        with goodput.during(CHECKPOINT):
            restored = store.restore_newest(abstract(state, prepared.mesh))
        if restored is not None:
            state = restored[1]
            log.info("going on from step %d", int(state.step))
            if int(state.step) < last_step and not all_ended(state, prepared.learning):
                run.set_aside_results()
        state = train(
            LoopConfig(last_step, config.train.log_every_steps, saving.save_every_steps, step_file),
            state, step, stream.device_batch, store, run.path, prepared.names[: prepared.learning],
            config.optimizer.schedule(config.train.steps), watch, goodput, probe, previews,
        )  # fmt: skip
    # The optimiser's part is two thirds of a full-weight method's state, and of no use any more.
    return TrainedRun(prepared, sd, split, replace(state, opt_state=()), digest)


def make_stream(prepared: Prepared, sd: StableDiffusion, digest: str) -> BatchStream:
    """Draws missing prior pictures, encodes everything once, and gives the batches."""
    config, mesh = prepared.config, prepared.mesh
    augmentation = config.method.size_augmented_views
    instance = prepared.views(prepared.instance_images(), prepared.seeds, augmentation)
    held_out = prepared.held_out_images()
    held_out = None if held_out is None else prepared.views(held_out, prepared.seeds, augmentation)
    if not prepared.uses_prior:
        prior = None
    elif config.prior.by_prediction:
        prior = prepared.views(class_captioned(prepared), prepared.seeds, augmentation)
    else:
        # Cut by the seed that they were drawn with: subjects of one class share them.
        prior = prepared.views(prior_images(prepared, sd, digest), [config.prior.seed] * len(prepared.subjects))
    collages = prepared.views([draw_collages(prepared)], [config.train.seed]) if config.train.collage_share else None
    options = {"mesh": mesh, "vae_digest": component_digest(prepared.base / "vae")}
    # The pictures of all subjects go through the VAE together; each finds its own in the cache.
    encode_moments(sd, [*instance, *(prior or ()), *(collages or ()), *(held_out or ())], **options)
    of_views = cache(partial(encode_examples, sd, trains_text_encoder=config.method.trains_text_encoder, **options))

    def of_models(views: list[PictureViews]) -> list[Examples]:
        models = enumerate(prepared.by_model(views))
        return [joined([of_views(part, new_tokens=prepared.new_tokens(i)) for part in parts]) for i, parts in models]

    return BatchStream(
        instance=of_models(instance),
        prior=None if prior is None else of_models(prior),
        batch_size=config.train.batch_size,
        prior_weight=config.prior.loss_weight,
        seed=config.train.seed,
        mesh=mesh,
        caption_dropout=config.data.caption_dropout,
        identities=[(terms.seed, terms.number) for terms in prepared.terms],
        collages=None if collages is None else of_models(collages),
        collage_share=config.train.collage_share,
        held_out=None if held_out is None else of_models(held_out),
    )


def draw_collages(prepared: Prepared) -> list[CaptionedImage]:
    """Pictures of two subjects side by side, for subjects that are learned together."""
    phrases = [render("{token} {class_noun}", s.token, s.class_noun) for s in prepared.config.subjects]
    options = (COLLAGES, prepared.resolution, prepared.config.train.seed)
    return collage_images(prepared.instance_images(), phrases, *options)


def class_captioned(prepared: Prepared) -> list[tuple[CaptionedImage, ...]]:
    """Each subject's own pictures under the class prompt: the rows of a prior by prediction."""
    return [
        tuple(replace(image, caption=prepared.prior_prompt(subject), more_captions=()) for image in images)
        for subject, images in zip(prepared.subjects, prepared.instance_images(), strict=True)
    ]


def prior_images(prepared: Prepared, sd: StableDiffusion, digest: str) -> list[tuple[CaptionedImage, ...]]:
    """Each subject's class pictures with the class prompt as caption; missing ones are drawn first, once a class."""

    @cache
    def of_class(prompt: str) -> tuple[CaptionedImage, ...]:
        paths = ensure_prior(sd, prepared.config.prior, prompt, digest, prepared.resolution, prepared.mesh)
        return tuple(CaptionedImage(path, prompt, path.name) for path in paths)

    return [of_class(prepared.prior_prompt(subject)) for subject in prepared.subjects]


class CompiledSteps:
    """What is compiled to train by one configuration: runs whose subjects alone differ share the programs."""

    def __init__(self):
        self._known: dict[tuple, Callable] = {}

    def step(self, prepared: Prepared, split: Split, state: TrainState) -> Callable:
        """The jitted `(state, batch) -> (state, metrics)`."""
        config = prepared.config
        step = self._once(
            make_train_step, prepared, split, state, optimizer(config), prepared.objective, prepared.mesh, state,
            accumulation=config.train.gradient_accumulation_steps, ema_decay=config.train.ema_decay,
            reduce_dtype=config.train.reduce_dtype,
        )  # fmt: skip
        pack = pack_arrays(prepared.terms, prepared.mesh)
        return lambda state, batch: step(state, split.base, batch, pack)

    def watch_fixed_rows(
        self, prepared: Prepared, split: Split, state: TrainState, stream: BatchStream
    ) -> EarlyStop | None:
        """Early stopping by the rows of the first step, if it is configured."""
        config, mesh = prepared.config, prepared.mesh
        if config.train.early_stop is None:
            return None
        program = self._once(fixed_loss_program, prepared, split, state, prepared.objective, mesh, state)
        fixed_loss = bind_fixed_loss(program, split.base, stream.device_batch(0), pack_arrays(prepared.terms, mesh))
        return EarlyStop(config.train.early_stop, fixed_loss, prepared.run.path / "fixed_loss.jsonl", prepared.learning)

    def probe(self, prepared: Prepared, split: Split, state: TrainState, stream: BatchStream) -> Probe | None:
        """The probe, if it is configured; as many rows at a time as a step has in one of its parts."""
        config, mesh = prepared.config, prepared.mesh
        if config.train.probe is None:
            return None
        program = self._once(probe_program, prepared, split, state, prepared.objective, mesh, state)
        levels = config.train.probe.levels(prepared.objective.schedule.num_train_timesteps)
        size = stream.rows // config.train.gradient_accumulation_steps
        rows, pack = FixedRows(stream, config.train.probe.rows, levels, size), pack_arrays(prepared.terms, mesh)
        measure = bind_probe(program, split.base, rows, pack, config.prior.loss_weight)
        names = prepared.names[: prepared.learning]
        return Probe(config.train.probe, measure, prepared.run.path / "probe.jsonl", names)

    def _once(self, build: Callable, prepared: Prepared, split: Split, state: TrainState, *arguments, **options):
        leaves, structure = jax.tree.flatten((state, split.base))
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        key = (build, split.graphdef, prepared.mesh, structure, *shapes)
        if key not in self._known:
            # Without the base's arrays, which would be kept alive.
            self._known[key] = build(prepared.config.method, Split(split.graphdef, {}), *arguments, **options)
        return self._known[key]


def draw_prior(config: Config) -> list[Path]:
    """Only the prior pictures of a configuration, e.g. ahead of training; returns their paths."""
    prepared = prepare(config)
    if not prepared.uses_prior or config.prior.by_prediction:
        raise ConfigError("this configuration uses no prior pictures (prior.loss_weight is 0, or there is no subject)")
    sd = load_base(config, prepared.base, prepared.mesh)
    images = prior_images(prepared, sd, base_digest(prepared.base))
    return [image.source for subject in images for image in subject]
