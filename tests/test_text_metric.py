"""The text metric that ships with the pocket base, and how one is measured, kept and found again."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbooth
from jaxbooth import text_metric as room
from jaxbooth.errors import MethodError
from jaxbooth.merging.captions import captions
from jaxbooth.merging.covariance import caption_covariance, load_covariance, real_tokens, save_covariance
from jaxbooth.nn.key_locked import similarities
from jaxbooth.pipeline import encode_text
from jaxbooth.pocket import BASE, COVARIANCE
from jaxbooth.text_metric import covariance, measure, text_digest, text_metric

COUNT = 600


@pytest.fixture(scope="module")
def pocket():
    return jaxbooth.load_pipeline("pocket")


@pytest.fixture(scope="module")
def measured(pocket):
    return measure(pocket, "some", COUNT)


def apart(one, other) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_the_shipped_covariance_belongs_to_the_shipped_base():
    shipped = load_covariance(COVARIANCE, text_digest(BASE))
    assert (shipped.moment.shape, shipped.captions, shipped.positions) == ((64, 64), 100_000, "tokens")


def test_the_shipped_covariance_is_what_a_part_of_the_captions_says(measured):
    shipped = load_covariance(COVARIANCE, text_digest(BASE)).moment
    assert apart(measured.moment, shipped) < 0.1
    # The same direction stands out as much: what the gate sees of "animal" in other words' states.
    for number in (0, 1, 5):
        ours, theirs = (np.linalg.eigvalsh(moment)[::-1][number] for moment in (measured.moment, shipped))
        assert ours == pytest.approx(theirs, rel=0.1)


def test_cutting_the_padding_off_does_not_change_the_covariance(pocket, measured):
    def whole(ids):
        return np.asarray(encode_text(pocket, ids)[0])

    slow = caption_covariance(whole, pocket.tokenize, captions(COUNT), eos_id=49407, batch_size=300)
    assert apart(measured.moment, slow) < 1e-7
    every = caption_covariance(whole, pocket.tokenize, captions(300), eos_id=49407, batch_size=300, positions="all")
    assert apart(every, slow) > 0.3  # which positions count is no small matter


def test_every_real_token_is_counted_once(pocket):
    ids = pocket.tokenize(captions(70))
    rows = [states[mask] for states, mask in room.text_states(pocket, ids, 49407)]
    assert sum(map(len, rows)) == real_tokens(ids[:, 0], 49407).sum()


def test_the_pocket_base_takes_the_shipped_covariance(pocket, monkeypatch):
    monkeypatch.setattr(room, "measure", lambda *_: pytest.fail("measured"))
    metric = text_metric(pocket, BASE, 500)
    shipped = load_covariance(COVARIANCE, text_digest(BASE)).moment
    assert metric.name == f"{text_digest(BASE)}-100000-tokens"
    factor = np.asarray(metric.factor[...], np.float64)
    np.testing.assert_allclose(factor @ factor.T @ shipped, np.eye(64), atol=1e-2)


def test_similarities_of_float32_are_those_of_float64(pocket):
    """C^-1 of this base has a condition of a million: products with it are off by 2e-5."""
    factor = text_metric(pocket, BASE, 500).factor[...]
    states = pocket.encode_plain(jnp.asarray(pocket.tokenize(["a stuffed animal in the jungle"])))[0][0]
    exact, metric = np.asarray(states, np.float64), np.asarray(factor, np.float64) @ np.asarray(factor, np.float64).T
    dual = exact[3:5] @ metric
    wanted = exact @ dual.T / np.sum(dual * exact[3:5], axis=1)
    np.testing.assert_allclose(similarities(states, states[3:5], factor), wanted, atol=2e-6)


def test_another_base_s_covariance_is_measured_once_and_kept(pocket, measured, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXBOOTH_CACHE", str(tmp_path))
    monkeypatch.setattr(room, "text_digest", lambda base: f"digest of {base.name}")
    calls = []
    monkeypatch.setattr(room, "measure", lambda sd, digest, count: calls.append(count) or measured._replace(
        text_encoder=digest, captions=count))  # fmt: skip
    first = covariance(pocket, tmp_path / "other", 600)
    again = covariance(pocket, tmp_path / "other", 600)
    assert calls == [600]
    np.testing.assert_array_equal(first.moment, again.moment)
    covariance(pocket, tmp_path / "other", 700)
    covariance(pocket, tmp_path / "third", 700)
    assert calls == [600, 700, 700]
    file = tmp_path / "covariance" / "digest of third-700.safetensors"
    save_covariance(measured, file)  # of another text encoder
    with pytest.raises(MethodError, match="covariance of another text encoder"):
        covariance(pocket, tmp_path / "third", 700)


def test_a_model_that_computes_in_bfloat16_has_the_covariance_of_float32(measured):
    half = jaxbooth.load_pipeline("pocket", "bfloat16", param_dtype="float32")
    assert apart(measure(half, "some", COUNT).moment, measured.moment) < 1e-9
    assert half.text_encoders[0].text_model.final_layer_norm.out_dtype == "bfloat16"
