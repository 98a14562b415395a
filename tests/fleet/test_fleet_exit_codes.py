"""`jaxbooth fleet work|status|retry|purge` in this process: exit codes, and what is said."""

import os
import shutil
import signal
import sys
import time

import pytest
from small_fleets import write_fleet, write_manifest
from toy_children import Children, ended, member_of

from jaxbooth import cli, fleet_run
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.pack_folders import note_members, pack_folder
from jaxbooth.fleet.packs import Candidate
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet_run import open_fleet

NAMES = ["rex", "tom", "ann"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fleet(tmp_path, NAMES)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxbooth", "fleet", *map(str, arguments)])
        capsys.readouterr()
        return cli._run(), *capsys.readouterr()

    return run


@pytest.fixture
def children(folder, monkeypatch):
    """What the command starts in place of processes."""
    children = Children(OutputStore(folder / "out"))
    monkeypatch.setattr(fleet_run, "Serial", lambda asked: children)
    return children


WORK = ("work", "subjects.yaml", "--config", "config.yaml", "--out", "out", "--pack-size", 4)


def test_exit_codes_tell_done_given_up_and_stopped(folder, call, children):
    children.poison = {"tom": 65}
    code, out, err = call(*WORK)
    assert code == 3 and "2 of 3 subjects done: out/index.html" in out and "given up: tom" in out, err
    assert call(*WORK)[0] == 3  # nothing is tried again by itself
    code, out, _ = call("status", "out", "--failed", "--verify")
    assert code == 0 and out.splitlines() == [
        "2 done, 0 running, 0 missing, 1 failed", "tom: exit code 65; its log ends: Error 65"
    ]  # fmt: skip
    children.poison = {}
    assert call("retry", "out") == (0, "tom\n", "") and call("retry", "out") == (0, "", "")
    assert call("status", "out")[1] == "2 done, 0 running, 1 missing, 0 failed\n"
    assert call(*WORK)[0] == 0
    (folder / "photos" / "rex" / "0.txt").write_text("changed")
    children.before = lambda files: os.kill(os.getpid(), signal.SIGTERM) or ended(75)
    code, out, _ = call(*WORK)
    assert code == 75 and "2 of 3 subjects done" in out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_interrupt_does_not_wait(folder, call, children):
    def interrupt(files):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    children.before = interrupt
    assert call(*WORK)[0] == 130
    assert not list((folder / "out" / ".fleet" / "claims").glob("*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_bad_manifest_is_refused_with_all_its_problems_and_no_traceback(folder, call):
    write_manifest(folder / "subjects.yaml", NAMES, rex={"images": "../elsewhere"}, tom={"stepz": 3}, ann={"seed": -1})
    code, out, err = call(*WORK)
    assert code == 2 and not out and "Traceback" not in err and "3 problems, nothing was started" in err
    for said in ("leads out of", "stepz is not a field", "seed: must be 0 or more"):
        assert said in err.replace("'", "")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("work", "none.yaml", "--config", "config.yaml", "--out", "out"), "none.yaml"),
        (("work", "subjects.yaml", "--config", "none.yaml", "--out", "out"), "no such configuration file"),
        (("work", "subjects.yaml", "--config", "config.yaml"), "--out"),
        ((*WORK[:-1], 0), "--pack-size"),
        ((*WORK, "trian.steps=3"), "Did you mean"),
        ((*WORK, "method={type: dreambooth}"), "Set --pack-size 1"),
        ((*WORK, "--shard", 2, "--num-shards", 2), "shard 2 of 2"),
        (("status", "nowhere"), "is no fleet's folder"),
        (("retry", "nowhere"), "is no fleet's folder"),
        (("purge", "out", "../rex"), "cannot be a subject's name"),
    ],
)
def test_bad_input_exits_with_2(folder, call, arguments, said):
    code, _, err = call(*arguments)
    assert code == 2 and said in err and "Traceback" not in err


def test_after_a_purge_nothing_names_the_subject(folder, call, children):
    children.poison = {"ann": 1}
    out, store = folder / "out", OutputStore(folder / "out")
    fleet = open_fleet(folder / "subjects.yaml", folder / "config.yaml")
    assert call(*WORK)[0] == 3
    key, ann = fleet.keys["rex"], fleet.keys["ann"]
    # What else can lie about: an attempt, a damaged result, a pack, a job, a lease, what a killed process left.
    store.attempt("rex", key).close()
    shutil.copytree(store.folder("rex", key), store.of_subject("rex") / f".bad-{key[:16]}-0")
    members = [member_of(Candidate("rex", key)), member_of(Candidate("ann", ann))]
    packs = [pack_folder(store, keys, 4) for keys in ([key, ann], [ann])]
    for pack, these in zip(packs, (members, members[1:]), strict=True):
        note_members(pack, these, 4)
    (packs[0] / "metrics.jsonl").write_text('{"subject/rex/loss": 1}')
    (store.bookkeeping / "removing" / "0").mkdir(parents=True)
    (store.bookkeeping / "removing" / "0" / "rex.txt").write_text("rex")
    lease = Leases(store)
    assert lease.claim("rex", key)
    code, _, err = call("purge", "out", "rex")
    assert code == 2 and "being worked on" in err and store.is_done("rex", key)
    assert call("purge", "out", "rex", "--force") == (0, "rex\n", "")
    left = [path for path in out.rglob("*") if "rex" in path.name or (path.is_file() and b"rex" in path.read_bytes())]
    assert left == [] and packs[1].is_dir() and not packs[0].exists()
    assert call("status", "out")[1] == "1 done, 0 running, 0 missing, 1 failed\n"
    assert call("purge", "out", "rex") == (0, "", "")
    assert call("purge", "out", "tom", "ann") == (0, "tom\nann\n", "")
    assert call("status", "out")[1] == "0 done, 0 running, 0 missing, 0 failed\n"


def test_status_tells_who_is_being_worked_on(folder, call, children):
    children.poison = {"tom": 65, "ann": 65}
    assert call(*WORK)[0] == 3
    call("retry", "out", "tom")
    assert Leases(children.store).claim("tom", open_fleet(folder / "subjects.yaml", folder / "config.yaml").keys["tom"])
    assert call("status", "out")[1] == "1 done, 1 running, 0 missing, 1 failed\n"


# ---- size
