import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxbooth.data import moments as moments_module
from jaxbooth.data import picture_views
from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.examples import encode_examples, encode_text
from jaxbooth.data.moments import encode_moments
from jaxbooth.data.picture_views import DataConfig, PictureViews
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.weights.digest import base_digest, component_digest


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "moments"


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of pictures that went through the VAE, by call."""
    calls, put = [], moments_module.put
    monkeypatch.setattr(moments_module, "put", lambda array, sharding: calls.append(len(array)) or put(array, sharding))
    return calls


@pytest.fixture
def photos(tmp_path):
    """Three pictures of noise, one of them wide."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (width, height) in enumerate([(24, 24), (40, 20), (16, 32)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def captioned(folder):
    return [CaptionedImage(path, f"picture {path.stem}", path.name) for path in sorted(folder.iterdir())]


def encode(sd, images, mesh, config=None, resolution=16, vae_digest="a vae", trains_text_encoder=True, seed=0):
    views = PictureViews(tuple(images), config or DataConfig(), resolution, seed, factor=2)
    return encode_examples(sd, views, mesh=mesh, vae_digest=vae_digest, trains_text_encoder=trains_text_encoder)


def test_moments_are_the_vae_s_of_each_view(twin, mesh, photos, cache):
    sd = twin("sd1")
    examples = encode(sd, captioned(photos), mesh, DataConfig(random_flip=True))
    assert examples.moments.shape == (6, 8, 8, 8) and examples.moments.dtype == np.float32
    np.testing.assert_array_equal(examples.text_index[:, 0], [0, 0, 1, 1, 2, 2])
    pixels = np.asarray(Image.open(photos / "0.png").resize((16, 16), Image.Resampling.LANCZOS))
    both = np.stack([pixels, pixels[:, ::-1]]).astype(np.float32) / 127.5 - 1
    graphdef, state = nnx.split(sd.vae)
    expected = jax.jit(lambda state, images: nnx.merge(graphdef, state).encode(images))(state, both)
    np.testing.assert_allclose(examples.moments[:2], expected, rtol=1e-4, atol=1e-4)


def test_second_run_reads_the_moments_and_encodes_nothing(twin, mesh, photos, cache, encoded):
    first = encode(twin("sd1"), captioned(photos), mesh)
    assert len(encoded) == 1 and len(list(cache.iterdir())) == 1
    file = next(cache.iterdir())
    before = file.stat().st_mtime_ns
    second = encode(twin("sd1"), captioned(photos), mesh)
    assert len(encoded) == 1 and file.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.moments, second.moments)


