import jax
import numpy as np
import pytest

from jaxbooth.data.batches import BatchStream, drawn_views
from jaxbooth.data.examples import Examples, joined
from jaxbooth.sharding import MeshConfig, batch_sharding, make_mesh
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


# ---- several subjects in one model, several captions for one view


@pytest.mark.parametrize("parts", [(7,), (3, 5), (1, 6, 2)])
def test_parts_are_drawn_in_equal_shares_whatever_their_sizes(parts):
    count, share = sum(parts), 3 * max(parts)
    drawn = drawn_views(0, 0, 0, 0, share * len(parts), count, parts)
    starts = np.cumsum((0, *parts))
    for part, size in enumerate(parts):
        own = drawn[part :: len(parts)]
        assert ((starts[part] <= own) & (own < starts[part + 1])).all() and len(own) == share
        for epoch in np.split(own[: share // size * size], share // size):  # each has epochs of its own
            assert sorted(epoch) == list(range(starts[part], starts[part + 1]))


def test_parts_of_one_size_have_orders_of_their_own_and_one_part_is_as_none():
    drawn = drawn_views(0, 0, 0, 0, 2 * 20, 40, (20, 20))
    assert list(drawn[::2]) != list(drawn[1::2] - 20)
    np.testing.assert_array_equal(drawn_views(3, 1, 0, 5, 50, 20, (20,)), drawn_views(3, 1, 0, 5, 50, 20))


def test_draws_do_not_depend_on_where_a_step_begins():
    whole = drawn_views(0, 0, 1, 0, 60, 10, (3, 7))
    in_steps = [drawn_views(0, 0, 1, first, 4, 10, (3, 7)) for first in range(0, 60, 4)]
    np.testing.assert_array_equal(np.concatenate(in_steps), whole)


def with_captions(views: int, captions: int, first: int = 0, masks: bool = False, width: int = 5) -> Examples:
    """View i has the texts `10 i, 10 i + 1, ...` (plus `first`), the empty one is -1."""
    plain = examples(views, first)
    ids = np.full((views * captions + 1, 1, width), -1, np.int32)
    ids[:-1, 0, 0] = (first + 10 * np.arange(views)[:, None] + np.arange(captions)).ravel()
    index = np.arange(views * captions).reshape(views, captions)
    mask = np.full((views, 2, 2), first + 1, np.float32) if masks else None
    return Examples(plain.moments, index, Text(input_ids=ids), None, mask)


def seen(stream: BatchStream, steps: int) -> list[tuple[int, int]]:
    """(view, text) of every row."""
    batches = [stream.host_batch(step) for step in range(steps)]
    return [
        (int(view), int(text))
        for batch in batches
        for view, text in zip(views_of(batch), batch.text.input_ids[0, :, 0, 0], strict=True)
    ]


def test_each_view_takes_each_of_its_captions_and_no_other():
    stream = BatchStream([with_captions(4, 3)], None, 4, 0.0, 0, None)
    pairs = seen(stream, 60)
    assert {pair for pair in pairs} == {(view, 10 * view + choice) for view in range(4) for choice in range(3)}
    chosen = np.bincount([text % 10 for _, text in pairs]) / len(pairs)
    np.testing.assert_allclose(chosen, 1 / 3, atol=0.1)
    assert pairs == seen(BatchStream([with_captions(4, 3)], None, 4, 0.0, 0, None), 60)


def test_joined_examples_keep_each_view_s_captions_masks_and_the_empty_caption_last():
    one, other = with_captions(2, 1, masks=True), with_captions(3, 2, first=500)
    both = joined([one, other])
    assert both.parts == (2, 3) and len(both) == 5 and both.text_index.shape == (5, 2)
    texts = both.text.input_ids[:, 0, 0]
    assert texts[both.text_index].tolist() == [[0, 0], [10, 10], [500, 501], [510, 511], [520, 521]]
    assert texts[-1] == -1 and (texts[:-1] != -1).all()
    np.testing.assert_array_equal(both.moments[:, 0, 0, 0], [0, 1, 500, 501, 502])
    np.testing.assert_array_equal(both.masks[:, 0, 0], [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(joined([other, one]).masks[:, 0, 0], [1, 1, 1, 1, 1])
    assert joined([one]) is one


def test_a_step_of_joined_examples_has_each_subject_in_its_share():
    stream = BatchStream([joined([with_captions(2, 1), with_captions(9, 1, first=500)])], None, 4, 0.0, 0, None)
    pairs = seen(stream, 30)
    for step in np.split(np.asarray([view >= 500 for view, _ in pairs]), 30):
        assert step.sum() == 2
    assert {pair for pair in pairs if pair[0] < 500} == {(0, 0), (1, 10)}
    assert len({view for view, _ in pairs}) == 11


def test_caption_dropout_of_joined_examples_takes_the_empty_caption():
    both = joined([with_captions(2, 1), with_captions(3, 2, first=500)])
    stream = BatchStream([both], None, 4, 0.0, 0, None, caption_dropout=1.0)
    assert {text for _, text in seen(stream, 5)} == {-1}


def test_where_one_kind_of_rows_has_masks_all_have():
    instance, prior = with_captions(3, 1, first=4, masks=True), with_captions(2, 1)
    batch = BatchStream([instance], [prior], 2, 1.0, 0, None).host_batch(0)
    np.testing.assert_array_equal(batch.mask[0, :, 0, 0], np.where(batch.is_prior[0], 1.0, 5.0))
    assert BatchStream([prior], [prior], 2, 1.0, 0, None).host_batch(0).mask is None


# ---- what lies on the devices


def all_kinds(mesh, subjects=2) -> BatchStream:
    """Subjects with tables of different lengths, rows of every kind, masks, captions to choose from and to drop."""
    instance = [with_captions(3 + 2 * subject, 2, masks=True) for subject in range(subjects)]
    prior, collages = [with_captions(4, 1, 500)] * subjects, [with_captions(5, 3, 900)] * subjects
    options = {"collages": collages, "collage_share": 0.4, "caption_dropout": 0.3}
    return BatchStream(instance, prior, 4, 0.5, 3, mesh, identities=[(7, 1), (9, 0)][:subjects], **options)


def sized(mesh) -> BatchStream:
    return BatchStream([examples(5, 0, time_ids=True)], [examples(9, 1000, time_ids=True)], 4, 1.0, 0, mesh)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("resident", [True, False])
def test_devices_hold_the_same_bits_as_the_host_wherever_the_tables_lie(sizes, resident, monkeypatch):
    mesh = make_mesh(
        MeshConfig(**dict(zip(("subject", "data", "fsdp"), sizes, strict=True))), jax.devices()[: np.prod(sizes)]
    )
    if not resident:
        monkeypatch.setattr("jaxbooth.data.resident.RESIDENT_BYTES", 0)
    for stream in (all_kinds(mesh), *([sized(mesh)] if mesh.size == 1 else [])):
        assert (stream._resident is not None) == resident
        for step in (0, 1, 17):
            ours, theirs = stream.device_batch(step), stream.host_batch(step)
            assert_equal(jax.tree.map(np.asarray, ours), theirs)
            assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: x.dtype, theirs)
            assert all(leaf.sharding == batch_sharding(mesh) for leaf in jax.tree.leaves(ours))


def test_a_subject_s_rows_are_those_that_it_has_alone_and_every_kind_is_drawn():
    stream = all_kinds(None)
    texts = np.concatenate([stream.host_batch(step).text.input_ids[..., 0, 0] for step in range(20)], axis=1)
    for subject in range(2):
        kinds = {int(text) // 400 for text in texts[subject]}  # -1: the empty one, 0: own, 1: prior, 2: collages
        assert kinds == {-1, 0, 1, 2}
    first = BatchStream(
        stream.instance[:1], stream.prior[:1], 4, 0.5, 3, None, identities=[(7, 1)],
        collages=stream.collages[:1], collage_share=0.4, caption_dropout=0.3,
    )  # fmt: skip
    for step in range(5):
        assert_equal(jax.tree.map(lambda x: x[:1], stream.host_batch(step)), first.host_batch(step))
