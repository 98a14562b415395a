"""The store under processes that die at any instant, race each other, and run twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxbooth
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.store import OutputStore

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(jaxbooth.__file__).parents[1])}
KEY = content_key({"steps": 10})

WRITER = """
import os, sys
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.store import OutputStore

store = OutputStore(sys.argv[1])
print("ready", flush=True)
for number in range(10_000):
    key = content_key({"number": number})
    if store.is_done("toy", key, verify=False):
        continue
    with store.attempt("toy", key) as attempt:
        for part in range(4):
            (attempt.path / f"{part}.bin").write_bytes(os.urandom(50_000))  # incompressible, so that writing takes time
        store.commit(attempt, {"number": number})
"""

RACER = """
import os, sys, time
from jaxbooth.fleet.store import OutputStore

store = OutputStore(sys.argv[1])
attempt = store.attempt("toy", sys.argv[2])
(attempt.path / "weights.bin").write_bytes(os.urandom(50_000))
(attempt.path / "who.txt").write_text(str(os.getpid()))
print("ready", flush=True)
sys.stdin.readline()
print("won" if store.commit(attempt, {"pid": os.getpid()}) else "lost")
"""

DRIVER = """
import os, random, sys, time
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.store import OutputStore

store, key = OutputStore(sys.argv[1]), content_key({"steps": 10})
names = [f"subject-{number}" for number in range(int(sys.argv[2]))]
random.Random(os.getpid()).shuffle(names)
print("ready", flush=True)
with Leases(store, heartbeat_s=0.1, expiry_s=0.5) as leases:
    while missing := [name for name in names if not store.is_done(name, key)]:
        for name in missing:
            if not leases.claim(name, key):
                continue
            with store.attempt(name, key) as attempt:
                (attempt.path / "weights.bin").write_bytes(os.urandom(20_000))
                time.sleep(0.005)
                if store.commit(attempt, {}):
                    with open(sys.argv[3], "a") as commits:
                        commits.write(name + "\\n")
            leases.release(name, key)
        time.sleep(0.05)
"""


def start(program: str, *arguments, **options) -> subprocess.Popen:
    """A child that will say "ready"."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, **options,
    )  # fmt: skip


def ready(child: subprocess.Popen) -> subprocess.Popen:
    assert child.stdout.readline() == "ready\n"
    return child


def end(child: subprocess.Popen) -> str:
    said, _ = child.communicate(timeout=60)
    return said


def visible(store: OutputStore) -> list[Path]:
    return [path for path in store.of_subject("toy").iterdir() if not path.name.startswith(".")]


def kill_while_it_commits(store: OutputStore, trials: int) -> tuple[int, int]:
    """Returns how many attempts were left unfinished, and how many of them had their seal already."""
    dice, left, sealed = random.Random(trials), 0, 0
    for _ in range(trials):
        child = ready(start(WRITER, store.root))
        time.sleep(dice.uniform(0, 0.1))
        child.kill()
        child.communicate()
        drafts = list(store.of_subject("toy").glob(".tmp-*"))
        left += len(drafts)
        sealed += sum((draft / "DONE.json").exists() for draft in drafts)
        assert store.clean_temporary(0) == sorted(drafts)
    return left, sealed


def check_killed_writers(store: OutputStore, trials: int) -> None:
    left, _ = kill_while_it_commits(store, trials)
    assert left > trials / 4, "the kills were meant to hit while it writes"
    results = visible(store)
    keys = {key[:16]: key for key in (content_key({"number": number}) for number in range(10_000))}
    assert len(results) > trials / 2 and not list(store.of_subject("toy").glob(".bad-*"))
    for result in results:
        assert store.problems("toy", keys[result.name]) == []


def test_a_writer_killed_at_any_instant_leaves_no_partial_result(tmp_path):
    check_killed_writers(OutputStore(tmp_path), trials=10)


@pytest.mark.slow
def test_a_writer_killed_at_any_instant_leaves_no_partial_result_in_many_trials(tmp_path):
    check_killed_writers(OutputStore(tmp_path), trials=200)


def race(store: OutputStore, racers: int = 16) -> None:
    children = [start(RACER, store.root, KEY) for _ in range(racers)]
    for child in children:
        ready(child)
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    said = {child.pid: end(child).strip() for child in children}
    assert sorted(said.values()) == ["lost"] * (racers - 1) + ["won"], said
    winner = next(pid for pid, word in said.items() if word == "won")
    assert store.facts("toy", KEY) == {"pid": winner}
    assert (store.folder("toy", KEY) / "who.txt").read_text() == str(winner)
    assert store.is_done("toy", KEY) and not list(store.of_subject("toy").glob(".tmp-*"))


def test_of_sixteen_processes_that_commit_at_once_one_wins_and_the_others_clean_up(tmp_path):
    race(OutputStore(tmp_path))


@pytest.mark.parametrize("obstacle", ["damaged", "empty"])
def test_one_wins_also_when_something_damaged_lies_in_the_way(tmp_path, obstacle):
    store = OutputStore(tmp_path)
    store.folder("toy", KEY).mkdir(parents=True)
    if obstacle == "damaged":
        (store.folder("toy", KEY) / "weights.bin").write_bytes(b"half")
    race(store)
    aside = list(store.of_subject("toy").glob(".bad-*"))
    assert [path.joinpath("weights.bin").read_bytes() for path in aside] == [b"half"] * (obstacle == "damaged")


def test_two_drivers_on_one_list_with_one_killed_finish_every_subject_once(tmp_path):
    store, log, names = OutputStore(tmp_path / "out"), tmp_path / "commits", [f"subject-{n}" for n in range(60)]
    first, second = (start(DRIVER, store.root, len(names), log) for _ in range(2))
    ready(first), ready(second)
    while not log.exists() or log.read_text().count("\n") < 8:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    third = ready(start(DRIVER, store.root, len(names), log))
    for child in (first, second, third):
        end(child)
    commits = log.read_text().split()
    # The killed driver may have died between a commit and its line; no subject has two.
    assert len(commits) == len(set(commits)) >= len(names) - 1
    for name in names:
        assert store.is_done(name, KEY)
        assert len([path for path in store.of_subject(name).iterdir() if not path.name.startswith(".")]) == 1
    store.clean_temporary(0)
    assert not list(store.root.glob("*/.[tb]*"))
