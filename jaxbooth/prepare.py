"""Everything that can be known about a run before any compute: read, checked, all problems told at once."""

from collections.abc import Callable
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
from jaxbooth.data.prior import check_own_images
from jaxbooth.data.prompts import CLASS_TEMPLATE, render, render_all
from jaxbooth.data.subjects import Subject, load_subject
from jaxbooth.diffusion.loss import Objective
from jaxbooth.diffusion.sample import SAMPLERS
from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.errors import ConfigError, JaxboothError, MethodError
from jaxbooth.families import ModelFamily
from jaxbooth.pipeline import build, latent_shape, schedule_of, tokenizers
from jaxbooth.run_folder import RunFolder
from jaxbooth.sharding import check_rows, make_mesh
from jaxbooth.training.state import flatten, trainable_tree
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

    @property
    def names(self) -> list[str]:
        """What the subject axis holds."""
        return [subject.name for subject in self.subjects] or ["dataset"]

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

    def instance_images(self) -> list[list[CaptionedImage]]:
        """Captioned pictures of each subject, or of the data set."""
        return [list(subject.images) for subject in self.subjects] or [self.dataset]


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


def prepare(config: Config, devices: list[jax.Device] | None = None) -> Prepared:
    """Reads and checks base, pictures, prompts, mesh and run folder; `devices` are those of the mesh, default all.

    Raises:
        JaxboothError: every problem found, in one message; nothing was written.
    """
    problems, run = Problems(), RunFolder(Path(config.run_dir))
    problems.run(run.check, config)
    problems.run(run.check_writable)
    subjects = [problems.run(load_subject, subject) for subject in config.subjects]
    dataset = problems.run(load_captioned, config.dataset) if config.dataset is not None else None
    mesh = problems.run(make_mesh, config.mesh, devices)
    commit = config.base.revision or problems.run(run.recorded_commit)
    base = problems.run(resolve, config.base.path, commit)
    family = problems.run(families.from_diffusers, base) if base is not None else None
    if family is not None:
        problems.run(check_weight_files, family, base)
        problems.run(tokenizers, family.folder, len(family.text_encoders))
    objective = problems.run(make_objective, config, family) if family is not None else None
    if objective is not None:
        problems.run(_check_sampling, config, objective.schedule)
    if config.subjects and config.prior.loss_weight > 0:
        problems.run(check_own_images, config.prior)
        problems.run(render, config.prior.prompt or CLASS_TEMPLATE, None, "")
    resolution = problems.run(_resolution, config, family) if family is not None else None
    prompts = problems.run(_prompts, config, config.sample.prompts)
    class_prompts = problems.run(_prompts, config, config.sample.class_prompts)
    if mesh is not None:
        rows = config.train.batch_size * (2 if config.subjects and config.prior.loss_weight > 0 else 1)
        accumulation = config.train.gradient_accumulation_steps
        problems.run(check_rows, mesh, max(1, len(config.subjects)), rows, accumulation)
    if len(config.subjects) > 1:
        problems.run(_check_subject_count, config)
    problems.raise_all()
    return Prepared(
        config, run, mesh, base, family, tuple(subjects), dataset, resolution, objective, prompts, class_prompts
    )


def make_objective(config: Config, family: ModelFamily) -> Objective:
    """The loss of a run: schedule and prediction type from the checkpoint, options from the configuration."""
    return Objective(
        schedule=schedule_of(family),
        snr_gamma=config.train.snr_gamma,
        noise_offset=config.train.noise_offset,
        scaling_factor=family.vae.scaling_factor,
    )


def _resolution(config: Config, family: ModelFamily) -> int:
    factor = 2 ** (len(family.vae.block_out_channels) - 1)
    resolution = config.data.resolution or family.unet.sample_size * factor
    latent_shape(family, resolution, resolution)
    return resolution


def _prompts(config: Config, templates: tuple[str, ...]) -> tuple[str, ...]:
    if not config.subjects:  # a data set has no token; its prompts are plain text
        return tuple(template for template in templates if "{" not in template)
    return tuple(render_all(templates, config.subjects[0].token, config.subjects[0].class_noun))


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
        f"method {config.method.type} trains all of the model's weights, one model for each subject, and takes one "
        f"subject a run; {len(config.subjects)} are given. Run it once for each (subjects.0.name=... run_dir=...)."
    )


def parameter_table(prepared: Prepared) -> tuple[dict[str, tuple[int, ...]], int, int]:
    """Shapes of what trains, and how many parameters are frozen inside the step and outside it (VAE, cached text)."""
    config = prepared.config
    sd = nnx.eval_shape(lambda: build(prepared.family, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(sd)))
    tree = trainable_tree(config.method, sd)
    _, trained, frozen = nnx.split(tree, config.method.is_trainable, ...)
    shapes = {name: leaf.shape for name, leaf in flatten(trained).items()}
    inside = sum(leaf.size for leaf in jax.tree.leaves(frozen))
    return shapes, inside, total - inside - sum(leaf.size for leaf in jax.tree.leaves(trained))
