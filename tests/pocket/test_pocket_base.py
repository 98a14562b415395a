import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from jaxbooth.pocket import BASE, DEMO_SUBJECTS

SCRIPTS = Path(__file__).parents[2] / "configs" / "pocket"
FILES = [file for file in sorted(BASE.rglob("*")) if file.is_file()]
WEIGHTS = [file for file in FILES if file.suffix == ".safetensors"]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_base_fits_into_the_package():
    assert sum(file.stat().st_size for file in FILES) <= 20_000_000
    assert max(file.stat().st_size for file in FILES) < 16 * 2**20


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: file.parent.name)
def test_weights_are_finite_float16_and_say_that_they_are_pytorchs(file):
    with safe_open(file, framework="numpy") as handle:
        assert handle.metadata() == {"format": "pt"}
        for key in handle.keys():  # noqa: SIM118
            array = handle.get_tensor(key)
            assert array.dtype == np.float16 and np.isfinite(array).all(), key


def test_the_text_encoder_has_the_classic_key_names():
    with safe_open(BASE / "text_encoder" / "model.safetensors", framework="numpy") as handle:
        assert all(key.startswith("text_model.") for key in handle.keys())  # noqa: SIM118


@pytest.mark.parametrize("file", [f for f in FILES if f.suffix == ".json"], ids=lambda f: str(f.relative_to(BASE)))
def test_configs_tell_nothing_of_where_they_were_saved(file):
    if file.name == "vocab.json":
        return
    assert "_name_or_path" not in file.read_text() and ":/" not in file.read_text() and '"/' not in file.read_text()


def test_the_pipeline_has_no_safety_checker_that_would_be_looked_for():
    index = json.loads((BASE / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


@pytest.mark.parametrize("reader", ["AutoTokenizer", "CLIPTokenizer"])
def test_the_tokenizer_is_clips_and_sks_is_one_token(reader):
    transformers = pytest.importorskip("transformers")
    tokenizer = getattr(transformers, reader).from_pretrained(BASE / "tokenizer")
    ids = tokenizer("a photo of a sks dog").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 48136, 1929, 49407]
    assert len(tokenizer) == 49408 and tokenizer.model_max_length == 77
    padded = tokenizer("a dog", padding="max_length", max_length=8).input_ids
    assert padded == [49406, 320, 1929, 49407, 49407, 49407, 49407, 49407]


def test_pytorch_diffusers_opens_the_base_in_one_dtype():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(BASE)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pictures = pipeline(
        "a dog in the snow", height=64, width=64, num_inference_steps=2, generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images  # fmt: skip
    assert pictures.shape == (1, 64, 64, 3) and np.isfinite(pictures).all() and pictures.std() > 0.05


def test_packing_the_packed_base_changes_nothing(tmp_path):
    pytest.importorskip("safetensors")
    script("pack_base").pack(BASE, tmp_path / "out", BASE / "tokenizer")
    for file in FILES:
        assert (tmp_path / "out" / file.relative_to(BASE)).read_bytes() == file.read_bytes(), file


def test_packing_never_replaces_a_folder_that_is_no_pipeline(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit, match="left as it is"):
        script("pack_base").pack(BASE, tmp_path, BASE / "tokenizer")
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("subject", DEMO_SUBJECTS, ids=lambda subject: subject.name)
def test_a_demo_subject_has_five_different_pictures(subject):
    files = sorted(subject.folder.glob("*.png"))
    assert [file.name for file in files] == [f"0{i}.png" for i in range(5)]
    pictures = [Image.open(file) for file in files]
    assert all(picture.size == (64, 64) and picture.mode == "RGB" for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_sprites_are_made_from_iconify_sets(tmp_path):
    pytest.importorskip("resvg_py", reason="resvg-py draws the sprites; it is needed only to make them anew")
    make_sprites = script("make_sprites")
    circle = '<circle cx="8" cy="8" r="8" fill="#ff0000"/>'
    icons = {"width": 16, "height": 16, "icons": {"dog": {"body": circle}, "smile": {"body": circle}}}
    icons["aliases"] = {"dog2": {"parent": "dog"}}
    codepoints = {"1f415": "dog2", "1f415-1f3fb": "dog", "1f600": "smile"}
    for style in make_sprites.ICONIFY_STYLES:
        folder = tmp_path / "@iconify-json" / style
        folder.mkdir(parents=True)
        (folder / "icons.json").write_text(json.dumps(icons))
        (folder / "chars.json").write_text(json.dumps(codepoints if style == "noto" else {}))
    (tmp_path / make_sprites.PICTURE_FOLDER).mkdir(parents=True)
    Image.new("RGBA", (256, 256), "red").save(tmp_path / make_sprites.PICTURE_FOLDER / "1f576-fe0f.webp")
    counts = make_sprites.make_archive(tmp_path, tmp_path / "sprites.tar", everything=False)
    assert counts == {style: 1 for style in (*make_sprites.ICONIFY_STYLES, "fluent-3d")}
    from jaxbooth.pocket.sprites import load_sprites

    sprites = {(s.style, s.codepoint): s.image for s in load_sprites(tmp_path / "sprites.tar")}
    assert {("noto", "1f415"), ("fluent-3d", "1f576")} <= sprites.keys()
    red, green, blue, alpha = sprites["noto", "1f415"].getpixel((48, 48))
    assert red > 240 and green < 15 and blue < 15 and alpha == 255
    assert sprites["noto", "1f415"].getpixel((0, 0))[3] == 0
