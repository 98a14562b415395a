"""A fleet on a cluster of pretended TPU slices: three of them, on five machines that are Ray nodes of this one."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from ray_stand_in import Fleet, ancestor, lives, wait_until, write_stand_in

pytest.importorskip("ray")

from jaxbooth.fleet.ray_engine import RayEngine

pytestmark = pytest.mark.slow
MEMORY = 80 * 2**20
# slice -> hosts, topology, pod type
SLICES = {"a": (2, "2x4", "v6e-8"), "b": (2, "2x4", "v6e-8"), "c": (1, "2x2", "v6e-4")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster; its machines find a `jaxbooth` that trains nothing."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets must be short
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", write_stand_in(tmp_path_factory.mktemp("package")))
        patch.setenv("PYTHONSAFEPATH", "1")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.hosts = {
            (name, worker): add_host(cluster, name, worker, topology, pod_type)
            for name, (count, topology, pod_type) in SLICES.items()
            for worker in range(count)
        }
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()
        shutil.rmtree(short, ignore_errors=True)


def add_host(cluster, name, worker, topology, pod_type):
    labels = {"slice-name": name, "worker-id": str(worker), "topology": topology, "pod-type": pod_type}
    return cluster.add_node(
        wait=False,
        num_cpus=1,
        resources={"TPU": 4} | ({f"TPU-{pod_type}-head": 1} if worker == 0 else {}),
        labels={f"ray.io/tpu-{key}": value for key, value in labels.items()} | {"ray.io/accelerator-type": "TPU-V6E"},
        env_vars={"TPU_NAME": name, "TPU_WORKER_ID": str(worker)},
        object_store_memory=MEMORY,
    )


@pytest.fixture
def engine(cluster):
    with RayEngine(cluster.address) as engine:
        wait_until(lambda: engine.room() == 3)
        yield engine


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def result_of(engine, files):
    """The result of the only job."""
    for _ in range(120):
        if found := engine.wait(1.0):
            ((ended, result),) = found
            assert ended == files
            return result
    raise AssertionError("the job does not end")


def slice_of(note: dict) -> str:
    return note["environment"]["TPU_NAME"]


def test_packs_land_on_slices_each_host_with_a_process_of_its_own(engine, fleet):
    outcome = fleet.driver([f"toy{index}" for index in range(6)], engine, 2, seconds=3).run()
    assert (outcome.done, outcome.failed) == (6, ())
    jobs = {tuple(note["names"]): fleet.notes(note["names"][0]) for note in fleet.notes()}
    assert len(jobs) == 3
    assert sorted(slice_of(notes[0]) for notes in jobs.values()) == ["a", "b", "c"]
    for notes in jobs.values():
        assert len({slice_of(note) for note in notes}) == 1
        hosts = SLICES[slice_of(notes[0])][0]
        assert [note["rank"] for note in notes] == list(range(hosts))
        assert [note["environment"]["TPU_WORKER_ID"] for note in notes] == [str(rank) for rank in range(hosts)]
        assert len({note["environment"].get("JAX_COORDINATOR_ADDRESS") for note in notes}) == 1
        assert ("JAX_COORDINATOR_ADDRESS" in notes[0]["environment"]) == (hosts > 1)


def test_three_packs_in_a_row_on_one_slice_have_fresh_processes(engine, fleet):
    for number in range(3):
        wait_until(lambda: engine.room() == 3)
        files = fleet.job(f"toy{number}", size=8)  # as many as two hosts have chips
        engine.submit(files)
        assert result_of(engine, files).kind == "done"
        assert fleet.is_done(f"toy{number}")
    assert {slice_of(note) for note in fleet.notes()} == {"a"}
    assert len({note["pid"] for note in fleet.notes()}) == 6


def test_when_a_host_dies_the_other_is_ended_although_it_hangs(engine, fleet):
    files = fleet.job("toy", size=8, seconds=600, hang=True)
    engine.submit(files)
    leader, follower = fleet.wait_for_notes(2)
    os.kill(follower["pid"], signal.SIGKILL)
    result = result_of(engine, files)
    assert (result.kind, result.exit_code) == ("infra", 137)
    assert result.reason.startswith("host 1: killed by SIGKILL")
    wait_until(lambda: not lives(leader["pid"]))
    wait_until(lambda: engine.room() == 3)


def test_a_killed_ray_worker_takes_the_job_with_it_and_is_a_fault_of_the_machine(engine, fleet):
    files = fleet.job("toy", size=8, seconds=600)
    engine.submit(files)
    notes = fleet.wait_for_notes(2)
    os.kill(ancestor(notes[0]["pid"], 2), signal.SIGKILL)  # process, warden, worker
    assert result_of(engine, files).kind == "infra"
    wait_until(lambda: not any(lives(note["pid"]) for note in notes))


DRIVER = """
import sys
from pathlib import Path
from ray_stand_in import Fleet
from jaxbooth.fleet.ray_engine import RayEngine
with RayEngine(sys.argv[1]) as engine:
    Fleet(Path(sys.argv[2])).driver(["one", "two", "three"], engine, 1, seconds=float(sys.argv[3])).run()
"""


def test_drivers_share_the_slices_and_a_killed_one_leaves_no_job_and_no_slice_taken(cluster, engine, fleet, tmp_path):
    def start(seconds):
        paths = f"{Path(__file__).parent}:{os.environ['PYTHONPATH']}"
        command = [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path), str(seconds)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})

    driver = start(600)
    notes = fleet.wait_for_notes(5)
    wait_until(lambda: engine.room() == 0)
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(lives(note["pid"]) for note in notes))
    assert not any(fleet.is_done(name) for name in ("one", "two", "three"))
    wait_until(lambda: engine.room() == 3)
    assert start(0.1).wait(120) == 0
    assert all(fleet.is_done(name) for name in ("one", "two", "three"))


def test_a_removed_host_costs_its_own_pack_only(cluster, engine, fleet):
    """Comes last: slice `a` is not whole any more."""
    names = [f"toy{index}" for index in range(16)]
    lost = threading.Thread(target=lose_a_host, args=(cluster, fleet))
    lost.start()
    outcome = fleet.driver(names, engine, 8, seconds=30).run()
    lost.join()
    assert (outcome.done, outcome.failed) == (16, ())
    (hit,) = {tuple(note["names"]) for note in fleet.notes() if slice_of(note) == "a"}
    (spared,) = {tuple(note["names"]) for note in fleet.notes()} - {hit}
    assert [slice_of(note) for note in fleet.notes(spared[0])] == ["b", "b"]  # two processes: it was not run again
    assert {slice_of(note) for note in fleet.notes(hit[0])} in ({"a", "b"}, {"a", "c"})
    assert fleet.strikes(spared) == {()}
    assert fleet.strikes(hit) == {("infra",)}
    assert not any(lives(note["pid"]) for note in fleet.notes())


def lose_a_host(cluster, fleet) -> None:
    fleet.wait_for_notes(4)
    cluster.remove_node(cluster.hosts["a", 1], allow_graceful=False)
