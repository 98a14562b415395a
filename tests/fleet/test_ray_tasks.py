"""What comes of a job's tasks together; Ray is played by the test."""

from types import SimpleNamespace

import pytest

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet import ray_engine, ray_tasks
from jaxbooth.fleet.child_result import ChildResult, kind_of
from jaxbooth.fleet.dispatch import new_job
from jaxbooth.fleet.ray_engine import RayEngine
from jaxbooth.fleet.ray_slices import Host, Slice
from jaxbooth.fleet.ray_tasks import Tasks


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class LocalRayletDiedError(RayError):
    pass


class PlayedRay:
    """References are numbers; `ends` says how each task ended, `cancelled` which were ended by us."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, LocalRayletDiedError=LocalRayletDiedError
    )

    def __init__(self):
        self.ends, self.given, self.cancelled, self.machines = {}, [], [], []

    def remote(self, **options):
        assert options == {"max_retries": 0}
        return lambda function: SimpleNamespace(options=self._options)

    def _options(self, **needs):
        return SimpleNamespace(remote=lambda files, role: self.given.append((needs, role)) or len(self.given) - 1)

    def wait(self, references, num_returns, timeout):
        ready = [reference for reference in references if reference in self.ends]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference):
        if isinstance(self.ends[reference], Exception):
            raise self.ends[reference]
        return self.ends[reference]

    def cancel(self, reference, force):
        assert force
        self.cancelled.append(reference)

    def nodes(self):
        return self.machines

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "m")

    def shutdown(self):
        pass


class PlayedReservation:
    def __init__(self, hosts: int):
        self.slice = Slice("a", "v6e-8 2x4", tuple(Host(str(number), "10.0.0.1", 4.0) for number in range(hosts)))
        self.is_dropped, self.now, self.age = False, "CREATED", 0.0

    def options(self, rank):
        return {"resources": {"TPU": rank}}

    def state(self):
        return self.now

    def age_s(self):
        return self.age

    def drop(self):
        self.is_dropped = True


def result(exit_code, reason="it said so"):
    return ChildResult(exit_code, kind_of(exit_code), "" if exit_code == 0 else reason, "", 1.0)


@pytest.fixture
def files(tmp_path):
    return new_job(tmp_path / "jobs", tmp_path / "compiled", {"packs": [{"size": 4}]})


@pytest.fixture
def job(files):
    """A job on a slice of three hosts."""
    ray, reservation = PlayedRay(), PlayedReservation(3)
    return SimpleNamespace(ray=ray, reservation=reservation, tasks=Tasks(ray, files, reservation, {}), files=files)


def test_every_host_of_a_slice_has_a_task_and_knows_the_leader(job):
    assert [needs for needs, _ in job.ray.given] == [{"resources": {"TPU": rank}} for rank in range(3)]
    assert [(role.rank, role.hosts, role.address) for _, role in job.ray.given] == [
        (rank, 3, "10.0.0.1") for rank in range(3)
    ]


def test_a_job_is_done_when_all_hosts_are(job):
    job.ray.ends = {1: result(0), 2: result(0)}
    assert job.tasks.ended() is None
    job.ray.ends[0] = result(0)
    assert job.tasks.ended().result.kind == "done"
    assert job.reservation.is_dropped and job.ray.cancelled == []


def test_when_one_host_fails_the_others_get_some_seconds_and_are_ended(job, monkeypatch):
    job.ray.ends = {2: result(1)}
    assert job.tasks.ended() is None and not job.reservation.is_dropped
    monkeypatch.setattr(ray_tasks, "HANG_GRACE_S", -1)
    assert job.tasks.ended() is None
    assert job.reservation.is_dropped and job.ray.cancelled == [0, 1]
    job.ray.ends |= {0: RayError("killed"), 1: RayError("killed")}
    ended = job.tasks.ended()
    assert (ended.result.kind, ended.result.exit_code) == ("broken", 1)
    assert ended.result.reason == f"host 2: it said so ({job.files.folder}/host2/log)"


def test_hosts_that_save_get_the_time_for_that(job, monkeypatch):
    monkeypatch.setattr(ray_tasks, "HANG_GRACE_S", -1)
    job.ray.ends = {1: result(75)}
    assert job.tasks.ended() is None and not job.reservation.is_dropped
    job.ray.ends |= {0: result(75), 2: result(75)}
    assert job.tasks.ended().result.kind == "preempted"


def test_with_the_leader_done_the_others_have_some_time_to_end_and_no_more(job, monkeypatch):
    job.ray.ends = {0: result(0), 1: result(0)}
    assert job.tasks.ended() is None and not job.reservation.is_dropped
    monkeypatch.setattr(ray_tasks, "STOP_GRACE_S", -1)
    assert job.tasks.ended() is None and job.ray.cancelled == [2]
    job.ray.ends[2] = RayError("killed")
    assert job.tasks.ended().result.kind == "done"


def test_a_job_that_is_told_to_stop_but_waits_for_a_machine_is_taken_back(job, monkeypatch):
    job.files.stop.touch()
    assert job.tasks.ended() is None
    monkeypatch.setattr(ray_tasks, "STOP_GRACE_S", -1 - ray_tasks.ENDING_S)
    assert job.tasks.ended() is None and job.ray.cancelled == [0, 1, 2]
    job.ray.ends = dict.fromkeys(range(3), RayError("cancelled"))
    assert job.tasks.ended().result.kind == "preempted"


@pytest.mark.parametrize(
    ("ends", "kind"),
    [
        ({0: 1, 1: 137, 2: 1}, "infra"),
        ({0: 134, 1: 65, 2: 134}, "data"),
        ({0: 75, 1: 1, 2: 75}, "broken"),
        ({0: 0, 1: 75, 2: 0}, "preempted"),
    ],
    ids=["one is killed, others raise", "one refuses", "one raises while others save", "some were done already"],
)
def test_of_hosts_that_end_together_the_cause_is_blamed(job, ends, kind):
    job.ray.ends = {rank: result(code) for rank, code in ends.items()}
    assert job.tasks.ended().result.kind == kind


def test_of_hosts_that_end_one_after_the_other_the_first_is_blamed(job):
    job.ray.ends = {1: result(1)}
    assert job.tasks.ended() is None
    job.ray.ends |= {0: result(134), 2: result(134)}
    assert job.tasks.ended().result.kind == "broken"


def test_a_lost_machine_is_to_blame_whatever_the_processes_say(job):
    job.ray.ends = {1: result(1)}
    assert job.tasks.ended() is None
    job.ray.ends[2] = RayError("The node died\nand more")
    assert job.tasks.ended() is None and job.reservation.is_dropped
    job.ray.ends[0] = RayError("killed")
    ended = job.tasks.ended()
    assert (ended.result.kind, ended.unstarted) == ("infra", "")
    assert ended.result.reason == "its machine or Ray worker went away: The node died"


def test_a_slice_that_loses_a_host_ends_its_job(job):
    assert job.tasks.ended() is None
    job.reservation.now = "RESCHEDULING"
    assert job.tasks.ended() is None
    assert job.reservation.is_dropped and job.ray.cancelled == [0, 1, 2]
    job.ray.ends = dict.fromkeys(range(3), RayError("killed"))
    ended = job.tasks.ended()
    assert (ended.result.kind, ended.result.reason) == ("infra", "a host of TPU slice a went away")


def test_a_slice_that_is_not_granted_is_given_back_and_nobody_is_blamed(job):
    job.reservation.now = "PENDING"
    assert job.tasks.ended() is None and not job.reservation.is_dropped
    job.reservation.age = ray_tasks.RESERVE_S + 1
    assert job.tasks.ended() is None
    assert job.reservation.is_dropped and job.ray.cancelled == [0, 1, 2]
    job.ray.ends = dict.fromkeys(range(3), RayError("cancelled"))
    ended = job.tasks.ended()
    assert (ended.result.kind, ended.unstarted) == ("preempted", "")


def test_a_job_counts_as_ended_without_word_from_a_machine_that_is_gone(job, monkeypatch):
    monkeypatch.setattr(ray_tasks, "ENDING_S", -1)
    job.reservation.now = "RESCHEDULING"
    assert job.tasks.ended().result.kind == "infra"


@pytest.fixture
def engine(monkeypatch):
    """On a machine of four cores that Ray's player offers."""
    ray = PlayedRay()
    ray.machines = [{"Alive": True, "NodeID": "m", "Resources": {"CPU": 4.0}, "Labels": {}}]
    monkeypatch.setattr(ray_engine, "connect", lambda address: ray)
    with RayEngine("local") as engine:
        yield engine, ray


