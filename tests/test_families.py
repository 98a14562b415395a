"""Families from folders: what is read, what old files leave out, and everything that is refused, by name."""

import functools
import inspect
import json

import pytest

from jaxbooth.errors import ConversionError
from jaxbooth.families import build_family, from_diffusers, tiny_family
from jaxbooth.families.components import CLIP_FIXED, UNET_FIXED, VAE_FIXED, clip_config, unet_config, vae_config
from jaxbooth.families.tiny import tiny_files
from jaxbooth.nn.clip_text import CLIPTextConfig
from jaxbooth.nn.unet import UNetConfig
from jaxbooth.nn.vae import VAEConfig

NAMES = ("sd1", "sd2", "sdxl")


def write(folder, name, **changes):
    """A tiny twin's JSON files below `folder`, with `component={key: value}` changed; a value of ... drops the key."""
    index, texts = tiny_files(name)
    files = {part: json.loads(text) for part, text in texts.items()} | {"model_index": json.loads(index)}
    for part, values in changes.items():
        merged = files[part] | values
        files[part] = {key: value for key, value in merged.items() if value is not ...}
    for part, config in files.items():
        file = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(part)
        path = folder / (file or f"{part}/config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    for part in ("tokenizer", "tokenizer_2")[: len(texts) - 3]:
        (folder / part).mkdir()
        for file in ("vocab.json", "merges.txt"):
            (folder / part / file).touch()
    return folder


def refusal(folder):
    with pytest.raises(ConversionError) as caught:
        from_diffusers(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_the_same_family_as_its_texts(name, tmp_path):
    read = from_diffusers(write(tmp_path, name))
    tiny = tiny_family(name)
    assert (read.name, read.unet, read.vae, read.text_encoders) == (name, tiny.unet, tiny.vae, tiny.text_encoders)
    assert read.folder == str(tmp_path)


def test_families_differ_where_they_should():
    sd1, sd2, sdxl = map(tiny_family, NAMES)
    assert [f.prediction_type for f in (sd1, sd2, sdxl)] == ["epsilon", "v_prediction", "epsilon"]
    assert [f.text_states for f in (sd1, sd2, sdxl)] == ["last", "last", "penultimate"]
    assert [f.size_conditioning for f in (sd1, sd2, sdxl)] == [False, False, True]
    assert [f.force_zeros_for_empty_prompt for f in (sd1, sd2, sdxl)] == [False, False, True]
    assert sd1.component_names == ("unet", "vae", "text_encoder")
    assert sdxl.component_names == ("unet", "vae", "text_encoder", "text_encoder_2")
    assert sdxl.tokenizer_names == ("tokenizer", "tokenizer_2")
    assert [encoder.projection_dim for encoder in sdxl.text_encoders] == [None, 24]
    assert sd1.unet.num_attention_heads == (2, 2) and sd2.unet.num_attention_heads == (2, 4)


def test_a_family_is_hashable_and_keeps_the_texts_as_they_were_read(tmp_path):
    folder = write(tmp_path, "sdxl")
    family = from_diffusers(folder)
    assert hash(family) == hash(from_diffusers(folder)) and family == from_diffusers(folder)
    assert family.model_index == (folder / "model_index.json").read_text()
    assert family.scheduler_config == (folder / "scheduler/scheduler_config.json").read_text()
    for name, text in zip(family.component_names, family.component_configs, strict=True):
        assert text == (folder / name / "config.json").read_text()


def test_keys_that_old_files_lack_have_the_libraries_defaults():
    index, _ = tiny_files("sd1")
    bare = {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
        },
        "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "scheduler": {},
    }
    family = build_family(index, {name: json.dumps(config) for name, config in bare.items()})
    assert (family.name, family.prediction_type) == ("sd1", "epsilon")
    assert family.unet == UNetConfig() and family.vae == VAEConfig()
    assert family.text_encoders == (CLIPTextConfig(eos_token_id=49407),)


@pytest.mark.parametrize(("name", "latents"), [("sd1", 64), ("sdxl", 128)])
def test_a_unet_without_a_sample_size_draws_its_familys_usual_pictures(name, latents, tmp_path):
    assert from_diffusers(write(tmp_path, name, unet={"sample_size": None})).unet.sample_size == latents


def test_keys_that_no_library_knows_and_trainers_leave_behind_are_ignored(tmp_path):
    ema = {"decay": 0.9999, "optimization_step": 4000, "_name_or_path": "somewhere"}
    assert from_diffusers(write(tmp_path, "sd1", unet=ema)).unet == tiny_family("sd1").unet


UNIMPLEMENTED = [
    ("unet", "class_embed_type", "timestep"),
    ("unet", "num_class_embeds", 1000),
    ("unet", "dual_cross_attention", True),
    ("unet", "only_cross_attention", [True, False]),
    ("unet", "mid_block_only_cross_attention", True),
    ("unet", "time_cond_proj_dim", 256),
    ("unet", "resnet_time_scale_shift", "scale_shift"),
    ("unet", "act_fn", "gelu"),
    ("unet", "encoder_hid_dim", 768),
    ("unet", "addition_embed_type", "text"),
    ("unet", "center_input_sample", True),
    ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    ("unet", "mid_block_type", None),
    ("unet", "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
    ("unet", "up_block_types", ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]),
    ("unet", "reverse_transformer_layers_per_block", [[1], [2]]),
    ("unet", "transformer_layers_per_block", [[1, 1], [2, 2]]),
    ("unet", "cross_attention_dim", [32, 64]),
    ("unet", "norm_num_groups", None),
    ("unet", "norm_num_groups", 5),
    ("unet", "norm_eps", "1e-5"),
    ("unet", "attention_head_dim", 5),
    ("unet", "attention_head_dim", [2, 4, 8]),
    ("unet", "block_out_channels", 32),
    ("unet", "layers_per_block", [1, 1, 1]),
    ("unet", "use_linear_projection", "yes"),
    ("unet", "conv_in_kernel", 1),
    ("unet", "dropout", 0.1),
    ("unet", "time_embedding_type", "fourier"),
    ("unet", "attention_type", "gated"),
    ("vae", "latents_mean", [0.0, 0.0, 0.0, 0.0]),
    ("vae", "latents_std", [1.0, 1.0, 1.0, 1.0]),
    ("vae", "shift_factor", 0.1159),
    ("vae", "act_fn", "relu"),
    ("vae", "down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
    ("vae", "down_block_types", ...),  # then diffusers would make one level, whatever block_out_channels says
    ("vae", "up_block_types", ["UpDecoderBlock2D"] * 3),
    ("vae", "scaling_factor", None),
    ("vae", "norm_num_groups", 5),
    ("text_encoder", "hidden_act", "gelu_new"),
    ("text_encoder", "use_attention_mask", True),
    ("text_encoder", "num_attention_heads", 5),
    ("text_encoder", "eos_token_id", [49407]),
    ("scheduler", "prediction_type", "sample"),
]


@pytest.mark.parametrize(("component", "key", "value"), UNIMPLEMENTED)
def test_a_value_that_is_not_implemented_is_refused_by_name(component, key, value, tmp_path):
    message = refusal(write(tmp_path, "sd1", **{component: {key: value}}))
    problems = [line for line in message.splitlines() if line.startswith("  - ")]
    assert problems and all(line.startswith(f"  - {component}: ") and key in line for line in problems), message


FIXED = {"unet": UNET_FIXED, "vae": VAE_FIXED, "text_encoder": CLIP_FIXED}
READERS = {"unet": unet_config, "vae": vae_config, "text_encoder": functools.partial(clip_config, "text_encoder_2")}
HARMLESS = {
    "unet": {
        "upcast_attention",  # scores are fp32 in any case
        "addition_embed_type_num_heads",  # belongs to an addition_embed_type that is refused
    },
    "vae": {"force_upcast", "sample_size"},  # the VAE is fp32 in any case and takes pictures of any size
    "text_encoder": {"initializer_range", "initializer_factor", "pad_token_id", "bos_token_id"},
}


@pytest.mark.parametrize(("component", "key"), [(part, key) for part, table in FIXED.items() for key in table])
def test_every_key_with_fixed_values_refuses_any_other(component, key):
    index, texts = tiny_files("sd1")
    for value in ("another", 7, [7]):
        config = json.dumps(json.loads(texts[component]) | {key: value})
        with pytest.raises(ConversionError, match=f"- {component}: {key} is "):
            build_family(index, texts | {component: config})


@pytest.mark.parametrize("component", FIXED)
def test_every_key_that_the_libraries_know_is_read_or_fixed_at_their_default(component):
    theirs, config = library_defaults(component), Recorder()
    READERS[component](config, [])
    assert not theirs.keys() - config.defaults.keys() - HARMLESS[component]
    wrong = {key: default for key, default in config.defaults.items() if key in theirs and default != theirs[key]}
    # diffusers has none; its pipelines choose, as `test_a_unet_without_a_sample_size_...` shows.
    assert wrong == ({"sample_size": 128} if component == "unet" else {})


class Recorder(dict):
    """A file without keys, except that SDXL's are asked for; notes what is asked for and the default."""

    def __init__(self):
        super().__init__(addition_embed_type="text_time")
        self.defaults = {}

    def get(self, key, default=None):
        self.defaults.setdefault(key, tuple(default) if isinstance(default, list) else default)
        return super().get(key, default)


def library_defaults(component):
    """Each configuration key of diffusers' or transformers' class, with its default."""
    if component == "text_encoder":
        import transformers

        common = transformers.PretrainedConfig().to_dict()
        own = transformers.CLIPTextConfig().to_dict()
        return {key: value for key, value in own.items() if key not in common and key != "model_type"}
    import diffusers

    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[component]
    parameters = inspect.signature(kind.__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key != "self"}


def test_all_problems_are_listed_at_once(tmp_path):
    folder = write(
        tmp_path,
        "sdxl",
        unet={"act_fn": "mish", "class_embed_type": "identity"},
        vae={"shift_factor": 1},
        text_encoder_2={"hidden_act": "relu"},
        scheduler={"prediction_type": "flow_prediction"},
    )
    message = refusal(folder)
    for named in ("act_fn", "class_embed_type", "shift_factor", "text_encoder_2: hidden_act", "flow_prediction"):
        assert named in message
    assert str(folder) in message and message.count("  - ") == 5


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("sd1", {"unet": {"in_channels": 9}}, "inpainting"),
        ("sd1", {"unet": {"out_channels": 8}}, "out_channels 8"),
        ("sd1", {"unet": {"cross_attention_dim": 48}}, "cross_attention_dim 48"),
        ("sdxl", {"unet": {"addition_embed_type": None}}, "addition_embed_type"),
        ("sdxl", {"unet": {"projection_class_embeddings_input_dim": 70}}, "not 72"),
        ("sdxl", {"text_encoder_2": {"max_position_embeddings": 64}}, "max_position_embeddings"),
        ("sdxl", {"unet": {"addition_time_embed_dim": None}}, "addition_time_embed_dim"),
        (
            "sdxl",
            {"unet": {"addition_time_embed_dim": 9, "projection_class_embeddings_input_dim": 78}},
            "addition_time_embed_dim is 9; implemented: even",
        ),
    ],
)
def test_components_that_do_not_belong_together_are_refused(name, changes, named, tmp_path):
    assert named in refusal(write(tmp_path, name, **changes))


