import random

import pytest

from jaxbooth.errors import ConfigError
from jaxbooth.fleet.keys import content_key, slug
from jaxbooth.fleet.packs import FILLED, Candidate, allowed_size, form_packs, shard, weight
from jaxbooth.fleet.strikes import Strike

SIZES = (1, 4, 16, 64)
KEY = content_key({"steps": 10})


def strike(kind="broken", pack_size=64) -> Strike:
    return Strike(pack_size, kind, 1, "", "", 0.0, "host")


def candidates(number: int, shape=None, prefix="subject") -> list[Candidate]:
    return [Candidate(f"{prefix}-{index:03}", KEY, shape) for index in range(number)]


def struck(subjects, *strikes: Strike) -> dict[str, list[Strike]]:
    return {slug(subject.name, subject.key): list(strikes) for subject in subjects}


def cut(packs) -> list[tuple[int, int]]:
    """Real subjects and size of every pack."""
    return [(len(pack.members), pack.size) for pack in packs]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, []),
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 1)]),
        (3, [(3, 4)]),
        (11, [(4, 4), (4, 4), (3, 4)]),
        (12, [(12, 16)]),
        (17, [(16, 16), (1, 1)]),
        (47, [(16, 16), (16, 16), (15, 16)]),
        (48, [(48, 64)]),
        (64, [(64, 64)]),
        (131, [(64, 64), (64, 64), (3, 4)]),
    ],
)
def test_packs_are_split_rather_than_padded(number, expected):
    assert cut(form_packs(candidates(number), SIZES, {})) == expected


@pytest.mark.parametrize("sizes", [(1, 4, 16, 64), (8, 32), (1,), (64,), (1, 3, 48)])
def test_every_subject_is_in_one_pack_and_padding_stays_small(sizes):
    for number in range(1, 200):
        packs = form_packs(candidates(number), sizes, {})
        assert sorted(member.name for pack in packs for member in pack.members) == [
            subject.name for subject in candidates(number)
        ]
        for pack in packs:
            assert pack.size in sizes and len(pack.members) <= pack.size
            assert len(pack.members) >= FILLED * pack.size or pack.size == min(sizes)


def test_packs_do_not_depend_on_the_order_of_the_subjects():
    subjects = candidates(100) + candidates(30, (512, 512), "wide")
    strikes = struck(subjects[::3], strike(), strike())
    expected = form_packs(subjects, SIZES, strikes)
    for seed in range(5):
        shuffled = random.Random(seed).sample(subjects, len(subjects))
        assert form_packs(shuffled, SIZES, strikes) == expected


def test_a_pack_has_one_shape():
    packs = form_packs(candidates(40, "a", "x") + candidates(40, ("b", 2), "y"), SIZES, {})
    assert len(packs) == 8 and all({member.shape for member in pack.members} == {pack.shape} for pack in packs)


@pytest.mark.parametrize("sizes", [(), (0, 4), (-1,)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ConfigError, match="pack sizes"):
        form_packs(candidates(3), sizes, {})


def test_the_allowed_size_is_halved_from_the_second_strike_on_until_a_subject_is_alone():
    assert [allowed_size(number, 64) for number in range(10)] == [64, 64, 32, 16, 8, 4, 2, 1, 1, 1]
    assert [allowed_size(number, 48) for number in range(8)] == [48, 48, 24, 12, 6, 3, 1, 1]


def test_infra_counts_for_half_and_bad_data_divides_a_pack_at_once():
    assert [weight([strike("infra")] * number) for number in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [weight([strike("data")] * number) for number in range(3)] == [0, 2, 3]
    assert weight([strike("broken"), strike("infra"), strike("infra"), strike("data")]) == 4


def test_subjects_with_strikes_do_not_shrink_the_packs_of_the_others():
    subjects = candidates(80)
    packs = form_packs(subjects, SIZES, struck(subjects[:16], strike(), strike()))
    assert cut(packs) == [(64, 64), (16, 16)]
    assert set(packs[1].members) == set(subjects[:16])


def test_the_most_suspicious_subjects_are_put_together():
    subjects = candidates(128)
    packs = form_packs(subjects, SIZES, struck(subjects[1::2], strike()))
    assert set(packs[0].members) == set(subjects[1::2])


def test_shards_are_a_partition_that_each_name_decides_alone():
    names = [subject.name for subject in candidates(1000)]
    shards = [shard(names, index, 7) for index in range(7)]
    assert sorted(sum(shards, [])) == names
    assert all(100 < len(part) < 190 for part in shards)
    assert [set(part) & set(names[:10]) for part in shards] == [set(shard(names[:10], index, 7)) for index in range(7)]
    assert shard(names, 0, 1) == names


@pytest.mark.parametrize(("index", "count"), [(7, 7), (-1, 7), (0, 0)])
def test_a_shard_that_there_is_not_is_refused(index, count):
    with pytest.raises(ConfigError, match="shard"):
        shard(["a"], index, count)
