"""The step that a configuration asks for, in shapes alone: its base needs config files and no weights."""

from pathlib import Path

from jaxbooth import families
from jaxbooth.config import Config
from jaxbooth.errors import ConversionError
from jaxbooth.families import COMPONENT_CLASSES, ModelFamily
from jaxbooth.pipeline import latent_shape
from jaxbooth.planning.full_size import FULL_SIZE, REPOSITORIES, full_size_family
from jaxbooth.planning.step import StepRecipe
from jaxbooth.prepare import make_objective
from jaxbooth.trained import optimizer
from jaxbooth.weights.hub import HUB_ID, resolve

CONFIGS = ["model_index.json", "*/config.json", "scheduler/scheduler_config.json"]


def step_recipe(config: Config) -> StepRecipe:
    """The step of a configuration's run, or of its packs.

    The base's weights are not looked at, and not downloaded: its config.json files are read, or it is one of `sd15`,
    `sd21` and `sdxl`.

    Raises:
        ConversionError: The base is not there, or no Stable Diffusion.
        ConfigError: The base cannot draw pictures of that size.
    """
    family = _family(config)
    resolution = config.data.resolution or family.resolution
    latent_shape(family, resolution, resolution)  # raises
    prior = bool(config.subjects) and config.prior.loss_weight > 0
    return StepRecipe(
        family=family,
        method=config.method,
        optimizer=optimizer(config),
        objective=make_objective(config, family),
        rows=config.train.batch_size * (2 if prior else 1),
        resolution=resolution,
        dtype=config.base.dtype,
        remat=config.base.remat,
        accumulation=config.train.gradient_accumulation_steps,
        reduce_dtype=config.train.reduce_dtype,
        ema_decay=config.train.ema_decay,
        masked=config.data.mask != "none",
    )


def _family(config: Config) -> ModelFamily:
    path = config.base.path
    if path in FULL_SIZE or path in REPOSITORIES:
        return full_size_family(REPOSITORIES.get(path, path))
    local = path == "pocket" or Path(path).expanduser().exists() or not HUB_ID.fullmatch(path)
    folder = resolve(path) if local else _configs_of(path, config.base.revision)
    files = {part: folder / part / "config.json" for part in COMPONENT_CLASSES if (folder / part).is_dir()}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    index = folder / "model_index.json"
    if not all(file.is_file() for file in (index, *files.values())):
        return families.from_diffusers(folder)  # says what is missing
    # Unlike `from_diffusers` it needs no tokenizer: words do not change the program of the step.
    texts = {part: file.read_text() for part, file in files.items()}
    return families.build_family(index.read_text(), texts, folder=str(folder.absolute()))


def _configs_of(repository: str, revision: str | None) -> Path:
    """A hub repository's config files alone, some kilobytes."""
    import huggingface_hub  # heavy, and not needed for local folders

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=CONFIGS))
    except Exception as error:  # the hub client raises many kinds: offline, gated, absent
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(
            f"base {repository}: the hub gave no config files ({reason}). Give a folder with model_index.json and each "
            f"part's config.json, or one of {', '.join(FULL_SIZE)}."
        ) from error