@pytest.mark.parametrize("damage", ["cut off", "empty", "no array", "other views"])
def test_a_damaged_file_is_told_and_encoded_again(twin, mesh, photos, cache, encoded, damage, caplog):
    first = encode(twin("sd1"), captioned(photos), mesh)
    moments, (file,) = np.array(first.moments), cache.iterdir()
    whole = file.read_bytes()
    file.unlink()  # what `first` reads from stays as it is
    if damage == "other views":
        np.save(file, moments[:2])
    else:
        file.write_bytes({"cut off": whole[: len(whole) // 2], "empty": b"", "no array": b"not an array"}[damage])
    second = encode(twin("sd1"), captioned(photos), mesh)
    assert len(encoded) == 2 and file.read_bytes() == whole
    np.testing.assert_array_equal(second.moments, moments)
    assert str(file) in caplog.text


def test_captions_and_caption_dropout_do_not_matter_for_moments(twin, mesh, photos, cache, encoded):
    encode(twin("sd1"), captioned(photos), mesh)
    renamed = [CaptionedImage(image.source, "another", f"x{image.key}") for image in captioned(photos)]
    examples = encode(twin("sd1"), renamed, mesh, DataConfig(caption_dropout=0.5))
    assert len(encoded) == 1
    np.testing.assert_array_equal(examples.text_index[:, 0], [0, 0, 0])


def test_moments_are_made_anew_when_what_they_stand_for_changes(twin, mesh, photos, cache, encoded):
    sd, images = twin("sd1"), captioned(photos)
    first = encode(sd, images, mesh)
    encode(sd, images, mesh, vae_digest="another vae")
    assert len(encoded) == 2
    encode(sd, images, mesh, resolution=32)
    assert len(encoded) == 3
    encode(sd, images, mesh, DataConfig(random_flip=True))
    assert len(encoded) == 4
    pixels = np.asarray(Image.open(photos / "1.png")).copy()
    pixels[10, 20, 0] ^= 128
    Image.fromarray(pixels).save(photos / "1.png")
    changed = encode(sd, captioned(photos), mesh)
    assert len(encoded) == 5 and len(list(cache.iterdir())) == 5
    np.testing.assert_array_equal(changed.moments[[0, 2]], first.moments[[0, 2]])
    assert np.abs(changed.moments[1] - first.moments[1]).max() > 1e-3


def test_pictures_are_encoded_in_full_calls_and_in_order(twin, mesh, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(moments_module, "ENCODE_ROWS", 1)  # 8 devices: calls of 8 pictures
    for number in range(11):
        Image.new("RGB", (16, 16), (20 * number, 0, 255 - 20 * number)).save(tmp_path / f"{number:02d}.png")
    images = [CaptionedImage(path, "", path.name) for path in sorted(tmp_path.glob("*.png"))]
    examples = encode(twin("sd1"), images, mesh)
    monkeypatch.setattr(moments_module, "ENCODE_ROWS", 8)
    backwards = encode(twin("sd1"), images[::-1], mesh)
    assert len(examples) == 11
    np.testing.assert_allclose(examples.moments, backwards.moments[::-1], rtol=1e-5, atol=1e-5)


def test_frozen_text_encoder_s_states_are_kept_with_the_empty_caption_last(twin):
    sd = twin("sd1")
    text, rows = encode_text(sd, ["a sks dog", "a dog", "a sks dog"], trains_text_encoder=False)
    np.testing.assert_array_equal(rows, [0, 1, 0])
    assert text.input_ids is None and text.pooled is None
    expected = np.asarray(sd.encode_prompts(["a sks dog", "a dog", ""]))
    np.testing.assert_allclose(text.encoder_hidden_states, expected, rtol=1e-5, atol=1e-5)
    ids, _ = encode_text(sd, ["a sks dog", "a dog"], trains_text_encoder=True)
    np.testing.assert_array_equal(ids.input_ids, sd.tokenize(["a sks dog", "a dog", ""]))
    assert ids.encoder_hidden_states is None


def test_sdxl_rows_have_time_ids_and_pooled_text(twin, mesh, photos, cache):
    sd = twin("sdxl")
    examples = encode(sd, captioned(photos), mesh, DataConfig(random_flip=True), trains_text_encoder=False)
    # Original height and width, corner of the cut (of the mirrored picture for the flipped view), target size.
    wide, tall = [20, 40, 0, 8, 16, 16], [32, 16, 8, 0, 16, 16]
    np.testing.assert_array_equal(examples.time_ids, [[24, 24, 0, 0, 16, 16]] * 2 + [wide] * 2 + [tall] * 2)
    assert examples.time_ids.dtype == np.float32
    states, pooled = sd.encode_prompts(["picture 0", "picture 1", "picture 2", ""])
    np.testing.assert_allclose(examples.text.encoder_hidden_states, states, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(examples.text.pooled, pooled, rtol=1e-5, atol=1e-5)


def test_random_crops_are_drawn_for_each_picture_and_from_the_seed(twin, mesh, photos, cache):
    config = DataConfig(center_crop=False, random_crops=5)
    sd = twin("sdxl")
    corners = [encode(sd, captioned(photos), mesh, config, seed=seed).time_ids[:, 2:4] for seed in (0, 1, 0)]
    np.testing.assert_array_equal(corners[0], corners[2])
    assert (corners[0] != corners[1]).any()
    assert len(set(corners[0][5:10, 1])) > 1  # the wide picture's


def test_digest_of_a_base_follows_its_weights_and_configs(twin_folder, tmp_path):
    import shutil

    folder = shutil.copytree(twin_folder("sd1"), tmp_path / "base")
    assert base_digest(folder) == base_digest(twin_folder("sd1"))  # content, not place
    before, vae = base_digest(folder), component_digest(folder / "vae")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"norm_eps": 1e-6}))
    assert base_digest(folder) != before and component_digest(folder / "vae") == vae
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert component_digest(folder / "vae") != vae


def test_pictures_of_several_subjects_share_calls_and_each_finds_its_own(twin, mesh, photos, cache, encoded):
    sd, images = twin("sd1"), captioned(photos)
    sets = [PictureViews(part, DataConfig(), 16, 0, 2) for part in (images[:1], images[1:], images[::-1], images[:1])]
    together = encode_moments(sd, sets, mesh, "a vae")
    assert encoded == [8] and [len(part) for part in together] == [1, 2, 3, 1]
    assert len(list(cache.iterdir())) == 3  # the same pictures are the same set
    alone = encode(sd, images, mesh).moments
    for part, whole in zip(together, (alone[:1], alone[1:], alone[::-1], alone[:1]), strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-5)
    calls = len(encoded)
    encode_moments(sd, sets, mesh, "a vae")
    assert len(encoded) == calls


def test_many_pictures_are_decoded_in_other_processes_to_the_same_views(photos, monkeypatch):
    config = DataConfig(center_crop=False, random_crops=3, random_flip=True)
    views = PictureViews(captioned(photos), config, 16, 3, 2)
    expected = list(picture_views.decoded([views, views]))
    monkeypatch.setattr(picture_views, "POOL_PICTURES", 4)
    found = list(picture_views.decoded([views, views]))
    assert len(found) == len(expected) == 36
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.crop_top_left == theirs.crop_top_left
