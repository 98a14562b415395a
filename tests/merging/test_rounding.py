import ml_dtypes
import numpy as np
import pytest

from jaxbooth.merging.rounding import round_for_rows

HALVES = [np.float16, ml_dtypes.bfloat16]


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(10, 320)) * 0.05, rng.normal(size=(8, 320))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_entry_becomes_one_of_its_two_neighbours(dtype):
    weight, rows = problem()
    weight[0, :5] = 0, 0.25, -0.25, 1e-9, -1e-9
    rounded = round_for_rows(weight, rows, dtype)
    assert rounded.dtype == dtype and np.isfinite(rounded.astype(np.float32)).all()
    below, above = (np.nextafter(rounded, np.array(end, dtype)).astype(np.float64) for end in (-np.inf, np.inf))
    assert np.all((below < weight) & (weight < above))


@pytest.mark.parametrize("dtype", HALVES)
def test_outputs_are_kept_ten_times_better_than_by_rounding_to_the_nearest(dtype):
    weight, rows = problem()
    wanted = weight @ rows.T

    def error(rounded):
        return np.max(
            np.linalg.norm(rounded.astype(np.float64) @ rows.T - wanted, axis=0) / np.linalg.norm(wanted, axis=0)
        )

    assert error(round_for_rows(weight, rows, dtype)) < error(weight.astype(dtype)) / 10


def test_single_precision_is_rounded_to_the_nearest():
    weight, rows = problem()
    np.testing.assert_array_equal(round_for_rows(weight, rows, np.float32), weight.astype(np.float32))
