"""Everything that can be known about a run before any compute: read, checked, all problems told at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxbooth import families
from jaxbooth.config import Config
from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.datasets import load_captioned
from jaxbooth.data.held_out import HeldOut, check_held_out, hold_out
from jaxbooth.data.new_tokens import check_new_tokens, new_tokens, stacked, subject_text
from jaxbooth.data.picture_views import PictureViews
from jaxbooth.data.prior import check_own_images
from jaxbooth.data.prompts import CLASS_TEMPLATE, render, render_all
from jaxbooth.data.subjects import Subject, SubjectConfig, load_subject
from jaxbooth.diffusion.loss import Objective
from jaxbooth.diffusion.sample import SAMPLERS
from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.errors import ConfigError, JaxboothError, MethodError
from jaxbooth.families import ModelFamily, NewToken
from jaxbooth.nn.key_locked import TextMetric
from jaxbooth.pipeline import build, latent_shape, schedule_of, tokenizers
from jaxbooth.run_folder import RunFolder
from jaxbooth.sharding import MeshConfig, check_rows, make_mesh
from jaxbooth.training.pack import Terms, alike
from jaxbooth.training.state import flatten, split_attached, trainable_tree
from jaxbooth.types import SubjectText
from jaxbooth.weights.hub import resolve
from jaxbooth.weights.load import check_weight_files


@dataclass(frozen=True)
class Prepared:
    """A run whose inputs are all there."""

    config: Config
    run: RunFolder
    mesh: Mesh
    base: Path
    family: ModelFamily
    subjects: tuple[Subject, ...]
    dataset: Any  # sequence of CaptionedImage, or None
    resolution: int
    objective: Objective
    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    own_terms: tuple[Terms, ...] = ()  # of each subject of a pack

    @property
    def groups(self) -> list[tuple[SubjectConfig, ...]]:
        """Subjects of each model on the subject axis: one each, or all in one; none for a data set."""
        subjects = self.config.subjects
        return [subjects] if self.config.train.joint or not subjects else [(subject,) for subject in subjects]

    @property
    def names(self) -> list[str]:
        """What the subject axis holds."""
        return ["+".join(subject.name for subject in group) or "dataset" for group in self.groups]

    @property
    def learning(self) -> int:
        """How many models learn; those behind them only fill a pack up."""
        return sum(terms.steps > 0 for terms in self.terms)

    @property
    def terms(self) -> tuple[Terms, ...]:
        """Seed, steps and learning rate of each subject."""
        return self.own_terms or alike(len(self.names), self.config.train.seed, self.config.train.steps)

    def new_tokens(self, group: int = 0) -> tuple[NewToken, ...]:
        """The words that one model learns."""
        return new_tokens(self.config.method, self.groups[group])

    def texts(self) -> SubjectText | None:
        """Every model's words `[s, ...]`; None for methods without new tokens."""
        if not self.config.method.vectors_per_token:
            return None
        return stacked([subject_text(self.family, self.config.method, group) for group in self.groups])

    @property
    def uses_prior(self) -> bool:
        """Whether prior rows take part in the step."""
        return bool(self.subjects) and self.config.prior.loss_weight > 0

    @property
    def rows(self) -> int:
        """Rows per subject and step."""
        return self.config.train.batch_size * (2 if self.uses_prior else 1)

    def prior_prompt(self, subject: Subject) -> str:
        """The class prompt of a subject."""
        return render(self.config.prior.prompt or CLASS_TEMPLATE, None, subject.class_noun)

    def instance_images(self) -> list[Sequence[CaptionedImage]]:
        """Captioned pictures of each subject, or of the data set, without those that are held out."""
        return [part.training for part in self._parts]

    def held_out_images(self) -> list[Sequence[CaptionedImage]] | None:
        """Those of each that the probe alone looks at; None if none are held out."""
        return [part.held_out for part in self._parts] if held_out(self.config) else None

    @property
    def _parts(self) -> list[HeldOut]:
        images = [subject.images for subject in self.subjects] or [self.dataset]
        return [hold_out(each, held_out(self.config)) for each in images]

    def views(
        self, images: list[Sequence[CaptionedImage]], seeds: Sequence[int], size_augmentation: int = 0
    ) -> list[PictureViews]:
        """Each subject's (or the data set's) pictures as they will be cut, by a seed for each."""
        factor = self.family.vae.downscale
        return [
            PictureViews(part, self.config.data, self.resolution, seed, factor, size_augmentation)
            for part, seed in zip(images, seeds, strict=True)
        ]

    @property
    def seeds(self) -> list[int]:
        """The seed of each subject (or of the data set), whether they share a model or not."""
        return [terms.seed for terms in self.terms] * (len(self.subjects) if self.config.train.joint else 1)

    def by_model(self, items: list) -> list[list]:
        """Items that there is one of for each subject (or the data set), gathered for each model."""
        return [items] if self.config.train.joint else [[item] for item in items]


