"""`jaxbooth fleet work` in processes of its own, stopped and killed from outside."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from command import Command, two_processes
from small_packs import NO_PICTURES, fleet_of, job_of, write_fleet
from test_pack_run import base, files_of  # noqa: F401

from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook

pytestmark = pytest.mark.slow

SUBJECTS = {name: {} for name in ("ann", "bob", "cat", "dot", "eve")}
TRAIN = {"train": {"steps": 40, "log_every_steps": 1}, "checkpoint": {"save_every_steps": 5}}
WORK = ("fleet", "work", "subjects.yaml", "--config", "config.yaml", "--pack-size", 4, "--out")


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):  # noqa: F811
    """A folder with a fleet that nobody disturbed, in `calm`."""
    folder = tmp_path_factory.mktemp("fleet")
    write_fleet(folder, base, SUBJECTS, **NO_PICTURES | TRAIN)
    work(folder, "calm")
    return folder


def work(folder: Path, out: str, code: int = 0) -> str:
    with Command(folder, *WORK, out) as command:
        assert command.finish() == code, command.said()
        return command.said()


def steps_of(folder: Path, out: str) -> int:
    """Steps of the pack that is at work."""
    files = list((folder / out / ".fleet" / "packs").glob("*/metrics.jsonl"))
    return max((len(file.read_text().splitlines()) for file in files), default=0)


def checkpoints_of(folder: Path, out: str) -> set[str]:
    return {path.parent.name for path in (folder / out / ".fleet" / "packs").glob("*/checkpoints/*/DONE.json")}


def check_equal_to_undisturbed(folder: Path, out: str) -> None:
    store, keys = OutputStore(folder / out), fleet_of(folder).keys
    for name in SUBJECTS:
        assert store.is_done(name, keys[name], verify=True)
        assert files_of(folder, name, out) == files_of(folder, name, "calm"), name
    assert not list((store.bookkeeping / "packs").glob("*")) and not list((store.bookkeeping / "claims").glob("*"))
    assert json.loads((folder / out / "summary.json").read_text())["counts"]["done"] == len(SUBJECTS)


def test_sigterm_saves_and_the_same_command_goes_on(undisturbed):
    with Command(undisturbed, *WORK, "stopped") as command:
        command.until(lambda: steps_of(undisturbed, "stopped") >= 7)
        command.terminate()
        assert command.finish() == 75, command.said()
        assert "0 of 5 subjects done" in command.said()
    assert checkpoints_of(undisturbed, "stopped"), "nothing was saved"
    work(undisturbed, "stopped")
    check_equal_to_undisturbed(undisturbed, "stopped")


def test_a_process_that_is_killed_is_started_again_from_its_checkpoint(undisturbed):
    with Command(undisturbed, *WORK, "killed") as command:
        command.until(lambda: len(checkpoints_of(undisturbed, "killed")) > 0 and steps_of(undisturbed, "killed") >= 12)
        (child,) = children_that_train(undisturbed / "killed")
        os.kill(child, signal.SIGKILL)
        assert command.finish() == 0, command.said()
        assert "killed by SIGKILL" in command.said()
    check_equal_to_undisturbed(undisturbed, "killed")
    keys = fleet_of(undisturbed).keys
    strikes = [StrikeBook(OutputStore(undisturbed / "killed")).of(name, keys[name]) for name in SUBJECTS]
    assert sorted(len(of_one) for of_one in strikes) == [0, 1, 1, 1, 1]
    (log,) = (undisturbed / "killed" / ".fleet" / "jobs").glob("*/log")
    assert "going on from step" not in log.read_text()  # of the one that was killed


def test_when_the_command_is_killed_nothing_of_it_lives_and_it_can_be_run_again(undisturbed):
    with Command(undisturbed, *WORK, "dead") as command:
        command.until(lambda: len(checkpoints_of(undisturbed, "dead")) > 0 and steps_of(undisturbed, "dead") >= 7)
        (child,) = children_that_train(undisturbed / "dead")
        os.kill(command.process.pid, signal.SIGKILL)
        command.finish()
    wait_for_end(child)
    assert "going on from step" in work_and_read_log(undisturbed, "dead")
    check_equal_to_undisturbed(undisturbed, "dead")


def test_a_pack_on_two_processes(undisturbed):
    job = undisturbed / "two.json"
    values = job_of(undisturbed, ["ann", "bob", "cat"], out="two").model_dump(mode="json")
    job.write_text(json.dumps(values))
    with two_processes(undisturbed, "fleet", "pack", job) as both:
        for process in both:
            assert process.finish() == 0, process.said()
    store, keys = OutputStore(undisturbed / "two"), fleet_of(undisturbed).keys
    for name in ("ann", "bob", "cat"):
        assert store.is_done(name, keys[name], verify=True)
        ours, theirs = files_of(undisturbed, name, "two"), files_of(undisturbed, name, "calm")
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    assert not list((store.bookkeeping / "packs").glob("*"))


def work_and_read_log(folder: Path, out: str) -> str:
    """Runs the command again; returns what its processes printed, which goes once they have ended well."""
    said = ""
    with Command(folder, *WORK, out) as command:
        while command.process.poll() is None:
            for log in (folder / out / ".fleet" / "jobs").glob("*/log"):
                try:
                    said += log.read_text()
                except FileNotFoundError:
                    continue
        assert command.finish() == 0, command.said()
    return said


def children_that_train(out: Path) -> list[int]:
    said = subprocess.run(["pgrep", "-f", f"jaxbooth fleet pack {out}"], capture_output=True, text=True).stdout
    found = [int(pid) for pid in said.split()]
    return [pid for pid in found if "warden.py" not in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for_end(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        pass
