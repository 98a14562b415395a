import jax
import numpy as np
import pytest
from test_batches import INSTANCE, examples, make_stream

from jaxbooth.data import batches
from jaxbooth.data.batches import spread_views
from jaxbooth.data.fixed_rows import FixedRows
from jaxbooth.sharding import MeshConfig, make_mesh

LEVELS = (10, 500)


def mesh_of(data=1, fsdp=1):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp), jax.devices()[: data * fsdp])


def rows_of(count=3, size=5, subject=0, **options):
    """Every row that weighs something: (view, text, timestep, is prior, number, weight)."""
    stream = make_stream(4, mesh=options.pop("mesh", mesh_of()), **options)
    found = list(FixedRows(stream, count, LEVELS, size))
    assert {batch.weights.shape[1] for batch in found} == {size}
    columns = [
        np.concatenate([np.asarray(column(batch))[subject] for batch in found])
        for column in (
            lambda batch: batch.moments[..., 0, 0, 0], lambda batch: batch.text.input_ids[..., 0, 0],
            lambda batch: batch.timesteps, lambda batch: batch.is_prior, lambda batch: batch.rows,
            lambda batch: batch.weights,
        )
    ]  # fmt: skip
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return [row for row in rows if row[-1] > 0]


def test_views_of_each_kind_lie_far_apart_and_stand_at_every_timestep():
    rows = rows_of(caption_dropout=1.0)
    instance, prior = ([row for row in rows if row[3] == kind] for kind in (False, True))
    assert [row[:3] for row in instance] == [(view, view % 3, level) for view in (0, 2, 4) for level in LEVELS]
    # The texts of class pictures lie behind those of the photos, of which there are three and the empty one.
    assert [row[:3] for row in prior] == [(1000 + view, view % 3, level) for view in (0, 4, 8) for level in LEVELS]
    assert len({row[4] for row in rows}) == 12
    assert sum(row[5] for row in instance) == pytest.approx(1) and sum(row[5] for row in prior) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 4, 12, 100])
def test_a_row_is_the_same_in_batches_of_any_size(size):
    assert rows_of(size=size) == rows_of()


def test_a_row_is_the_same_on_any_mesh_and_taken_from_the_host(monkeypatch):
    expected = rows_of(size=8, subjects=2, subject=1)
    assert rows_of(size=8, subjects=2, subject=1, mesh=mesh_of(2, 4)) == expected
    monkeypatch.setattr(batches, "fits", lambda tables, mesh: False)
    assert rows_of(size=8, subjects=2, subject=1) == expected
    assert {row[0] // 100 for row in expected} == {1, 11}


def test_photos_have_the_same_rows_without_a_prior():
    assert rows_of(prior=False) == [row for row in rows_of() if not row[3]]


def test_too_few_views_come_again_under_other_numbers():
    rows = [row for row in rows_of(count=2 * INSTANCE) if not row[3]]
    assert [row[0] for row in rows[::2]] == [view for view in range(INSTANCE) for _ in range(2)]
    assert len({row[4] for row in rows}) == 4 * INSTANCE


def test_pictures_that_are_held_out_are_looked_at_and_never_trained_on():
    stream = {"held_out": [examples(2, 50)]}
    assert {row[0] for row in rows_of(**stream) if not row[3]} == {50, 51}
    trained = make_stream(**stream)
    seen = {int(view) for step in range(30) for view in trained.host_batch(step).moments[0, :, 0, 0, 0]}
    assert seen == set(range(INSTANCE)) | set(range(1000, 1012))
    plain = make_stream()
    for step in range(3):
        jax.tree.map(np.testing.assert_array_equal, trained.host_batch(step), plain.host_batch(step))


def test_subjects_learned_together_have_equal_shares():
    assert spread_views(4, 30, (20, 10)).tolist() == [0, 20, 10, 25]
    assert spread_views(3, 2).tolist() == [0, 0, 1]
