"""DINO and CLIP on tiny random weights: the same numbers as transformers called directly."""

import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_encoders import make_encoders

from jaxbooth.errors import ConfigError
from jaxbooth.evaluation.image_rows import embed
from jaxbooth.evaluation.paper_encoders import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    load_paper_encoders,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def encoders(folders):
    return load_paper_encoders(str(folders / "clip"), str(folders / "dino"))


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, size, np.uint8)) for size in ((90, 120, 3), (64, 64, 3), (200, 70, 3))
    ]


def tensor(picture: Image.Image, short: int, size: int, mean, std) -> torch.Tensor:
    """The spec in torch: short side, central square, [0, 1], normalised."""
    width, height = picture.size
    scale = short / min(width, height)
    picture = picture.resize((max(short, int(width * scale)), max(short, int(height * scale))), Image.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:, top : top + size, left : left + size] / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=-1, keepdim=True)).detach().numpy()


def test_dino_is_the_cls_token_after_the_last_norm(encoders, folders, pictures):
    model = transformers.ViTModel.from_pretrained(folders / "dino", add_pooling_layer=False).eval()
    pixels = torch.stack([tensor(picture, 64, 56, IMAGENET_MEAN, IMAGENET_STD) for picture in pictures])
    hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    wanted = unit(model.layernorm(hidden)[:, 0])
    found = embed({"dino": encoders[1]}, pictures)["dino"]
    assert found.shape == (3, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_clip_gives_projected_pictures_and_texts(encoders, folders, pictures):
    model = transformers.CLIPModel.from_pretrained(folders / "clip").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folders / "clip")
    texts = ["a dog in the jungle", "a stuffed animal"]
    pixels = torch.stack([tensor(picture, 64, 64, CLIP_MEAN, CLIP_STD) for picture in pictures])
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    whole = model(input_ids=ids, pixel_values=pixels)
    np.testing.assert_allclose(embed({"clip": encoders[0]}, pictures)["clip"], unit(whole.image_embeds), atol=1e-5)
    np.testing.assert_allclose(encoders[0].encode_texts(texts), unit(whole.text_embeds), atol=1e-5)


def test_the_papers_preprocessing_is_256_224_for_dino_and_224_for_clip():
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 500, 3), np.uint8))
    for short, mean, std in ((256, IMAGENET_MEAN, IMAGENET_STD), (224, CLIP_MEAN, CLIP_STD)):
        found = Preprocessing(short, 224, mean, std)(wide)
        assert found.shape == (224, 224, 3) and found.dtype == np.float32
        np.testing.assert_allclose(found.transpose(2, 0, 1), tensor(wide, short, 224, mean, std), atol=1e-5)


def test_rows_do_not_depend_on_the_batch(encoders, pictures):
    many = embed({"dino": encoders[1], "clip": encoders[0]}, pictures * 3, batch_size=4)
    assert many["dino"].shape == (9, 32) and many["clip"].shape == (9, 24)
    np.testing.assert_allclose(many["dino"][:3], many["dino"][3:6], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(many["clip"], axis=-1), 1, atol=1e-6)


def test_models_of_other_sizes_are_not_taken_for_the_papers(encoders):
    assert not encoders[0].is_papers and not encoders[1].is_papers


def test_both_encoders_that_cannot_be_had_are_named_with_what_to_do(folders, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_paper_encoders(str(folders / "dino"), str(tmp_path / "nowhere"))
    said = str(error.value)
    assert "--clip" in said and "of type vit, clip is needed" in said
    assert "--dino" in said and "nowhere" in said and "efficientnet-lite0" in said


def test_a_file_that_lacks_weights_is_refused_not_filled_with_random_ones(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders / "dino", tmp_path / "dino")
    weights = load_file(tmp_path / "dino" / "model.safetensors")
    weights.pop(sorted(weights)[5])
    save_file(weights, tmp_path / "dino" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="1 weights are missing"):
        load_paper_encoders(str(folders / "clip"), str(tmp_path / "dino"))


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxbooth\[eval\]'"):
        load_paper_encoders()
