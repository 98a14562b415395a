"""Ray of the driver's own, and addresses where there is none."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ray_stand_in import Fleet, ancestor, lives, wait_until, write_stand_in

pytest.importorskip("ray")

from jaxbooth.errors import ConfigError, JaxboothError
from jaxbooth.fleet.ray_engine import RayEngine

NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (NOBODY, "Connection refused"),
        ("auto", "Connection refused"),
        ("ray://127.0.0.1:10001", "it must be HOST:PORT"),
        ("cluster", "Invalid address"),
        ("127.0.0.1:port", "invalid literal"),
    ],
)
def test_an_address_where_no_cluster_answers_is_refused_at_once(address, said, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"--address {address}: no Ray cluster answers .*{said}.*leave --address out"):
        RayEngine(address)
    assert time.monotonic() - began < 30  # Ray itself tries for two minutes


def test_a_machine_where_ray_cannot_be_started_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))  # no socket can have such a name
    with pytest.raises(JaxboothError, match="Ray could not be started on this machine: .*its logs: .*/session_latest"):
        RayEngine("local")


DRIVER = """
import sys
from ray_stand_in import wanted
from jaxbooth.fleet.driver import Driver, Limits
from jaxbooth.fleet.ray_engine import RayEngine
from jaxbooth.fleet.store import OutputStore
folder, seconds = sys.argv[1], float(sys.argv[2])
candidates, members = wanted("one", "two")
config = {"notes": f"{folder}/notes", "seconds": seconds}
with RayEngine("local") as engine:
    print(Driver(OutputStore(f"{folder}/out"), candidates, members, config, engine, Limits((1,), 1)).run())
"""


@pytest.fixture
def local(tmp_path, monkeypatch):
    """`local(seconds)` starts a driver of two subjects; the machine is littered with signs of a cluster long gone."""
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets must be short
    (Path(short) / "ray").mkdir()
    (Path(short) / "ray" / "ray_current_cluster").write_text(NOBODY)
    monkeypatch.setenv("RAY_TMPDIR", short)
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{write_stand_in(tmp_path)}")
    started = []

    def local(seconds: float) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path, str(seconds)]))
        return started[-1]

    local.left = lambda: [pid for pid in processes() if mentions(pid, short)]
    yield local
    for driver in started:
        driver.kill()
        driver.wait()
    for pid in local.left():  # Ray itself takes a minute to notice
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not local.left())
    shutil.rmtree(short, ignore_errors=True)


def processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def mentions(pid: int, word: str) -> bool:
    """Whether a process, the test's own left out, was started with a word in its command or environment."""
    try:
        told = [Path(f"/proc/{pid}/{part}").read_bytes() for part in ("cmdline", "environ")]
    except OSError:
        return False
    return pid != os.getpid() and any(word.encode() in part for part in told)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@pytest.mark.slow
def test_a_ray_of_its_own_survives_dead_workers_and_no_job_survives_the_driver(local, fleet):
    driver = local(600)
    (first, *_) = fleet.wait_for_notes(1)
    (name,) = first["names"]
    assert first["nice"] == os.nice(0)  # Ray's workers give way to all others unless told not to
    os.kill(ancestor(first["pid"], 2), signal.SIGKILL)  # process, warden, Ray's worker
    wait_until(lambda: len(fleet.notes(name)) == 2)
    assert not lives(first["pid"])
    assert fleet.strikes([name]) == {("infra",)}
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(lives(note["pid"]) for note in fleet.notes()))
    assert not fleet.is_done("one") and not fleet.is_done("two")
    assert local(0.1).wait(120) == 0
    assert fleet.is_done("one") and fleet.is_done("two")


@pytest.mark.slow
def test_when_the_ray_of_its_own_dies_the_driver_ends_and_no_job_survives(local, fleet):
    driver = local(600)
    (note, *_) = fleet.wait_for_notes(1)
    os.kill(ancestor(note["pid"], 3), signal.SIGKILL)  # process, warden, Ray's worker, Ray on this machine
    assert driver.wait(120) == 1
    assert not lives(note["pid"])
    assert not fleet.is_done("one") and not fleet.is_done("two")
