"""Sums of LoRAs are exact; truncation is the best that its rank or size allows."""

from dataclasses import replace

import numpy as np
import pytest

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.kohya_lora import save_kohya_lora
from jaxbooth.export.lora_weights import LoRALayer
from jaxbooth.export.peft_lora import save_peft_lora
from jaxbooth.merging.lora_sum import concatenate, directions, svd_lora, truncate, truncate_to_bytes

QUERY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
CONV = "unet.down_blocks.0.resnets.0.conv1"
FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SHAPES = {QUERY: (24, 16), KEY: (24, 10), CONV: (8, 6, 3, 3), FC1: (20, 16)}


def lora(seed, rank=4, alpha=4.0, paths=SHAPES, **options):
    rng, weights = np.random.default_rng(seed), {}
    for path in paths:
        shape = SHAPES[path]
        down = rng.normal(size=(rank, *shape[1:])).astype(np.float32)
        up = 0.1 * rng.normal(size=(shape[0], rank, *(1 for _ in shape[2:]))).astype(np.float32)
        weights[path] = LoRALayer(down, up, alpha, **options)
    return weights


def squared_error(one, other):
    none = {path: np.zeros(SHAPES[path]) for path in SHAPES}
    one, other = (none | {path: layer.delta() for path, layer in part.items()} for part in (one, other))
    return sum(float(np.sum((one[path].astype(np.float64) - other[path]) ** 2)) for path in SHAPES)


def test_concat_of_loras_equals_the_sum_of_deltas():
    parts = [lora(0), lora(1, rank=3, alpha=6.0), lora(2, rank=2, alpha=1.0, use_rslora=True)]
    strengths = [1.0, -0.5, 0.7]
    total = concatenate(parts, strengths)
    assert {layer.rank for layer in total.values()} == {9}
    for path, layer in total.items():
        assert layer.scale == 1
        wanted = sum(s * part[path].delta() for s, part in zip(strengths, parts, strict=True))
        np.testing.assert_allclose(layer.delta(), wanted, rtol=0, atol=1e-6)


def test_loras_with_different_targets_are_added_where_they_are():
    total = concatenate([lora(0, paths=[QUERY, CONV]), lora(1, paths=[CONV, FC1])], [1.0, 1.0])
    assert {path: layer.rank for path, layer in total.items()} == {QUERY: 4, CONV: 8, FC1: 4}
    np.testing.assert_array_equal(total[FC1].delta(), lora(1, paths=[CONV, FC1])[FC1].delta())


def test_strength_scales_the_change_as_alpha_does():
    """r = 8, alpha = 4 equals r = 8, alpha = 8 at strength 0.5."""
    half = concatenate([lora(0, rank=8, alpha=8.0)], [0.5])
    for path, layer in lora(0, rank=8, alpha=4.0).items():
        np.testing.assert_allclose(half[path].delta(), layer.delta(), rtol=0, atol=1e-6)


def test_adding_is_not_averaging_of_factors():
    one, other = lora(0)[QUERY], lora(1)[QUERY]
    crossed = LoRALayer(one.down + other.down, one.up + other.up, 4.0).delta()
    summed = concatenate([{QUERY: one}, {QUERY: other}], [1, 1])[QUERY].delta()
    assert abs(crossed - summed).max() > 0.1


def test_dora_is_refused_with_the_reason():
    dora = lora(0)
    dora[QUERY] = replace(dora[QUERY], magnitude=np.ones(24, np.float32))
    for refused in (lambda: concatenate([dora], [1.0]), lambda: truncate(dora, 1), lambda: truncate_to_bytes(dora, 1)):
        with pytest.raises(MethodError, match=rf"DoRA cannot be .*norm of every output.*{QUERY}"):
            refused()


def test_what_cannot_be_added_is_refused():
    with pytest.raises(MethodError, match="2 LoRAs and 1 strengths"):
        concatenate([lora(0), lora(1)], [1.0])
    other = lora(1)
    other[QUERY], other[KEY] = other[FC1], other[FC1]
    with pytest.raises(MethodError) as caught:
        concatenate([lora(0), other], [1.0, 1.0])
    assert f"{QUERY}: weights (20, 16), (24, 16)" in str(caught.value) and KEY in str(caught.value)


@pytest.mark.parametrize("rank", [1, 3])
def test_truncation_is_the_best_of_its_rank(rank):
    weights = concatenate([lora(0), lora(1, alpha=2.0)], [1.0, 0.8])
    cut = truncate(weights, rank)
    for path, layer in cut.items():
        assert layer.rank == rank
        matrix = weights[path].delta().astype(np.float64).reshape(SHAPES[path][0], -1)
        u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
        np.testing.assert_allclose(layer.delta().reshape(matrix.shape), best, rtol=0, atol=1e-5)


def test_truncation_to_the_own_rank_changes_nothing():
    weights = lora(0)
    for path, layer in truncate(weights, 4).items():
        assert layer is weights[path]
    doubled = concatenate([weights, weights], [0.5, 0.5])  # rank 8, of which 4 are needed
    for path, layer in truncate(doubled, 4).items():
        np.testing.assert_allclose(layer.delta(), weights[path].delta(), rtol=0, atol=1e-6)


def test_truncation_works_where_the_rank_exceeds_the_weight():
    wide = concatenate([lora(seed, rank=8, paths=[KEY]) for seed in range(3)], [1.0] * 3)  # rank 24 of 24 x 10
    assert directions(wide[KEY]).sigma.shape == (10,)
    np.testing.assert_allclose(truncate(wide, 23)[KEY].delta(), wide[KEY].delta(), rtol=0, atol=1e-5)


