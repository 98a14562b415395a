import fcntl
import os

import pytest
from toy_children import candidates, commit, ended, member_of

from jaxbooth.fleet.pack_folders import begun_pack, note_members, noted_pack, pack_folder, remove_settled
from jaxbooth.fleet.packs import Pack
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook


@pytest.fixture
def store(tmp_path):
    return OutputStore(tmp_path / "out")


def pack_of(store, *subjects, size=4):
    folder = pack_folder(store, [one.key for one in subjects], size)
    note_members(folder, [member_of(one) for one in subjects], size)
    (folder / "checkpoints").mkdir()
    return folder


def test_a_pack_finds_its_folder_again_whatever_the_order_of_its_members(store):
    one, two, three = (subject.key for subject in candidates(3))
    assert pack_folder(store, [one, two], 4) == pack_folder(store, [two, one], 4)
    others = {pack_folder(store, [one, two], 16), pack_folder(store, [one, three], 4), pack_folder(store, [one], 4)}
    assert len(others | {pack_folder(store, [one, two], 4)}) == 4


def test_folders_of_packs_whose_members_are_all_settled_go(store):
    one, two, three, four = candidates(4)
    settled, open_pack, held = pack_of(store, one, two), pack_of(store, two, three), pack_of(store, one, four)
    commit(store, one.name, one.key)
    StrikeBook(store).fail(two.name, two.key, "no face found")
    commit(store, four.name, four.key)
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (store.bookkeeping / "packs" / "nothing-noted").mkdir()
    assert remove_settled(store, StrikeBook(store)) == [settled]
    assert not settled.exists() and open_pack.is_dir() and held.is_dir()
    os.close(descriptor)
    assert remove_settled(store, StrikeBook(store)) == [held]
    assert noted_pack(open_pack) == ([member_of(two), member_of(three)], 4)


def test_a_pack_that_was_begun_is_found_as_long_as_the_rest_of_it_is_done(store):
    one, two, three, four = wanted = candidates(4)
    assert begun_pack(store, wanted, {}, 16) is None
    folder = pack_of(store, one, two, three, size=16)
    assert begun_pack(store, wanted, {}, 16) == (Pack((one, two, three), 16), folder)
    assert begun_pack(store, wanted, {}, 4) is None  # packs are to be smaller now
    assert begun_pack(store, [one, two, four], {}, 16) is None  # the third is somebody else's, or not wanted any more
    StrikeBook(store).fail(three.name, three.key, "training broke down")
    assert begun_pack(store, [one, two, four], {}, 16) == (Pack((one, two), 16), folder)
    commit(store, two.name, two.key)
    assert begun_pack(store, [one, four], {}, 16) == (Pack((one,), 16), folder)
    assert begun_pack(store, [four], {}, 16) is None


def test_a_pack_that_failed_is_not_gone_on_with_but_divided(store):
    one, two, three = wanted = candidates(3)
    folder, book = pack_of(store, *wanted), StrikeBook(store)
    members = [(subject.name, subject.key) for subject in wanted]
    book.record(members, ended(137))
    assert begun_pack(store, wanted, book.all(), 16) == (Pack(tuple(wanted), 4), folder), "a kill is nobody's fault"
    book.record(members[1:2], ended(1))
    assert begun_pack(store, wanted, book.all(), 16) is None
