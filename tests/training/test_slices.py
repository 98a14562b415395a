"""Several slices: rows or subjects are spread over them, and weights only if nothing else divides."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from jaxbooth.sharding import arrange_slices


def devices_of(slices: int, each: int) -> list[SimpleNamespace]:
    """Stand-ins, in an order that mixes the slices."""
    found = [
        SimpleNamespace(slice_index=i % slices, id=i, process_index=i, platform="cpu", device_kind="cpu")
        for i in range(slices * each)
    ]
    return found[::2] + found[1::2]


def slices_of(grid: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda device: device.slice_index)(grid)


@pytest.mark.parametrize("sizes", [(1, 2, 4), (1, 4, 2), (1, 8, 1), (3, 2, 4)])
def test_weights_are_spread_inside_of_a_slice_and_rows_between_slices(sizes):
    grid = arrange_slices(sizes, devices_of(2, np.prod(sizes) // 2), 2)
    where = slices_of(grid)
    assert grid.shape == sizes and len({device.id for device in grid.flat}) == grid.size
    assert (where == where[:1, :, :1]).all() and set(where[0, :, 0]) == {0, 1}


def test_subjects_are_spread_between_slices_where_they_divide():
    where = slices_of(arrange_slices((2, 2, 2), devices_of(2, 4), 2))
    assert (where == where[:, :1, :1]).all() and set(where[:, 0, 0]) == {0, 1}


def test_weights_that_must_cross_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        where = slices_of(arrange_slices((1, 1, 8), devices_of(2, 4), 2))
    assert where.ravel().tolist() == [0] * 4 + [1] * 4
    assert "neither mesh.subject 1 nor mesh.data 1 divides over 2 slices" in caplog.text