@pytest.mark.parametrize(
    ("name", "index", "named"),
    [
        ("sd1", {"_class_name": "FluxPipeline"}, "is a FluxPipeline"),
        ("sd1", {"_class_name": "StableDiffusionInpaintPipeline"}, "is a StableDiffusionInpaintPipeline"),
        ("sd1", {"_class_name": ...}, "without a class name"),
        ("sd1", {"unet": ["diffusers", "FluxTransformer2DModel"]}, "unet is FluxTransformer2DModel"),
        ("sd1", {"vae": ["diffusers", "AutoencoderTiny"]}, "vae is AutoencoderTiny"),
        ("sd1", {"text_encoder": ...}, "text_encoder is absent"),
        ("sd1", {"text_encoder": [None, None]}, "text_encoder is absent"),
        ("sd1", {"_class_name": "StableDiffusionXLPipeline"}, "without a second text encoder"),
        ("sdxl", {"_class_name": "StableDiffusionPipeline"}, "with a second text encoder"),
        ("sdxl", {"requires_aesthetics_score": True}, "refiner"),
    ],
)
def test_another_pipeline_is_refused_by_what_was_found(name, index, named, tmp_path):
    assert named in refusal(write(tmp_path, name, model_index=index))


def test_a_folder_that_is_no_pipeline_says_what_lies_there(tmp_path):
    (tmp_path / "model.safetensors").touch()
    message = refusal(tmp_path)
    assert "no model_index.json" in message and "model.safetensors" in message
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_missing_files_are_listed_together(tmp_path):
    folder = write(tmp_path, "sd1")
    (folder / "vae/config.json").unlink()
    (folder / "scheduler/scheduler_config.json").unlink()
    (folder / "tokenizer/merges.txt").unlink()
    message = refusal(folder)
    assert "vae/config.json is missing" in message and "scheduler/scheduler_config.json is missing" in message
    assert "tokenizer/vocab.json and tokenizer/merges.txt (or tokenizer/tokenizer.json) are missing" in message


def test_a_tokenizer_in_one_file_is_enough(tmp_path):
    folder = write(tmp_path, "sdxl")
    for file in ("vocab.json", "merges.txt"):
        (folder / "tokenizer_2" / file).unlink()
    assert "tokenizer_2/tokenizer.json" in refusal(folder)
    (folder / "tokenizer_2/tokenizer.json").touch()
    assert from_diffusers(folder).name == "sdxl"


@pytest.mark.parametrize(
    ("content", "named"), [(b"{", "not valid JSON"), (b"[1]", "no JSON object"), (b"\xff\xfe\x80", "cannot be read")]
)
def test_a_damaged_file_is_named(content, named, tmp_path):
    folder = write(tmp_path, "sd1")
    (folder / "vae/config.json").write_bytes(content)
    message = refusal(folder)
    assert named in message and "vae" in message
