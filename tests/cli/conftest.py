"""The command line in this process, in a folder of its own, with a small run to work on."""

import sys

import jax
import pytest
import yaml
from small_folders import write_photos
from twins import make_twin

from jaxbooth import cli

SAMPLER = {"sampler": "euler_ancestral", "num_steps": 1, "guidance_scale": 1.0}
NO_COLOURS = {"NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every call starts in an empty folder, which holds all that it writes, the cache too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path / "cache"))
    for name, value in NO_COLOURS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxbooth", *map(str, arguments)])
        capsys.readouterr()
        code = cli._run()
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def config(tmp_path, twin_folder):
    """A small run on a twin, with four photos."""
    write_photos(tmp_path / "photos")
    values = {
        "base": {"path": str(twin_folder("sd1"))},
        "method": {"type": "dreambooth"},
        "subjects": [{"name": "rex", "images": "photos", "class_noun": "dog", "token": "sks"}],
        # One sampler with one kind of call, so that prior, samples before and after are one compiled program.
        "prior": {"num_images": 4, **SAMPLER},
        "train": {"steps": 2, "batch_size": 4},
        "sample": {"prompts": ["a {token} {class_noun}"], "class_prompts": ["a {class_noun}"], **SAMPLER},
    }
    (tmp_path / "rex.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "rex.yaml"


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A base that compiles in half the time: attention in the middle of the UNet only."""
    unet = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    return make_twin(tmp_path_factory.mktemp("small") / "base", "sd1", unet=unet)


@pytest.fixture
def small_config(config, small_base):
    """The small run on that base."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"base": {"path": str(small_base)}}))
    return config


@pytest.fixture
def one_device(monkeypatch):
    """Makes the mesh small, which compiles and runs faster; other tests are about meshes."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