class Problems:
    """Collects errors of independent checks."""

    def __init__(self):
        self.errors: list[JaxboothError] = []

    def run(self, check: Callable, *args):
        """The check's result, or None if it failed."""
        try:
            return check(*args)
        except JaxboothError as error:
            self.errors.append(error)
            return None

    def raise_all(self) -> None:
        """Raises one error that says all."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise type(self.errors[0])("\n".join(str(error) for error in self.errors))


def prepare(
    config: Config,
    devices: list[jax.Device] | None = None,
    subjects: Sequence[Subject] | None = None,
    terms: tuple[Terms, ...] = (),
) -> Prepared:
    """Reads and checks base, pictures, prompts, mesh and run folder.

    Args:
        config: What is to be run.
        devices: Those of the mesh; default: all.
        subjects: The configuration's subjects, if they were loaded already.
        terms: Of each subject, for a pack of subjects that are learned side by side.

    Raises:
        JaxboothError: every problem found, in one message; nothing was written.
    """
    problems, run = Problems(), RunFolder(Path(config.run_dir))
    problems.run(run.check, config)
    problems.run(run.check_writable)
    templates = config.method.caption_templates
    if subjects is None:
        subjects = [problems.run(load_subject, s, Path(), templates, config.data.mask) for s in config.subjects]
    dataset = problems.run(load_captioned, config.dataset) if config.dataset is not None else None
    named = [(subject.name, subject.images) for subject in subjects if subject is not None]
    named += [("dataset", dataset)] if dataset is not None else []
    for name, images in named:
        problems.run(check_held_out, name, images, held_out(config))
    mesh = problems.run(make_mesh, config.mesh, devices)
    commit = config.base.revision or problems.run(run.recorded_commit)
    base = problems.run(resolve, config.base.path, commit)
    family = problems.run(families.from_diffusers, base) if base is not None else None
    if family is not None:
        problems.run(check_weight_files, family, base)
        if problems.run(tokenizers, family.folder, len(family.text_encoders)) is not None:
            # Subjects of a pack have a vocabulary each, those that are learned together share one.
            for group in [config.subjects] if config.train.joint else [(subject,) for subject in config.subjects]:
                problems.run(check_new_tokens, family, config.method, group)
    objective = problems.run(make_objective, config, family) if family is not None else None
    if objective is not None:
        problems.run(_check_sampling, config, objective.schedule)
    if config.subjects and config.prior.loss_weight > 0:
        problems.run(check_own_images, config.prior)
        problems.run(render, config.prior.prompt or CLASS_TEMPLATE, None, "")
    resolution = problems.run(_resolution, config, family) if family is not None else None
    prompts = problems.run(_prompts, config, config.sample.prompts, config.method.class_noun_in_prompts)
    class_prompts = problems.run(_prompts, config, config.sample.class_prompts)
    if mesh is not None:
        rows = config.train.batch_size * (2 if config.subjects and config.prior.loss_weight > 0 else 1)
        accumulation = config.train.gradient_accumulation_steps
        models = 1 if config.train.joint else max(1, len(config.subjects))
        problems.run(check_rows, mesh, models, rows, accumulation)
    if len(config.subjects) > 1 and not config.train.joint and not terms:
        problems.run(_check_subject_count, config)
    problems.raise_all()
    prepared = Prepared(
        config, run, mesh, base, family, tuple(subjects), dataset, resolution, objective, prompts, class_prompts, terms
    )
    prepared.texts()  # an initialiser may be unknown to the tokenizer
    parameter_table(prepared)  # a target may match nothing
    return prepared


def reopen(config: Config) -> Prepared:
    """A run that was trained before, to draw with or to export: without its pictures, on one device.

    Raises:
        JaxboothError: the base is not there any more.
    """
    base = resolve(config.base.path, config.base.revision or RunFolder(Path(config.run_dir)).recorded_commit())
    family = families.from_diffusers(base)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    objective, resolution = make_objective(config, family), _resolution(config, family)
    return Prepared(
        config, RunFolder(Path(config.run_dir)), mesh, base, family, (), None, resolution, objective, (), ()
    )


def held_out(config: Config) -> int:
    """How many pictures of each subject are probed only."""
    return 0 if config.train.probe is None else config.train.probe.held_out


def make_objective(config: Config, family: ModelFamily) -> Objective:
    """The loss of a run: schedule and prediction type from the checkpoint, options from the configuration."""
    return Objective(
        schedule=schedule_of(family),
        snr_gamma=config.train.snr_gamma,
        noise_offset=config.train.noise_offset,
        scaling_factor=family.vae.scaling_factor,
        prior_by_prediction=bool(config.subjects) and config.prior.loss_weight > 0 and config.prior.by_prediction,
    )


def _resolution(config: Config, family: ModelFamily) -> int:
    resolution = config.data.resolution or family.resolution
    latent_shape(family, resolution, resolution)
    return resolution


def _prompts(config: Config, templates: tuple[str, ...], class_noun: bool = True) -> tuple[str, ...]:
    if not config.subjects:  # a data set has no token; its prompts are plain text
        return tuple(template for template in templates if "{" not in template)
    subject = config.subjects[0]
    return tuple(render_all(templates, subject.token, subject.class_noun if class_noun else ""))


def _check_sampling(config: Config, schedule: NoiseSchedule) -> None:
    """Walks through both samplers without computing: their names, and numbers of steps that the schedule has not."""
    problems = []
    for name, part in (("sample", config.sample), ("prior", config.prior)):
        if part.sampler not in SAMPLERS:
            problems.append(f"{name}.sampler {part.sampler} is not known. Samplers: {', '.join(SAMPLERS)}")
            continue
        walk = partial(SAMPLERS[part.sampler], lambda latents, timesteps: latents, schedule, num_steps=part.num_steps)
        try:
            jax.eval_shape(lambda walk=walk: walk(noise=jnp.zeros((1, 1, 1, 1)), keys=jax.random.key(0)[None]))
        except ConfigError as error:
            problems.append(f"{name}.{error}")  # which begins with num_steps
    if problems:
        raise ConfigError("\n".join(problems))


def _check_subject_count(config: Config) -> None:
    raise MethodError(
        f"{len(config.subjects)} subjects are given, and a run learns one. Run it once for each (subjects.0.name=... "
        "run_dir=...), `jaxbooth fleet run` for many, or set train.joint=true to learn all of them in one model."
    )


def parameter_table(prepared: Prepared) -> tuple[dict[str, tuple[int, ...]], int, int]:
    """Shapes of what trains, and how many parameters are frozen inside the step and outside it (VAE, cached text)."""
    config = prepared.config
    sd = nnx.eval_shape(lambda: build(prepared.family, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(sd)))
    if config.method.type == "perfusion":
        width = prepared.family.unet.cross_attention_dim
        sd.concepts = nnx.data(nnx.eval_shape(lambda: TextMetric(jnp.zeros((width, width)))))
    plain = {name: leaf.size for name, leaf in flatten(nnx.state(trainable_tree(config.method, sd))).items()}
    graphdef, state = nnx.split(trainable_tree(config.method, sd))
    texts = prepared.texts()

    def attach(state, text):
        return split_attached(config.method, nnx.merge(graphdef, state), jax.random.key(0), text)[1]

    trained = jax.eval_shape(attach, state, jax.tree.map(lambda x: x[0], texts))
    if not trained:
        raise MethodError(f"method {config.method.type} finds nothing to train in {prepared.family.name}")
    inside = sum(size for name, size in plain.items() if name not in trained)
    outside = total - sum(plain.values())
    return {name: leaf.shape for name, leaf in trained.items()}, inside, outside
