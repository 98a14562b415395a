"""Model families: everything that differs between SD 1.x, SD 2.x and SDXL and is not a weight.

All sizes come from the JSON files of a diffusers folder. A value that this package does not implement is refused by
name, never ignored: a picture that is quietly a little wrong costs more than an error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxbooth.errors import ConversionError, list_problems
from jaxbooth.families.components import check_fit, clip_config, either, unet_config, vae_config
from jaxbooth.families.tiny import tiny_files
from jaxbooth.nn.clip_text import CLIPTextConfig
from jaxbooth.nn.unet import UNetConfig
from jaxbooth.nn.vae import VAEConfig

Json = dict[str, Any]

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
PREDICTION_TYPES = ("epsilon", "v_prediction")
COMPONENT_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


@dataclass(frozen=True)
class NewToken:
    """A word that the vocabulary has not: its `vectors` stand for the subject."""

    token: str
    vectors: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The token of each vector, spelt as diffusers spells them: `<dog>`, `<dog>_1`, `<dog>_2`."""
        return (self.token, *(f"{self.token}_{number}" for number in range(1, self.vectors)))


@dataclass(frozen=True)
class ModelFamily:
    """What a checkpoint is, apart from its weights; hashable, so that it can be static under `jax.jit`.

    Attributes:
        name: which family.
        pipeline_class: the class named in model_index.json.
        unet: sizes of the UNet.
        vae: sizes of the VAE.
        text_encoders: sizes of one text encoder, or of SDXL's two.
        text_states: which hidden state the UNet reads.
        size_conditioning: whether the UNet reads pooled text and picture sizes.
        prediction_type: what the UNet predicts, from the scheduler's file.
        force_zeros_for_empty_prompt: SDXL: without a negative prompt, guidance starts from zeros instead of an
            encoded empty prompt.
        model_index: text of model_index.json as read.
        scheduler_config: text of scheduler/scheduler_config.json as read.
        component_configs: for each of `component_names`, the text of its config.json as read.
        folder: where all this was read, tokenizer files included; empty for a tiny twin.
        new_tokens: words that a method has added to those of the folder's tokenizers.
    """

    name: Literal["sd1", "sd2", "sdxl"]
    pipeline_class: str
    unet: UNetConfig
    vae: VAEConfig
    text_encoders: tuple[CLIPTextConfig, ...]
    text_states: Literal["last", "penultimate"]
    size_conditioning: bool
    prediction_type: Literal["epsilon", "v_prediction"]
    force_zeros_for_empty_prompt: bool
    model_index: str
    scheduler_config: str
    component_configs: tuple[str, ...]
    folder: str = ""
    new_tokens: tuple[NewToken, ...] = ()

    @property
    def resolution(self) -> int:
        """The side, in pixels, of the pictures that the checkpoint was made for."""
        return self.unet.sample_size * self.vae.downscale

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """Folders of the text encoders, in the order of `text_encoders`."""
        return ("text_encoder", "text_encoder_2")[: len(self.text_encoders)]

    @property
    def tokenizer_names(self) -> tuple[str, ...]:
        """Folders of the tokenizers, one per text encoder."""
        return ("tokenizer", "tokenizer_2")[: len(self.text_encoders)]

    @property
    def component_names(self) -> tuple[str, ...]:
        """Folders that hold weights; the order of `component_configs`."""
        return ("unet", "vae", *self.text_encoder_names)


def from_diffusers(folder: str | Path) -> ModelFamily:
    """Reads the configuration of a diffusers pipeline folder, without its weights.

    Args:
        folder: a folder with model_index.json and one sub-folder per component.

    Raises:
        ConversionError: the folder is no Stable Diffusion pipeline, or has configuration values that this package
            does not implement; all of them are listed.
    """
    folder = Path(folder)
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) if folder.is_dir() else "no such folder"
        raise ConversionError(
            f"{folder} is not a diffusers pipeline: it has no model_index.json (found: {found or 'nothing'}). "
            "Give the folder that diffusers' save_pretrained wrote for a whole pipeline."
        )
    index_text = _read(index_file)
    names = _component_names(_parse(index_text, str(index_file)), str(folder))
    files = {name: folder / name / "config.json" for name in names}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    missing = [f"{path.relative_to(folder)} is missing" for path in files.values() if not path.is_file()]
    missing += [
        f"{name}/vocab.json and {name}/merges.txt (or {name}/tokenizer.json) are missing"
        for name in ("tokenizer", "tokenizer_2")[: len(names) - 2]
        if not _has_tokenizer(folder / name)
    ]
    if missing:
        raise ConversionError(list_problems(f"{folder} is not complete:", missing, "Download the pipeline again."))
    return build_family(index_text, {name: _read(path) for name, path in files.items()}, folder=str(folder.absolute()))


