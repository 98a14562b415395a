import logging

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.prior import PriorConfig, ensure_prior, missing_images, prior_folder
from jaxbooth.errors import DataError
from jaxbooth.sharding import MeshConfig, make_mesh

CONFIG = PriorConfig(num_images=5, num_steps=1, guidance_scale=1.0, batch_size=1, seed=3)
BASE, PROMPT, RESOLUTION = "0123456789abcdef", "a dog", 16


class CountingPipeline:
    """Notes what is asked for; draws with a real pipeline, or noise that is each picture's own."""

    def __init__(self, sd=None):
        self.sd, self.drawn = sd, []

    def generate(self, prompts, **options):
        self.drawn.append((prompts, options["indices"]))
        if self.sd is not None:
            return self.sd.generate(prompts, **options)
        size = (options["height"], options["width"], 3)
        return np.stack([np.random.default_rng([options["seed"], index]).random(size) for index in options["indices"]])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture
def sd():
    return CountingPipeline()


def ensure(sd, mesh, config=CONFIG, prompt=PROMPT, base=BASE, resolution=RESOLUTION):
    return ensure_prior(sd, config, prompt, base, resolution, mesh)


def test_only_missing_pictures_are_drawn_and_they_come_out_the_same(cache, mesh, twin):
    sd = CountingPipeline(twin("sd1"))
    paths = ensure(sd, mesh)
    assert [path.name for path in paths] == [f"{index:05d}.png" for index in range(5)]
    assert sd.drawn == [([PROMPT] * 5, [0, 1, 2, 3, 4])]
    contents = [path.read_bytes() for path in paths]
    assert len(set(contents)) == 5
    times = [path.stat().st_mtime_ns for path in paths]
    paths[2].unlink()
    assert ensure(sd, mesh) == paths
    assert sd.drawn[1:] == [([PROMPT], [2])]
    np.testing.assert_allclose(pixels(paths[2]), pixels(contents[2]), atol=1)
    kept = [0, 1, 3, 4]
    assert [paths[i].read_bytes() for i in kept] == [contents[i] for i in kept]
    assert [paths[i].stat().st_mtime_ns for i in kept] == [times[i] for i in kept]


def test_complete_set_is_not_drawn_again_and_a_larger_one_is_topped_up(cache, mesh, sd):
    paths = ensure(sd, mesh)
    assert ensure(sd, mesh) == paths
    assert len(sd.drawn) == 1
    more = ensure(sd, mesh, CONFIG.model_copy(update={"num_images": 7}))
    assert more[:5] == paths and sd.drawn[1][1] == [5, 6]
    assert ensure(sd, mesh, CONFIG.model_copy(update={"num_images": 3})) == paths[:3]
    assert len(sd.drawn) == 2


def test_pictures_come_at_the_resolution_and_no_half_written_one_is_left(cache, mesh, sd):
    paths = ensure(sd, mesh, resolution=32)
    assert {Image.open(path).size for path in paths} == {(32, 32)}
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [*(path.name for path in paths), "prior.json"]


def pixels(source):
    import io

    data = source if isinstance(source, bytes) else source.read_bytes()
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a cat"},
        {"base": "fedcba9876543210"},
        {"resolution": 32},
        {"config": CONFIG.model_copy(update={"seed": 4})},
        {"config": CONFIG.model_copy(update={"sampler": "ddim"})},
        {"config": CONFIG.model_copy(update={"num_steps": 2})},
        {"config": CONFIG.model_copy(update={"guidance_scale": 2.0})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_cache_folder_is_another_for_other_pictures(cache, change):
    key = {"config": CONFIG, "base": BASE, "prompt": PROMPT, "resolution": RESOLUTION}

    def folder(config, base, prompt, resolution):
        return prior_folder(config, base, prompt, resolution)

    assert folder(**key) != folder(**key | change)
    assert folder(**key).is_relative_to(cache)


def test_cache_folder_is_shared_by_what_does_not_change_a_picture(cache):
    other = CONFIG.model_copy(update={"num_images": 99, "batch_size": 2, "loss_weight": 0.3, "images": "x"})
    assert prior_folder(CONFIG, BASE, PROMPT, RESOLUTION) == prior_folder(other, BASE, PROMPT, RESOLUTION)


def test_own_class_pictures_come_first_and_are_topped_up(cache, tmp_path, mesh, sd):
    own = tmp_path / "dogs"
    own.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(own / f"{number}.png")
    config = CONFIG.model_copy(update={"images": str(own)})
    paths = ensure(sd, mesh, config)
    assert [path.parent for path in paths[:3]] == [own] * 3 and len(paths) == 5
    assert sd.drawn == [([PROMPT] * 2, [0, 1])]
    assert ensure(sd, mesh, config.model_copy(update={"num_images": 2})) == paths[:2]
    assert len(sd.drawn) == 1


def test_missing_folder_of_own_pictures_is_a_data_error(cache, tmp_path, mesh, sd):
    with pytest.raises(DataError, match="nowhere"):
        ensure(sd, mesh, CONFIG.model_copy(update={"images": str(tmp_path / "nowhere")}))
    assert sd.drawn == []


def test_log_says_how_many_are_drawn(cache, mesh, sd, caplog):
    with caplog.at_level(logging.INFO):
        paths = ensure(sd, mesh)
        paths[0].unlink()
        ensure(sd, mesh)
    assert "drawing 5 prior pictures" in caplog.text and "drawing 1 prior pictures" in caplog.text
    assert missing_images(paths[0].parent, 6) == [5]