def test_the_engine_has_room_for_a_job_on_every_two_cores(engine, files):
    engine, ray = engine
    assert engine.room() == 2
    engine.submit(files)
    assert engine.room() == 1
    assert [needs for needs, _ in ray.given] == [{"num_cpus": 2}]
    ray.ends[0] = result(0)
    assert engine.wait(1.0) == [(files, result(0))]
    assert engine.room() == 2 and engine.wait(0.0) == []


def test_a_job_that_no_machine_has_room_for_is_given_back_when_told_to_stop(engine, files):
    engine, ray = engine
    ray.machines[0]["Resources"] = {}
    engine.submit(files)
    assert engine.wait(0.0) == []
    files.stop.touch()
    ((ended, found),) = engine.wait(0.0)
    assert (ended, found.kind, ray.given) == (files, "preempted", [])


def test_a_job_that_no_machine_could_start_is_nobodys_fault_but_three_in_a_row_are_the_clusters(engine, files):
    engine, ray = engine
    for number in range(2):
        engine.submit(files)
        ray.ends[number] = RayTaskError("Traceback\n  line 1\nModuleNotFoundError: No module named 'jaxbooth'\n")
        ((_, ended),) = engine.wait(1.0)
        assert ended.kind == "preempted"
        assert ended.reason == "could not be started: ModuleNotFoundError: No module named 'jaxbooth'"
    engine.submit(files)
    ray.ends[2] = ray.ends[0]
    with pytest.raises(JaxboothError, match="3 jobs one after the other: ModuleNotFoundError"):
        engine.wait(1.0)


def test_a_job_that_does_start_is_proof_that_the_cluster_can(engine, files):
    engine, ray = engine
    for number, end in enumerate(
        [RayTaskError("x"), RayTaskError("x"), result(1), RayTaskError("x"), RayTaskError("x")]
    ):
        engine.submit(files)
        ray.ends[number] = end
        assert len(engine.wait(1.0)) == 1


def test_the_death_of_ray_on_the_drivers_machine_is_no_fault_of_a_job(engine, files):
    engine, ray = engine
    engine.submit(files)
    ray.ends[0] = LocalRayletDiedError("The task's local raylet died.")
    with pytest.raises(JaxboothError, match="Ray has died on the driver's own machine"):
        engine.wait(1.0)


def test_a_cluster_without_machines_is_waited_for_but_not_for_ever(engine, monkeypatch):
    engine, ray = engine
    ray.machines = [ray.machines[0] | {"Resources": {}}]  # a head that runs nothing
    assert engine.room() == 0
    monkeypatch.setattr(ray_engine, "MACHINES_S", 0)
    with pytest.raises(JaxboothError, match="no machine of the Ray cluster could take a job"):
        engine.room()
