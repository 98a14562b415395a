"""The driver with children that train nothing: every subject is settled exactly once, whatever dies on the way."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from toy_children import Children, candidates, check_all_settled, claims, commit, driver, ended, member_of

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet import driver as driver_module
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.driver import Outcome
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.pack_folders import note_members, pack_folder
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.fleet.upkeep import retry


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting, and nothing that has to survive the machine."""
    monkeypatch.setattr(driver_module, "POLL_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path):
    return OutputStore(tmp_path / "out")


def struck(store, wanted) -> set[str]:
    return {one.name for one in wanted if StrikeBook(store).of(one.name, one.key)}


# ---- what is run


def test_every_subject_gets_one_result_and_a_second_run_does_nothing(store):
    wanted, children = candidates(43), Children(store)
    assert driver(store, wanted, children).run() == Outcome(43, (), False)
    check_all_settled(store, wanted)
    # 11 are less than three quarters of 16, and 3 are three quarters of 4.
    assert [(size, len(names)) for size, names in children.packs()] == [(16, 16), (16, 16), (4, 4), (4, 4), (4, 3)]
    assert set(children.trained.values()) == {1} and not list((store.bookkeeping / "jobs").iterdir())
    again = Children(store)
    assert driver(store, wanted, again).run() == Outcome(43, (), False) and not again.jobs


def test_a_process_trains_several_packs_of_one_program(store):
    wanted, children = candidates(75), Children(store)
    driver(store, wanted, children, packs_per_process=3).run()
    assert [[size for size, _ in job] for job in children.jobs] == [[16, 16, 16], [16], [4, 4, 4]]
    check_all_settled(store, wanted)


def test_several_processes_at_once_all_get_something_to_do(store):
    wanted, children = candidates(8 * 16), Children(store, places=4)
    driver(store, wanted, children, packs_per_process=4).run()
    assert [len(job) for job in children.jobs] == [2, 2, 2, 2]
    check_all_settled(store, wanted)


def test_a_job_says_all_that_its_process_must_know(store):
    (one,), seen = candidates(1), []
    children = Children(store, before=lambda files: seen.append(json.loads(files.job.read_text())))
    driver(store, [one], children).run()
    (job,) = seen
    assert job["packs"] == [{"members": [{"subject": {"name": one.name}, "key": one.key}], "size": 1}]
    assert job["config"] == {"steps": 1} and job["out"] == str(store.root) and job["step_file"].endswith("/step")


def test_a_damaged_result_is_made_again(store):
    wanted = candidates(5)
    driver(store, wanted, Children(store)).run()
    hurt = wanted[3]
    (store.folder(hurt.name, hurt.key) / "weights.bin").write_bytes(b"SUBJECT-003")  # the size is right
    children = Children(store)
    assert driver(store, wanted, children).run().done == 5
    assert children.packs() == [(1, [hurt.name])] and store.is_done(hurt.name, hurt.key)


# ---- failures


@pytest.mark.parametrize(("code", "runs"), [(1, 13), (65, 8), (139, 25)])
@pytest.mark.parametrize("packs_per_process", [1, 4])
def test_poison_subjects_are_given_up_alone_and_all_others_are_done(store, code, runs, packs_per_process):
    wanted = candidates(64)
    poison = {"subject-007": code, "subject-040": code}
    children = Children(store, poison)
    outcome = driver(store, wanted, children, packs_per_process).run()
    assert outcome == Outcome(62, ("subject-007", "subject-040"), False)
    check_all_settled(store, wanted, set(poison))
    for one in wanted:
        if one.name in poison:
            assert f"Error {code}" in StrikeBook(store).failure(one.name, one.key)["log_tail"]
            assert children.trained[one.name] <= runs
    again = Children(store)
    assert driver(store, wanted, again).run() == outcome and not again.jobs


def test_poison_in_every_pack_is_no_fault_of_the_machine(store):
    wanted = candidates(64)
    poison = dict.fromkeys(("subject-001", "subject-017", "subject-033", "subject-049"), 1)
    assert driver(store, wanted, Children(store, poison)).run() == Outcome(60, tuple(poison), False)
    check_all_settled(store, wanted, set(poison))


def test_a_fault_of_all_packs_ends_the_fleet_before_anybody_is_given_up(store):
    wanted, children = candidates(64), Children(store, {one.name: 1 for one in candidates(64)})
    with pytest.raises(JaxboothError, match="(?s)exit code 1; its log ends: Error 1.*no single subject's fault"):
        driver(store, wanted, children).run()
    assert len(children.jobs) <= 6 and not list(store.root.glob("*/*.FAILED.json")) and not claims(store)
    # The fault is mended: those that had failed are tried again as they are, even without `retry`.
    assert driver(store, wanted, Children(store)).run() == Outcome(64, (), False)


def test_machines_that_kill_everything_end_the_fleet_as_well(store):
    wanted, children = candidates(64), Children(store, {one.name: 134 for one in candidates(64)})
    with pytest.raises(JaxboothError, match="killed by SIGABRT"):
        driver(store, wanted, children).run()
    given_up = [file.parent.name for file in store.root.glob("*/*.FAILED.json")]
    assert len(given_up) <= 3
    assert retry(store, given_up) == given_up
    assert driver(store, wanted, Children(store)).run() == Outcome(64, (), False)


def test_when_one_job_ends_the_fleet_the_others_may_save(store):
    wanted, told = candidates(64), []

    def before(files):
        if len(children.jobs) - len(children.given) <= 3:
            return ended(1)
        told.append(files.stop.exists())
        return ended(75)

    children = Children(store, places=4, before=before)
    with pytest.raises(JaxboothError):
        driver(store, wanted, children).run()
    assert told and all(told) and len(children.jobs) <= 7


def test_the_pack_that_was_at_work_is_blamed_and_no_other(store):
    wanted = candidates(12)
    children = Children(store, {"subject-005": 1}, before=lambda files: ended(0) if len(children.jobs) > 1 else None)
    with pytest.raises(JaxboothError):  # from the second job on nothing is done
        driver(store, wanted, children, packs_per_process=3, sizes=(1, 4)).run()
    assert [len(job) for job in children.jobs][:2] == [3, 1]
    done = {one.name for one in wanted if store.is_done(one.name, one.key)}
    assert done == {"subject-000", "subject-001", "subject-002", "subject-003"}
    first = [StrikeBook(store).of(one.name, one.key)[:1] for one in wanted[4:8]]
    assert all(strikes[0].exit_code == 1 and strikes[0].pack_size == 4 for strikes in first)


def test_a_pack_that_was_still_being_written_is_under_suspicion_too(store):
    """A process that dies while it trains the second pack can die of the first one's results."""
    wanted, bad = candidates(8), "subject-002"

    def before(files):
        packs = json.loads(files.job.read_text())["packs"]
        names = [[member["subject"]["name"] for member in pack["members"]] for pack in packs]
        if bad not in sum(names, []):
            return None
        files.pack.write_text(str(min(len(packs) - 1, 1)))
        for member in (member for pack in packs for member in pack["members"]):
            if member["subject"]["name"] < bad:
                commit(store, member["subject"]["name"], member["key"])
        return ended(139)

    assert driver(store, wanted, Children(store, before=before), 2, sizes=(1, 4)).run() == Outcome(7, (bad,), False)
    check_all_settled(store, wanted, {bad})


def test_results_that_were_committed_before_the_process_died_count(store):
    wanted = candidates(4)

    def before(files):
        for one in wanted[:3]:
            commit(store, one.name, one.key)
        return ended(1) if len(children.jobs) == 1 else None

    children = Children(store, before=before)
    assert driver(store, wanted, children).run() == Outcome(4, (), False)
    assert children.packs() == [(4, [one.name for one in wanted]), (1, ["subject-003"])]
    assert struck(store, wanted) == {"subject-003"}


def test_a_process_that_ends_well_without_a_result_is_not_run_for_ever(store):
    wanted, children = candidates(2), Children(store, before=lambda files: ended(0))
    assert driver(store, wanted, children).run() == Outcome(0, ("subject-000", "subject-001"), False)
    assert "left no result" in StrikeBook(store).failure(wanted[0].name, wanted[0].key)["reason"]


def test_preempted_jobs_are_run_again_and_nobody_remembers(store):
    wanted, children = (
        candidates(8),
        Children(store, before=lambda files: ended(75) if len(children.jobs) < 9 else None),
    )
    assert driver(store, wanted, children).run() == Outcome(8, (), False)
    assert not struck(store, wanted) and len(children.jobs) >= 9


def test_a_machine_that_goes_away_does_not_stop_the_fleet(store):
    """A supervisor that was told to stop says so; that is about its machine."""
    gone = ChildResult(75, "preempted", "stopped at step 3", "", 1.0, stopped=True)
    children = Children(store, before=lambda files: gone if len(children.jobs) == 1 else None)
    assert driver(store, candidates(4), children).run() == Outcome(4, (), False)


# ---- stopping


def test_when_asked_to_stop_jobs_are_told_and_nothing_new_begins(store):
    wanted, asked, told = candidates(96), threading.Event(), []

    def before(files):
        told.append(files.stop.exists())
        if told == [False]:
            asked.set()
            return None
        return ended(75)

    children = Children(store, places=3, before=before)
    assert driver(store, wanted, children, should_stop=asked.is_set).run() == Outcome(16, (), True)
    assert told == [False, True, True] and len(children.jobs) == 3 and not claims(store)
    assert driver(store, wanted, Children(store)).run() == Outcome(96, (), False)


def test_one_that_is_asked_before_it_begins_starts_nothing(store):
    children = Children(store)
    assert driver(store, candidates(4), children, should_stop=lambda: True).run() == Outcome(0, (), True)
    assert not children.jobs


def test_a_pack_that_was_begun_is_gone_on_with_though_others_would_be_formed_now(store):
    wanted = candidates(20)
    begun = [wanted[3], wanted[9], wanted[17], wanted[18]]
    folder = pack_folder(store, [one.key for one in begun], 16)
    note_members(folder, [member_of(one) for one in begun], 16)
    commit(store, begun[0].name, begun[0].key)  # it had begun to write
    jobs = []
    children = Children(store, before=lambda files: jobs.append(json.loads(files.job.read_text())["packs"]))
    assert driver(store, wanted, children).run() == Outcome(20, (), False)
    assert jobs[0] == [{"members": [member_of(one) for one in begun[1:]], "size": 16, "begun": str(folder)}]
    assert [(size, len(names)) for size, names in children.packs()] == [(16, 3), (16, 16)] and "begun" not in jobs[1][0]
    assert not folder.exists()


# ---- several drivers, and drivers that die


class Died(BaseException):
    pass


@pytest.mark.parametrize("places", [1, 3])
def test_children_and_drivers_that_die_at_random_lose_nothing(store, places):
    wanted, dice = candidates(60), random.Random(places)
    poison = {"subject-011": 1, "subject-031": 139}

    def before(files):
        if dice.random() < 0.15:
            raise Died
        if dice.random() < 0.2:
            return ended(137)
        if dice.random() < 0.3:  # in the middle of committing
            packs = json.loads(files.job.read_text())["packs"]
            for member in packs[0]["members"]:
                if member["subject"]["name"] not in poison and dice.random() < 0.5:
                    commit(store, member["subject"]["name"], member["key"])
            return ended(-9)
        return None

    deaths, outcome = 0, None
    while outcome is None and deaths < 200:
        try:
            outcome = driver(store, wanted, Children(store, poison, places, before), packs_per_process=2).run()
        except Died:
            deaths += 1
    assert deaths > 0 and outcome == Outcome(58, tuple(poison), False)
    check_all_settled(store, wanted, set(poison))


def test_two_driver_processes_that_are_killed_and_started_again_lose_nothing(store, tmp_path):
    wanted, dice = candidates(60), random.Random(0)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    program = [sys.executable, str(Path(__file__).with_name("driver_program.py")), str(store.root), str(len(wanted))]

    def start(name):
        return subprocess.Popen([*program, name], env=env, stdout=subprocess.PIPE, text=True)

    for life in range(3):
        both = [start(f"{life}-{number}") for number in range(2)]
        before = len(list(store.root.glob("*/*/DONE.json")))
        while len(list(store.root.glob("*/*/DONE.json"))) == before and None in [one.poll() for one in both]:
            time.sleep(0.01)
        time.sleep(dice.random() / 10)
        for one in both:
            one.kill()
            one.communicate()
    said = [one.communicate()[0] for one in [start("last"), start("other")]]
    assert said == ["59 subject-005\n"] * 2
    for left in store.root.glob("*/.tmp-*"):  # of those that were killed while they wrote
        left.rename(tmp_path / left.name)
    check_all_settled(store, wanted, {"subject-005"})


def test_two_drivers_share_the_work_and_do_nothing_twice(store):
    wanted, together = candidates(64), threading.Barrier(2)

    def begins_with_the_other():
        begun = []

        def before(files):
            if not begun:
                begun.append(files)
                together.wait(60)
            time.sleep(0.02)

        return before

    both = [Children(store, by=name, before=begins_with_the_other()) for name in ("one", "two")]
    outcomes, threads = [], []
    for children in both:
        run = driver(store, wanted, children, sizes=(1, 4)).run
        threads.append(threading.Thread(target=lambda run=run: outcomes.append(run())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Outcome(64, (), False)] * 2
    check_all_settled(store, wanted)
    assert max((both[0].trained + both[1].trained).values()) == 1
    assert min(len(children.jobs) for children in both) > 3, "one waited while the other worked"


def test_a_driver_takes_what_others_leave_in_the_size_that_fits(store):
    wanted, other = candidates(32), Leases(store)
    for one in wanted[3:16]:
        assert other.claim(one.name, one.key)
    children = Children(store)
    free = [one for one in wanted if one not in wanted[3:16]]

    def finish():  # the other one comes to its end
        while not all(store.is_done(one.name, one.key) for one in free):
            time.sleep(0.01)
        for one in wanted[3:16]:
            commit(store, one.name, one.key, by="other")
            other.release(one.name, one.key)

    thread = threading.Thread(target=finish)
    thread.start()
    assert driver(store, wanted, children).run() == Outcome(32, (), False)
    thread.join()
    assert [(size, len(names)) for size, names in children.packs()] == [(4, 3), (16, 16)]
    check_all_settled(store, wanted)


def test_a_worker_that_wakes_up_after_its_lease_is_over_loses_to_the_one_that_took_its_place(store):
    wanted, second = candidates(4), Children(store, by="second")

    def sleep(files):
        for file in claims(store):  # of another host, and long over
            file.write_text(json.dumps(json.loads(file.read_text()) | {"expiry": 1.0, "host": "elsewhere"}))
        assert driver(store, wanted, second).run() == Outcome(4, (), False)

    first = Children(store, by="first", before=sleep)
    assert driver(store, wanted, first).run() == Outcome(4, (), False)
    check_all_settled(store, wanted)
    assert {store.facts(one.name, one.key)["by"] for one in wanted} == {"second"}
    assert first.trained == second.trained


def test_leases_are_given_back_when_the_driver_breaks(store):
    def broken(files):
        raise Died

    with pytest.raises(Died):
        driver(store, candidates(20), Children(store, before=broken)).run()
    assert not claims(store)