def test_truncation_never_forms_the_product():
    tall = LoRALayer(np.ones((2, 200_000), np.float32), np.ones((200_000, 2), np.float32), 2.0)  # 160 GB as a matrix
    cut = truncate({QUERY: tall}, 1)[QUERY]
    assert cut.up[-1] @ cut.down[:, -1] == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2)])
def test_the_file_is_no_larger_than_asked(dtype, width, tmp_path):
    weights = concatenate([lora(seed) for seed in range(3)], [1.0, 0.5, 0.1])
    overhead = 4096 + sum(5 * len(path) + 330 for path in weights)
    for number, limit in enumerate((overhead + 250, 8000, 9000, 10_000)):
        cut = truncate_to_bytes(weights, limit, bytes_per_value=width)
        peft = save_peft_lora(cut, tmp_path / str(number), dtype=dtype)
        kohya = save_kohya_lora(cut, tmp_path / f"{number}.safetensors", family_name="sd1", dtype=dtype)
        assert peft.stat().st_size <= limit and kohya.stat().st_size <= limit
        used = sum(layer.up.size + layer.down.size for layer in cut.values()) * width
        complete = {path: layer.rank for path, layer in cut.items()} == {path: 12 for path in weights} | {KEY: 10}
        assert complete or limit - overhead - used < 62 * width  # no further direction would fit


def test_the_room_for_the_header_is_enough_for_long_names(tmp_path):
    """As many layers as SDXL has, of many ranks, and few numbers: the header is nearly all of the file."""
    path = "unet.down_blocks.2.attentions.1.transformer_blocks.{}.ff.net.0.proj"
    rng = np.random.default_rng(0)
    weights = {
        path.format(number): LoRALayer(
            rng.normal(size=(8 + number % 3, 9)).astype(np.float32),
            rng.normal(size=(8, 8 + number % 3)).astype(np.float32),
            1.0,
        )
        for number in range(1000)
    }
    limit = 4096 + sum(5 * len(name) + 330 for name in weights) + 4 * 17 * 1000
    cut = truncate_to_bytes(weights, limit)
    assert len({layer.rank for layer in cut.values()}) > 1
    assert save_peft_lora(cut, tmp_path).stat().st_size <= limit
    for family_name in ("sd1", "sdxl"):
        file = save_kohya_lora(cut, tmp_path / f"{family_name}.safetensors", family_name=family_name)
        assert file.stat().st_size <= limit


def test_a_lora_that_fits_comes_back_unchanged():
    weights = lora(0)
    assert truncate_to_bytes(weights, 20_000) == weights


def test_bytes_go_where_the_energy_is():
    """No better than any uniform rank of the same size, by the squared error of all weights."""
    weights = lora(0)
    weights[CONV] = replace(weights[CONV], alpha=40.0)  # ten times as strong as the others, and the dearest
    values = {path: shape[0] + int(np.prod(shape[1:])) for path, shape in SHAPES.items()}
    uniform = truncate(weights, 2)
    limit = 4096 + sum(5 * len(path) + 330 for path in weights) + 4 * 2 * sum(values.values())
    greedy = truncate_to_bytes(weights, limit)
    assert greedy[CONV].rank == 4
    assert sum(layer.rank * values[path] for path, layer in greedy.items()) <= 2 * sum(values.values())
    assert squared_error(greedy, weights) < 0.5 * squared_error(uniform, weights)


def test_a_size_too_small_says_which_is_possible():
    with pytest.raises(MethodError, match="5000 bytes hold no direction.*smallest file has") as caught:
        truncate_to_bytes(lora(0), 5000)
    least = int(str(caught.value).rsplit(" ", 1)[1])
    assert sum(layer.rank for layer in truncate_to_bytes(lora(0), least).values()) == 1
    with pytest.raises(MethodError):
        truncate_to_bytes(lora(0), least - 1)
    with pytest.raises(MethodError, match="rank 0"):
        truncate(lora(0), 0)


def test_whole_weight_changes_become_a_lora():
    deltas = {path: layer.delta() for path, layer in lora(0, rank=3).items()}
    exact = svd_lora(deltas, rank=3)
    for path, delta in deltas.items():
        assert exact[path].weight_shape == delta.shape
        np.testing.assert_allclose(exact[path].delta(), delta, rtol=0, atol=1e-6)


def test_a_fraction_keeps_that_share_of_the_singular_values():
    matrix = np.diag([4.0, 3.0, 2.0, 1.0])
    ranks = {f: svd_lora({QUERY: matrix}, kept_fraction=f)[QUERY].rank for f in (0.01, 0.4, 0.69, 0.7, 0.9, 1.0)}
    assert ranks == {0.01: 1, 0.4: 1, 0.69: 1, 0.7: 2, 0.9: 3, 1.0: 4}
    kept = svd_lora({QUERY: matrix}, kept_fraction=0.7)[QUERY]
    np.testing.assert_allclose(kept.delta(), np.diag([4.0, 3.0, 0, 0]), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rank": 2, "kept_fraction": 0.6}, {"rank": 0}, {"kept_fraction": 1.5}])
def test_svd_lora_wants_one_sensible_limit(options):
    with pytest.raises(MethodError):
        svd_lora({QUERY: np.eye(3)}, **options)


def test_changes_that_are_no_weights_are_refused():
    with pytest.raises(ConversionError, match="the path must begin"):
        svd_lora({"vae.conv_in": np.eye(3)}, rank=1)
