import json

import pytest

from jaxbooth.fleet.child_result import ChildResult, kind_of
from jaxbooth.fleet.keys import content_key, slug
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook

KEY = content_key({"steps": 10})
OTHER = content_key({"steps": 11})


@pytest.fixture
def book(tmp_path):
    return StrikeBook(OutputStore(tmp_path))


def failed(exit_code=1) -> ChildResult:
    return ChildResult(exit_code, kind_of(exit_code), f"exit code {exit_code}", "Traceback\nValueError: bad", 3.0)


def commit(book, name="toy", key=KEY):
    with book.store.attempt(name, key) as attempt:
        (attempt.path / "weights.bin").write_bytes(b"weights")
        assert book.store.commit(attempt, {})


def test_every_subject_of_a_failed_pack_gets_a_strike(book):
    assert book.record([("toy", KEY), ("toy-big", KEY)], failed(139)) == []
    (strike,) = book.of("toy", KEY)
    assert (strike.pack_size, strike.kind, strike.exit_code) == (2, "infra", 139)
    assert strike.log_tail.endswith("ValueError: bad") and strike.host and strike.time > 1e9
    assert book.all() == {slug("toy", KEY): [strike], slug("toy-big", KEY): book.of("toy-big", KEY)}
    assert book.of("toy", OTHER) == []


def test_what_was_committed_before_the_pack_failed_gets_none(book):
    commit(book)
    book.record([("toy", KEY), ("cat", KEY)], failed())
    assert book.of("toy", KEY) == [] and len(book.of("cat", KEY)) == 1
    assert book.of("cat", KEY)[0].pack_size == 2


@pytest.mark.parametrize("exit_code", [0, 75])
def test_success_and_preemption_are_not_counted(book, exit_code):
    assert book.record([("toy", KEY)], failed(exit_code)) == [] and book.all() == {}


@pytest.mark.parametrize(
    ("exit_code", "limit"), [(64, 1), (65, 1), (1, 2), (70, 2), (2, 2), (134, 5), (137, 5), (139, 5)]
)
def test_a_subject_that_fails_alone_often_enough_is_given_up(book, exit_code, limit):
    for _ in range(limit - 1):
        assert book.record([("toy", KEY)], failed(exit_code)) == [] and book.failure("toy", KEY) is None
    assert book.record([("toy", KEY)], failed(exit_code)) == ["toy"]
    failure = json.loads((book.store.root / "toy" / f"{KEY[:16]}.FAILED.json").read_text())
    assert failure == book.failure("toy", KEY)
    assert failure["reason"] == f"exit code {exit_code}" and "ValueError: bad" in failure["log_tail"]
    assert book.failure("toy", OTHER) is None


def test_failures_in_company_give_nobody_up(book):
    for exit_code in (1, 65, 134) * 5:
        assert book.record([("toy", KEY), ("cat", KEY)], failed(exit_code)) == []


def test_a_result_wins_over_having_been_given_up(book):
    book.fail("toy", KEY, "its loss became NaN at step 3")
    assert book.failure("toy", KEY)["reason"] == "its loss became NaN at step 3"
    commit(book)
    assert book.failure("toy", KEY) is None


def test_forgetting_one_subject_leaves_the_one_whose_name_begins_the_same(book):
    members = [("toy", KEY), ("toy", OTHER), ("toy-big", KEY)]
    for member in members:
        book.record([member], failed(65))
    assert book.forget("toy") and not book.forget("toy")
    assert [book.failure(*member) is None for member in members] == [True, True, False]
    assert list(book.all()) == [slug("toy-big", KEY)]


def test_files_that_are_no_strikes_are_passed_over(book, caplog):
    book.record([("toy", KEY)], failed())
    folder = book.store.bookkeeping / "strikes" / slug("toy", KEY)
    (folder / "half.json").write_text('{"pack_size": ')
    (folder / "other.json").write_text('{"pack_size": 1}')
    assert len(book.of("toy", KEY)) == 1 and caplog.text.count("is no strike") == 2


def test_what_is_kept_of_failures_is_private(book):
    book.record([("toy", KEY)], failed(65))
    for path in book.store.root.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
