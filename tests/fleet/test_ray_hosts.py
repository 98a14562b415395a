"""The processes of one job on several hosts, without Ray: each host is a thread."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray_stand_in import Fleet, lives, wait_until, write_stand_in

from jaxbooth.errors import ConfigError
from jaxbooth.fleet import job_hosts
from jaxbooth.fleet.dispatch import JobFiles
from jaxbooth.fleet.job_hosts import Role, run_on_host

LAUNCHERS = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_COORDINATOR_BIND_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "7",
    "JAX_PROCESS_ID": "5",
    "SLURM_STEP_NODELIST": "node[1-7]",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Processes find a `jaxbooth` that trains nothing."""
    monkeypatch.setenv("PYTHONPATH", write_stand_in(tmp_path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")


@pytest.fixture
def run(package, tmp_path):
    """`run(hosts, **config)` runs a job of one subject; returns its files, and results and notes by rank."""
    umask = os.umask(0o077)  # a supervisor sets its own process's

    def run(hosts, **config):
        fleet = Fleet(tmp_path)
        files = fleet.job("toy", size=1, **config)
        with ThreadPoolExecutor(hosts) as pool:
            running = [pool.submit(run_on_host, files, Role(rank, hosts, "127.0.0.1")) for rank in range(hosts)]
            return files, [one.result() for one in running], fleet.notes()

    yield run
    os.umask(umask)


def test_a_job_on_one_host_is_not_told_of_others_even_if_a_launcher_set_that(run, monkeypatch):
    for name, value in LAUNCHERS.items():
        monkeypatch.setenv(name, value)
    _, (result,), (note,) = run(1)
    assert result.kind == "done", result.log_tail
    assert not LAUNCHERS.keys() & note["environment"].keys()


def test_hosts_of_a_job_have_a_rank_each_and_meet_at_one_address(run, monkeypatch):
    for name, value in LAUNCHERS.items():
        monkeypatch.setenv(name, value)
    files, results, notes = run(3)
    assert [result.kind for result in results] == ["done"] * 3, results
    told = [note["environment"] for note in notes]
    assert [one["JAX_PROCESS_ID"] for one in told] == ["0", "1", "2"]
    assert {one["JAX_NUM_PROCESSES"] for one in told} == {"3"}
    address = told[0]["JAX_COORDINATOR_ADDRESS"]
    assert {one["JAX_COORDINATOR_ADDRESS"] for one in told} == {address} != {LAUNCHERS["JAX_COORDINATOR_ADDRESS"]}
    assert [one.get("JAX_COORDINATOR_BIND_ADDRESS") for one in told] == [address, None, None]
    assert not any("SLURM_STEP_NODELIST" in one for one in told)
    assert {one["JAX_COMPILATION_CACHE_DIR"] for one in told} == {str(files.compiled)}


def test_every_host_has_a_log_and_a_step_file_of_its_own(run):
    files, results, _ = run(2, exit={"0": 3, "1": 4})
    assert [result.exit_code for result in results] == [3, 4]
    assert files.log.is_file() and (files.folder / "host1" / "log").is_file()
    jobs = [json.loads((folder / "job.json").read_text()) for folder in (files.folder, files.folder / "host1")]
    assert [job.pop("step_file") for job in jobs] == [str(files.step), str(files.folder / "host1" / "step")]
    assert jobs[0] == jobs[1]


def test_all_hosts_are_told_to_stop(run, tmp_path):
    fleet = Fleet(tmp_path)

    def stop() -> None:
        fleet.wait_for_notes(2)
        next((fleet.store.bookkeeping / "jobs").iterdir()).joinpath("stop").touch()

    threading.Thread(target=stop).start()
    _, results, _ = run(2, seconds=300)
    assert {result.kind for result in results} == {"preempted"}
    assert all(result.stopped for result in results)
    assert not fleet.is_done("toy")


SUPERVISOR = """
import sys
from pathlib import Path
from jaxbooth.fleet.dispatch import JobFiles
from jaxbooth.fleet.job_hosts import Role, run_on_host
run_on_host(JobFiles(*map(Path, sys.argv[1:])), Role())
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def test_a_supervisor_whose_own_parent_dies_ends_its_job(package, tmp_path):
    fleet = Fleet(tmp_path)
    files = fleet.job("toy", size=1, seconds=600)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, SUPERVISOR, files.folder, files.compiled])
    (note,) = fleet.wait_for_notes(1)
    parent.kill()
    parent.wait()
    wait_until(lambda: not lives(note["pid"]))


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(job_hosts, "SEEN_S", 0.2)
    files = JobFiles(tmp_path / "elsewhere", tmp_path / "compiled")
    with pytest.raises(ConfigError, match="--out must be a folder shared by all machines"):
        run_on_host(files, Role())


def test_whoever_supervises_and_drives_does_so_without_jax():
    code = "import sys, jaxbooth.fleet.ray_engine, jaxbooth.fleet.job_hosts; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
