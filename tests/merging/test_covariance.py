import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxbooth.errors import MethodError
from jaxbooth.merging.captions import captions
from jaxbooth.merging.covariance import (
    Covariance,
    caption_covariance,
    load_covariance,
    metric_factor,
    real_tokens,
    save_covariance,
    second_moment,
)

EOS = 9


def tokenize(prompts):
    """One token for each word, its length in letters; beginning 8, end and padding 9."""
    ids = np.full((len(prompts), 12), EOS)
    for row, prompt in zip(ids, prompts, strict=True):
        words = prompt.split()
        row[: len(words) + 1] = [8, *(len(word) for word in words)]
    return ids


def encode(ids):
    """Features that depend on token and position."""
    table = np.random.default_rng(0).normal(size=(10, 5))
    return (table[ids] + 0.1 * np.arange(ids.shape[-1])[:, None]).astype(np.float32)


PROMPTS = ["a dog", "the red house on a hill", "two cats", "one", "a very old tree"]


def test_real_tokens_end_with_the_first_end_of_text():
    ids = np.array([[8, 1, 2, EOS, EOS, EOS], [8, EOS, 0, 0, 0, 0], [8, 1, 2, 3, 4, EOS]])
    assert real_tokens(ids, EOS).sum(axis=1).tolist() == [4, 2, 6]
    assert real_tokens(ids, EOS)[0].tolist() == [True] * 4 + [False] * 2


def test_the_second_moment_is_the_mean_of_outer_products_and_not_centred():
    rng = np.random.default_rng(1)
    features, mask = rng.normal(size=(3, 4, 5)) + 2, rng.random((3, 4)) < 0.6
    rows = [features[i, j] for i in range(3) for j in range(4) if mask[i, j]]
    wanted = np.mean([np.outer(row, row) for row in rows], axis=0)
    np.testing.assert_allclose(second_moment([(features, mask)]), wanted, atol=1e-13)
    halves = [(features[:1], mask[:1]), (features[1:], mask[1:])]
    np.testing.assert_allclose(second_moment(iter(halves)), wanted, atol=1e-13)
    assert second_moment(iter(halves)).dtype == np.float64


@pytest.mark.parametrize("positions", ["tokens", "all"])
def test_the_moment_over_captions_does_not_depend_on_the_batch_size(positions):
    options = {"eos_id": EOS, "positions": positions}
    one = caption_covariance(encode, tokenize, PROMPTS, **options, batch_size=1)
    for batch_size in (2, 3, 5, 64):
        several = caption_covariance(encode, tokenize, PROMPTS, **options, batch_size=batch_size)
        np.testing.assert_allclose(several, one, atol=1e-12)


def test_padding_counts_only_where_all_positions_are_asked_for():
    states = encode(tokenize(PROMPTS)).astype(np.float64)
    every = states.reshape(-1, 5)
    real = np.concatenate([row[: len(p.split()) + 2] for row, p in zip(states, PROMPTS, strict=True)])
    tokens = caption_covariance(encode, tokenize, PROMPTS, eos_id=EOS)
    whole = caption_covariance(encode, tokenize, PROMPTS, eos_id=EOS, positions="all")
    np.testing.assert_allclose(tokens, real.T @ real / len(real), atol=1e-13)
    np.testing.assert_allclose(whole, every.T @ every / len(every), atol=1e-13)
    assert np.max(np.abs(tokens - whole)) > 0.1


def test_the_encoder_sees_one_shape_only():
    shapes = []

    def noted(ids):
        shapes.append(ids.shape)
        return encode(ids)

    caption_covariance(noted, tokenize, PROMPTS, eos_id=EOS, batch_size=2)
    assert shapes == [(2, 12)] * 3


