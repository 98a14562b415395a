import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxbooth.errors import MethodError
from jaxbooth.merging.compression import (
    compress,
    compressed_bytes,
    decompress,
    kept_rank,
    load_compressed,
    save_compressed,
)


@pytest.fixture
def deltas():
    rng = np.random.default_rng(0)
    decay = np.exp(-np.arange(32) / 6)
    return {
        name: (rng.normal(size=(rows, 32)) * decay) @ np.linalg.qr(rng.normal(size=(32, 32)))[0] * 0.01
        for name, rows in (("down.to_k.weight", 64), ("mid.to_v.weight", 20))
    }


def error(delta, fraction):
    return np.linalg.norm(decompress(compress(delta, fraction)) - delta) / np.linalg.norm(delta)


def test_the_sum_of_kept_singular_values_does_not_exceed_the_fraction():
    values = np.array([4.0, 3.0, 2.0, 1.0])
    assert [kept_rank(values, f) for f in (0.39, 0.4, 0.69, 0.7, 0.89, 0.9, 0.99, 1.0)] == [1, 1, 1, 2, 2, 3, 3, 4]
    assert kept_rank(np.full(5, 0.1), 0.6) == 3  # rounding of 3 / 5 does not cost a direction


def test_one_direction_is_always_kept():
    assert kept_rank(np.ones(10), 0.05) == 1
    assert kept_rank(np.zeros(10), 0.5) >= 1
    assert compress(np.eye(6), 0.1).up.shape == (6, 1)


def test_compression_at_100_percent_reproduces_the_matrix(deltas, tmp_path):
    for delta in deltas.values():
        assert error(delta, 1.0) < 1e-14
    base = {name: np.random.default_rng(1).normal(size=delta.shape) for name, delta in deltas.items()}
    save_compressed(deltas, tmp_path / "delta.safetensors", 1.0)
    for name, factors in load_compressed(tmp_path / "delta.safetensors").deltas.items():
        np.testing.assert_allclose(base[name] + decompress(factors), base[name] + deltas[name], atol=1e-6)


def test_reconstruction_error_is_monotone_in_the_kept_fraction(deltas):
    fractions = np.linspace(0.05, 1.0, 40)
    for delta in deltas.values():
        errors, ranks = [error(delta, f) for f in fractions], [len(compress(delta, f).down) for f in fractions]
        assert all(later <= earlier for earlier, later in zip(errors, errors[1:], strict=False))
        assert ranks == sorted(ranks) and ranks[0] == 1 and ranks[-1] == min(delta.shape)


def test_no_matrix_of_that_rank_is_closer(deltas):
    delta = deltas["down.to_k.weight"]
    factors = compress(delta, 0.6)
    rank = factors.down.shape[0]
    left = np.linalg.svd(delta, compute_uv=False)[rank:]
    assert np.linalg.norm(decompress(factors) - delta) == pytest.approx(np.linalg.norm(left))
    np.testing.assert_allclose(factors.down @ factors.down.T, np.eye(rank), atol=1e-12)  # V^T; the values are in up


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_file_is_as_large_as_predicted(deltas, tmp_path, dtype):
    file = tmp_path / "delta.safetensors"
    factors = save_compressed(deltas, file, 0.6, {"base": "abc"}, dtype=dtype)
    ranks = {name: kept_rank(np.linalg.svd(delta, compute_uv=False), 0.6) for name, delta in deltas.items()}
    numbers = sum(ranks[name] * sum(delta.shape) for name, delta in deltas.items())
    assert compressed_bytes(factors, dtype) == numbers * np.dtype(dtype).itemsize
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size == compressed_bytes(factors, dtype) + header
    assert header < 1024 and numbers < sum(delta.size for delta in deltas.values())


def test_a_file_comes_back_as_it_was_saved(deltas, tmp_path):
    file = tmp_path / "delta.safetensors"
    rows = {"<new1>": np.arange(8, dtype=np.float32)}
    saved = save_compressed(deltas, file, 0.5, {"base": "abc", "token": "<new1>"}, tensors=rows)
    loaded = load_compressed(file)
    assert loaded.metadata["base"] == "abc" and loaded.metadata["fraction"] == "0.5"
    assert loaded.deltas.keys() == deltas.keys() and loaded.tensors.keys() == rows.keys()
    np.testing.assert_array_equal(loaded.tensors["<new1>"], rows["<new1>"])
    for name, (up, down) in loaded.deltas.items():
        np.testing.assert_array_equal(up, saved[name].up)
        np.testing.assert_array_equal(down, saved[name].down)
        assert up.dtype == np.float32
        np.testing.assert_allclose(up @ down, decompress(compress(deltas[name], 0.5)), atol=1e-7)


def test_what_cannot_be_compressed_or_read_is_said(deltas, tmp_path):
    for fraction in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(MethodError, match="fraction"):
            compress(np.eye(3), fraction)
    with pytest.raises(MethodError, match=r"mid\.to_v.*finite"):
        save_compressed({"mid.to_v": np.full((3, 3), np.nan)}, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(MethodError, match="cannot be read"):
        load_compressed(tmp_path / "missing.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(MethodError, match="cannot be read"):
        load_compressed(tmp_path / "damaged.safetensors")
    save_file({"k.up": np.eye(2)}, tmp_path / "other.safetensors")
    with pytest.raises(MethodError, match="no file of compressed deltas"):
        load_compressed(tmp_path / "other.safetensors")
    save_file({"k.up": np.eye(2)}, tmp_path / "half.safetensors", {"kind": "jaxbooth-compressed-delta"})
    with pytest.raises(MethodError, match=r"k\.down"):
        load_compressed(tmp_path / "half.safetensors")
    with pytest.raises(MethodError, match="cannot be written"):
        save_compressed(deltas, tmp_path / "nowhere" / "x.safetensors")


def test_the_header_names_what_clients_ask_for(deltas, tmp_path):
    save_compressed(deltas, tmp_path / "x.safetensors", 0.6)
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["format"] == "pt"
    assert {"down.to_k.weight.up", "down.to_k.weight.down"} < header.keys()
