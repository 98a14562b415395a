import jax
import numpy as np
import pytest

from jaxbooth.data.batches import BatchStream, drawn_views
from jaxbooth.data.examples import Examples
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.types import Text

INSTANCE, PRIOR = 7, 12  # views


def examples(views, first, captions=3, time_ids=False):
    """Views that can be told apart: the first moment of view i is `first + i`, its text's first id too."""
    moments = np.zeros((views, 2, 2, 8), np.float32)
    moments[:, 0, 0, 0] = first + np.arange(views)
    input_ids = np.zeros((captions + 1, 1, 5), np.int32)
    input_ids[:, 0, 0] = np.arange(captions + 1)
    sizes = np.full((views, 6), first, np.float32) if time_ids else None
    return Examples(moments, np.arange(views)[:, None] % captions, Text(input_ids=input_ids), sizes)


def make_stream(batch_size=4, prior=True, subjects=1, seed=0, mesh=None, **options):
    return BatchStream(
        instance=[examples(INSTANCE, 100 * subject) for subject in range(subjects)],
        prior=[examples(PRIOR, 1000 + 100 * subject) for subject in range(subjects)] if prior else None,
        batch_size=batch_size,
        prior_weight=options.pop("prior_weight", 0.5),
        seed=seed,
        mesh=mesh,
        **options,
    )


def views_of(batch, subject=0):
    return batch.moments[subject, :, 0, 0, 0].astype(int)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_batch_is_a_function_of_the_step_alone():
    in_order = [make_stream().host_batch(step) for step in range(12)]
    stream = make_stream()
    for step in np.random.default_rng(0).permutation(12):
        assert_equal(stream.host_batch(int(step)), in_order[step])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_every_view_comes_once_per_epoch(batch_size):
    stream = make_stream(batch_size)
    steps = [stream.host_batch(step) for step in range(3 * INSTANCE * PRIOR)]
    for is_prior, count, first in ((False, INSTANCE, 0), (True, PRIOR, 1000)):
        seen = np.concatenate([views_of(batch)[batch.is_prior[0] == is_prior] for batch in steps])
        epochs = seen[: len(seen) // count * count].reshape(-1, count)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(first + np.arange(count), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs}) > len(epochs) // 2  # each in an order of its own


def test_order_depends_on_seed_subject_and_kind():
    orders = {
        (seed, subject, kind): tuple(drawn_views(seed, subject, kind, 0, 20, 20))
        for seed in (0, 1)
        for subject in (0, 1)
        for kind in (0, 1)
    }
    assert len(set(orders.values())) == 8


def test_weights_sum_to_one_and_to_the_prior_weight():
    for prior_weight in (0.25, 1.0):
        batch = make_stream(prior_weight=prior_weight).host_batch(3)
        assert batch.weights.dtype == np.float32
        np.testing.assert_allclose(batch.weights[~batch.is_prior].sum(), 1.0, rtol=1e-6)
        np.testing.assert_allclose(batch.weights[batch.is_prior].sum(), prior_weight, rtol=1e-6)


def test_without_prior_all_rows_are_instance_rows():
    stream = make_stream(prior=False)
    batch = stream.host_batch(0)
    assert stream.rows == 4 and batch.moments.shape == (1, 4, 2, 2, 8)
    assert not batch.is_prior.any() and (batch.weights == 0.25).all()


def test_subjects_are_stacked_and_rows_are_numbered():
    batch = make_stream(subjects=2).host_batch(5)
    assert batch.moments.shape == (2, 8, 2, 2, 8) and batch.text.input_ids.shape == (2, 8, 1, 5)
    np.testing.assert_array_equal(batch.rows, np.tile(np.arange(8), (2, 1)))
    assert set(views_of(batch, 1)[~batch.is_prior[1]]) <= set(range(100, 100 + INSTANCE))


def test_text_and_time_ids_belong_to_their_view():
    stream = BatchStream(
        [examples(INSTANCE, 0, time_ids=True)], [examples(PRIOR, 1000, time_ids=True)], 4, 1.0, 0, None
    )
    for step in range(5):
        batch = stream.host_batch(step)
        first = np.where(batch.is_prior[0], 1000, 0)
        np.testing.assert_array_equal(batch.text.input_ids[0, :, 0, 0], (views_of(batch) - first) % 3)
        np.testing.assert_array_equal(batch.time_ids[0, :, 0], first)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 2, 4), (1, 1, 8), (2, 4, 1)])
def test_every_device_gets_instance_and_prior_rows(sizes):
    mesh = make_mesh(MeshConfig(**dict(zip(("subject", "data", "fsdp"), sizes, strict=True))))
    stream = make_stream(batch_size=8, subjects=2, mesh=mesh)
    batch = stream.device_batch(2)
    assert_equal(jax.tree.map(np.asarray, batch), stream.host_batch(2))
    assert len(batch.is_prior.addressable_shards) == 8
    for shard in batch.is_prior.addressable_shards:
        assert shard.data.size == 2 * 8 * 2 // 8  # subjects x rows x kinds, spread
        assert np.asarray(shard.data).mean() == 0.5


def test_caption_dropout_takes_its_share_of_instance_rows_and_no_prior_rows():
    stream = make_stream(batch_size=50, caption_dropout=0.3)
    plain = make_stream(batch_size=50)
    dropped, steps = [], 40
    for step in range(steps):
        batch = stream.host_batch(step)
        ids = batch.text.input_ids[0, :, 0, 0]
        dropped.append((ids == 3)[~batch.is_prior[0]])
        assert (ids != 3)[batch.is_prior[0]].all()
        np.testing.assert_array_equal(batch.moments, plain.host_batch(step).moments)
    dropped = np.concatenate(dropped)
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(dropped))
    assert_equal(make_stream(batch_size=50, caption_dropout=0.3).host_batch(7), stream.host_batch(7))
    everything = make_stream(caption_dropout=1.0).host_batch(0)
    assert (everything.text.input_ids[0, :, 0, 0] == 3).sum() == 4