def test_ids_of_two_text_encoders_are_passed_on_as_they_are():
    def both(prompts):
        return np.stack([tokenize(prompts), np.where(tokenize(prompts) == EOS, 0, tokenize(prompts))], axis=1)

    moment = caption_covariance(lambda ids: encode(ids[:, 0]), both, PROMPTS, eos_id=EOS)
    np.testing.assert_array_equal(moment, caption_covariance(encode, tokenize, PROMPTS, eos_id=EOS))


def test_the_inverse_is_of_the_moment_with_its_ridge():
    rng = np.random.default_rng(2)
    moment = np.cov(rng.normal(size=(6, 50)))
    for ridge in (0.0, 1e-6, 1e-2):
        factor = metric_factor(moment, ridge)
        ridged = moment + ridge * np.trace(moment) / 6 * np.eye(6)
        np.testing.assert_allclose(factor @ factor.T @ ridged, np.eye(6), atol=1e-12)
    flat = np.outer(np.ones(6), np.ones(6))
    assert np.isfinite(metric_factor(flat)).all()
    with pytest.raises(MethodError, match="positive definite"):
        metric_factor(flat - 0.5 * np.eye(6))
    with pytest.raises(MethodError, match="finite"):
        metric_factor(flat * np.nan)


def test_a_positive_factor_of_the_moment_changes_no_similarity():
    """Perfusion's s(e) = <e, i*> / <i*, i*> in the metric of the inverse."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(50, 6))
    moment, e, i = rows.T @ rows, rng.normal(size=6), rng.normal(size=6)
    one, ten = (metric_factor(scale * moment) for scale in (1, 10))
    one, ten = one @ one.T, ten @ ten.T
    assert (e @ ten @ i) / (i @ ten @ i) == pytest.approx((e @ one @ i) / (i @ one @ i), abs=1e-6)


def test_a_covariance_comes_back_as_it_was_saved(tmp_path):
    covariance = Covariance(np.cov(np.random.default_rng(4).normal(size=(6, 50))), "0123abcd", 1200, "tokens")
    save_covariance(covariance, tmp_path / "c.safetensors")
    loaded = load_covariance(tmp_path / "c.safetensors", "0123abcd")
    assert loaded[1:] == covariance[1:]
    np.testing.assert_array_equal(loaded.moment, covariance.moment)
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_the_covariance_of_another_text_encoder_is_refused(tmp_path):
    save_covariance(Covariance(np.eye(4), "0123abcd", 10, "all"), tmp_path / "c.safetensors")
    with pytest.raises(MethodError, match="covariance of another text encoder") as error:
        load_covariance(tmp_path / "c.safetensors", "4567")
    assert "0123abcd" in str(error.value) and "4567" in str(error.value) and "c.safetensors" in str(error.value)


def test_files_that_are_no_covariance_are_refused(tmp_path):
    with pytest.raises(MethodError, match="cannot be read"):
        load_covariance(tmp_path / "missing.safetensors", "0123")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(MethodError, match="cannot be read"):
        load_covariance(tmp_path / "damaged.safetensors", "0123")
    save_file({"covariance": np.eye(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(MethodError, match="no covariance"):
        load_covariance(tmp_path / "plain.safetensors", "0123")
    with pytest.raises(MethodError, match="cannot be written"):
        save_covariance(Covariance(np.eye(4), "0123", 10, "all"), tmp_path / "nowhere" / "c.safetensors")
    with pytest.raises(MethodError, match="no token"):
        second_moment([])


def test_the_moment_of_a_trained_text_encoder_inverts(trained):
    factor = metric_factor(trained.moment)
    ridged = trained.moment + 1e-6 * np.trace(trained.moment) / 64 * np.eye(64)
    np.testing.assert_allclose(factor @ factor.T @ ridged, np.eye(64), atol=1e-8)
    padded = caption_covariance(
        trained.encode, trained.tokenize, captions(100), eos_id=trained.eos_id, positions="all", batch_size=100
    )
    assert np.linalg.norm(padded - trained.moment) > 0.1 * np.linalg.norm(trained.moment)
