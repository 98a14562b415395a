import json
import os
import time

import pytest

from jaxbooth.errors import DataError
from jaxbooth.fleet import leases
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.fleet.upkeep import fleet_status, purge, retry

KEY = content_key({"steps": 10})
OTHER = content_key({"steps": 11})
BAD_DATA = ChildResult(65, "data", "exit code 65; its log ends: no face found", "no face found", 1.0)


@pytest.fixture
def store(tmp_path):
    return OutputStore(tmp_path / "out")


def commit(store, name, key=KEY):
    with store.attempt(name, key) as attempt:
        (attempt.path / "weights.bin").write_bytes(b"weights")
        assert store.commit(attempt, {})


def everything(store) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*")}


def test_the_status_tells_of_every_subject_in_the_order_asked_and_changes_nothing(store):
    commit(store, "done")
    commit(store, "other-key", OTHER)
    commit(store, "damaged")
    (store.folder("damaged", KEY) / "weights.bin").write_bytes(b"cut")
    StrikeBook(store).record([("failed", KEY)], BAD_DATA)
    mine = Leases(store)
    mine.claim("running", KEY)
    mine.claim("stale", KEY)
    file = leases.claims_folder(store) / f"stale-{KEY[:16]}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"expiry": 1.0}))
    before = everything(store)
    names = ["stale", "running", "failed", "damaged", "other-key", "done", "new"]
    found = fleet_status(store, [(name, KEY) for name in names])
    assert [(status.name, status.state, status.detail) for status in found] == [
        ("stale", "missing", ""),
        ("running", "running", mine.owner),
        ("failed", "failed", BAD_DATA.reason),
        ("damaged", "missing", "weights.bin has 3 bytes instead of 7"),
        ("other-key", "missing", ""),
        ("done", "done", ""),
        ("new", "missing", ""),
    ]
    assert everything(store) == before


def test_the_status_of_a_store_that_there_is_not_yet(store):
    assert [status.state for status in fleet_status(store, [("toy", KEY)])] == ["missing"]
    assert not store.root.exists()


def test_a_flipped_bit_is_told_by_a_status_that_verifies(store):
    commit(store, "toy")
    (store.folder("toy", KEY) / "weights.bin").write_bytes(b"weighty")
    assert fleet_status(store, [("toy", KEY)])[0].state == "done"
    (status,) = fleet_status(store, [("toy", KEY)], verify=True)
    assert (status.state, status.detail) == ("missing", "weights.bin was changed: its SHA-256 differs")


def test_retry_gives_failed_subjects_a_new_start(store):
    book = StrikeBook(store)
    for name in ("toy", "cat"):
        book.record([(name, KEY)], BAD_DATA)
    assert retry(store, ["toy", "new"]) == ["toy"]
    assert book.failure("toy", KEY) is None and book.of("toy", KEY) == []
    assert book.failure("cat", KEY) and book.of("cat", KEY)
    assert [status.state for status in fleet_status(store, [("toy", KEY), ("cat", KEY)])] == ["missing", "failed"]


def make_everything_of(store, name):
    """A result, one of another key, a damaged one, an attempt, strikes, FAILED.json and a stale lease."""
    commit(store, name)
    (store.folder(name, KEY) / "weights.bin").write_bytes(b"damaged")
    assert not store.is_done(name, KEY)
    commit(store, name)
    commit(store, name, OTHER)
    attempt = store.attempt(name, KEY)
    (attempt.path / "weights.bin").write_bytes(b"half")
    attempt.close()
    third = content_key({"steps": 12})
    StrikeBook(store).record([(name, third)], BAD_DATA)
    Leases(store).claim(name, KEY)
    file = leases.claims_folder(store) / f"{name}-{KEY[:16]}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"expiry": 1.0}))
    file.with_name(f".{file.name}.0a1b2c3d").write_text("half a le")


def test_a_purge_removes_everything_about_a_subject_and_nothing_about_others(store):
    make_everything_of(store, "toy-big")
    others = everything(store)
    make_everything_of(store, "toy")
    assert len([path for path in everything(store) - others if "toy" in path]) > 10
    assert purge(store, ["toy", "new", "toy"]) == ["toy"]
    assert everything(store) - others == {".fleet/removing"}
    assert everything(store) >= others
    assert purge(store, ["toy"]) == []


def test_a_purge_refuses_while_a_worker_is_at_it_and_names_all_of_them(store):
    for name in ("toy", "cat", "dog"):
        commit(store, name)
    mine = Leases(store)
    mine.claim("toy", OTHER)
    mine.claim("dog", OTHER)
    before = everything(store)
    with pytest.raises(DataError, match=f"toy: {mine.owner}\n  - dog: {mine.owner}\nStop their workers"):
        purge(store, ["toy", "cat", "dog"])
    assert everything(store) == before
    assert purge(store, ["toy", "cat", "dog"], force=True) == ["toy", "cat", "dog"]
    assert mine.renew() == [f"toy-{OTHER[:16]}", f"dog-{OTHER[:16]}"]


def test_a_worker_whose_subject_was_purged_by_force_fails_and_brings_nothing_back(store):
    attempt = store.attempt("toy", KEY)
    (attempt.path / "weights.bin").write_bytes(b"half")
    purge(store, ["toy"], force=True)
    with pytest.raises((OSError, ValueError)):
        store.commit(attempt, {})
    attempt.discard()
    assert not store.of_subject("toy").exists()


@pytest.mark.parametrize("action", [retry, purge])
def test_no_name_can_lead_out_of_the_store(store, action):
    commit(store, "toy")
    with pytest.raises(DataError, match="cannot be a subject's name"):
        action(store, ["toy", "../out"])
    assert store.is_done("toy", KEY)


def test_a_purge_that_was_killed_half_way_is_finished_by_the_next_cleaning(store):
    commit(store, "toy")
    left = store.bookkeeping / "removing" / "abc"
    left.parent.mkdir(parents=True)
    store.of_subject("toy").rename(left)
    os.utime(left, (time.time() - 10,) * 2)
    store.clean_temporary(3600)
    assert not left.exists()