def build_family(model_index: str, texts: Mapping[str, str], *, folder: str = "") -> ModelFamily:
    """Builds a family from the texts of its JSON files.

    Args:
        model_index: text of model_index.json.
        texts: text of each component's config.json, and of the scheduler's file under "scheduler".
        folder: where they were read; goes into messages and into the family.

    Raises:
        ConversionError: as `from_diffusers`.
    """
    where = folder or "the model"
    index = _parse(model_index, f"{where}/model_index.json")
    names = _component_names(index, where)
    configs = {name: _parse(text, f"the configuration of {where}/{name}") for name, text in texts.items()}
    problems: list[str] = []
    unet = unet_config(configs["unet"], problems)
    vae = vae_config(configs["vae"], problems)
    encoders = tuple(clip_config(name, configs[name], problems) for name in names[2:])
    prediction_type = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        problems.append(f"scheduler: prediction_type is {prediction_type!r}; implemented: {either(PREDICTION_TYPES)}")
    if not problems:
        check_fit(unet, vae, encoders, problems)
    if problems:
        heading = f"{where} has configuration values that jaxbooth does not implement:"
        advice = "Stable Diffusion 1.x, 2.x and XL in the layout of diffusers are supported; use such a model."
        raise ConversionError(list_problems(heading, problems, advice))
    is_xl = len(encoders) == 2
    return ModelFamily(
        name="sdxl" if is_xl else "sd2" if unet.use_linear_projection else "sd1",
        pipeline_class=index["_class_name"],
        unet=unet,
        vae=vae,
        text_encoders=encoders,
        text_states="penultimate" if is_xl else "last",
        size_conditioning=is_xl,
        prediction_type=prediction_type,
        force_zeros_for_empty_prompt=is_xl and bool(index.get("force_zeros_for_empty_prompt", True)),
        model_index=model_index,
        scheduler_config=texts["scheduler"],
        component_configs=tuple(texts[name] for name in names),
        folder=folder,
    )


def with_new_tokens(family: ModelFamily) -> ModelFamily:
    """The family of a model whose token tables have grown by its `new_tokens`; itself if there are none.

    The end of text gets its true id: files of old write 2, and readers then take the largest id of a prompt, which
    would be the new token's.
    """
    count = sum(len(token.names) for token in family.new_tokens)
    if not count:
        return family
    encoders, texts = [], list(family.component_configs[:2])
    for config, text in zip(family.text_encoders, family.component_configs[2:], strict=True):
        grown = {"vocab_size": config.vocab_size + count}
        grown["eos_token_id"] = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
        encoders.append(replace(config, **grown))
        texts.append(json.dumps(json.loads(text) | grown, indent=2) + "\n")
    return replace(family, text_encoders=tuple(encoders), component_configs=tuple(texts))


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{file} cannot be read ({error}). Download it again.") from error


def _parse(text: str, where: str) -> Json:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConversionError(f"{where} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(parsed, dict):
        raise ConversionError(f"{where} holds no JSON object. Download it again.")
    return parsed


def _component_names(index: Json, where: str) -> tuple[str, ...]:
    """Checks that the index is that of a text-to-image Stable Diffusion and names its components."""
    pipeline = index.get("_class_name", "pipeline without a class name")
    if pipeline not in PIPELINES:
        raise ConversionError(f"{where} is a {pipeline}; jaxbooth reads {' and '.join(PIPELINES)} only.")
    found = {name: _class_of(index, name) for name in COMPONENT_CLASSES}
    is_xl = found["text_encoder_2"] is not None
    names = ("unet", "vae", "text_encoder", "text_encoder_2")[: 3 + is_xl]
    problems = [
        f"{name} is {found[name] or 'absent'}; implemented: {COMPONENT_CLASSES[name]}"
        for name in names
        if found[name] != COMPONENT_CLASSES[name]
    ]
    if is_xl != (pipeline == "StableDiffusionXLPipeline"):
        problems.append(f"it is a {pipeline} {'with' if is_xl else 'without'} a second text encoder")
    if index.get("requires_aesthetics_score"):
        problems.append("requires_aesthetics_score is true: this is SDXL's refiner; use the base model")
    if problems:
        raise ConversionError(list_problems(f"{where}/model_index.json has parts that jaxbooth cannot use:", problems))
    return names


def _class_of(index: Json, name: str) -> str | None:
    """Class of a component: an index has `"unet": ["diffusers", "UNet2DConditionModel"]`, or nulls where absent."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def tiny_family(name: Literal["sd1", "sd2", "sdxl"]) -> ModelFamily:
    """A family with every feature of its full-size sister in about a hundred thousand weights, for tests."""
    return build_family(*tiny_files(name))
