from types import SimpleNamespace

import pytest

from jaxbooth.errors import JaxboothError
from jaxbooth.fleet.ray_machines import Machines, share_of_machine
from jaxbooth.fleet.ray_slices import fits_best, is_free, whole_slices


def host(name, worker, topology="2x4", tpus=4, pod_type="v6e-8", **labels):
    """A TPU host as `ray.nodes()` tells of it."""
    named = {"tpu-slice-name": name, "tpu-worker-id": str(worker), "tpu-topology": topology, "tpu-pod-type": pod_type}
    named |= {key.replace("_", "-"): value for key, value in labels.items()}
    return {
        "NodeID": f"{name}{worker}",
        "Alive": True,
        "NodeManagerAddress": f"10.0.0.{worker}",
        "Resources": {"TPU": float(tpus), "CPU": 8.0},
        "Labels": {f"ray.io/{key}": value for key, value in named.items() if value is not None},
    }


def machine(**resources):
    return {"NodeID": "m", "Alive": True, "NodeManagerAddress": "10.0.0.9", "Resources": resources, "Labels": {}}


def test_hosts_are_sorted_into_slices_in_the_order_of_their_worker_ids():
    nodes = [host("b", 1), host("a", 1), host("b", 0), machine(CPU=4.0), host("a", 0)]
    whole, problems = whole_slices(nodes)
    assert [(one.name, [member.node for member in one.hosts]) for one in whole] == [
        ("a", ["a0", "a1"]),
        ("b", ["b0", "b1"]),
    ]
    assert problems == []
    assert whole[0].shape == "v6e-8 2x4, 2 hosts"


def test_sixteen_hosts_are_in_the_order_of_numbers_not_of_words():
    (found,), _ = whole_slices([host("big", worker, "8x8", 4, "v6e-64") for worker in range(16)])
    assert [int(member.address.rsplit(".", 1)[1]) for member in found.hosts] == list(range(16))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([host("a", 0)], "TPU slice a: 4 of 8 chips are there (hosts 0)"),
        ([host("a", 0), host("a", 0)], "TPU slice a: its hosts are numbered 0, 0, not from 0"),
        ([host("a", 0), host("a", 1), host("a", 1)], "TPU slice a: 12 of 8 chips are there (hosts 0, 1, 1)"),
        ([host("a", 0, None), host("a", 1, None)], "TPU slice a: its hosts have no label ray.io/tpu-topology"),
        ([host("a", 0, tpu_worker_id=None), host("a", 1)], "TPU slice a: its hosts are numbered 1, unknown"),
    ],
    ids=["a host is missing", "one number twice", "a lost host and its successor", "no topology", "no number"],
)
def test_a_slice_that_is_not_whole_is_not_used_and_says_why(nodes, said):
    whole, problems = whole_slices(nodes)
    assert whole == []
    assert len(problems) == 1 and problems[0].startswith(said)


def test_a_host_with_all_chips_of_its_topology_is_a_slice_whatever_its_name():
    nodes = [host("same", 0, tpus=8), {**host("same", 0, tpus=8), "NodeID": "other"}]
    whole, problems = whole_slices(nodes)
    assert [one.name for one in whole] == ["other", "same0"]
    assert problems == []


def test_a_host_without_labels_is_a_slice():
    (found,), problems = whole_slices([machine(TPU=4.0)])
    assert (found.chips, found.shape, problems) == (4, "TPU, 1 host", [])


def test_tpus_that_count_twice_for_a_chip_are_counted_so(monkeypatch):
    monkeypatch.setenv("RAY_TPU_RESOURCE_PER_CHIP", "2")
    (found,), _ = whole_slices([host("a", 0, tpus=8), host("a", 1, tpus=8)])
    assert found.chips == 16


@pytest.fixture
def three():
    """Slices of 4, 8 and 16 chips."""
    nodes = [host("four", 0, "2x2"), host("eight", 0), host("eight", 1)]
    nodes += [host("sixteen", worker, "4x4") for worker in range(4)]
    return whole_slices(nodes)[0]


@pytest.mark.parametrize(
    ("places", "chosen"), [(64, "sixteen"), (16, "sixteen"), (8, "eight"), (5, "four0"), (1, "four0")]
)
def test_a_pack_gets_the_largest_slice_that_it_fills_else_the_smallest(three, places, chosen):
    assert fits_best(three, places, {}).name == chosen


def test_a_slice_where_something_went_wrong_comes_after_all_others(three):
    assert fits_best(three, 16, {"sixteen": 10.0}).name == "eight"
    assert fits_best(three, 16, {"sixteen": 10.0, "eight": 30.0, "four0": 20.0}).name == "sixteen"


def test_equal_slices_are_taken_in_the_order_of_their_names():
    whole, _ = whole_slices([host(name, worker) for name in "ba" for worker in (0, 1)])
    assert fits_best(whole, 16, {}).name == "a"


def test_a_slice_is_free_if_nobody_uses_any_of_its_chips():
    (found,), _ = whole_slices([host("a", 0), host("a", 1)])
    assert is_free(found, {"a0": {"TPU": 4.0}, "a1": {"TPU": 4.0}})
    assert not is_free(found, {"a0": {"TPU": 4.0}, "a1": {"TPU": 3.0}})
    assert not is_free(found, {"a0": {"TPU": 4.0}, "a1": {"CPU": 8.0}})


@pytest.mark.parametrize(
    ("machines", "needs", "count"),
    [
        ([machine(CPU=8.0, GPU=4.0), machine(CPU=8.0)], {"num_gpus": 1, "num_cpus": 0}, 4),
        ([machine(CPU=8.0), machine(CPU=3.0)], {"num_cpus": 2}, 5),
        ([machine(CPU=1.0), machine(CPU=1.0)], {"num_cpus": 1}, 2),
        ([machine(CPU=1.0), machine(CPU=4.0)], {"num_cpus": 2}, 2),
        ([machine()], {"num_cpus": 0}, 0),
        ([], {"num_cpus": 0}, 0),
    ],
    ids=["GPUs", "pairs of cores", "single cores", "a core too few", "a head without cores", "nothing"],
)
def test_without_tpus_a_job_gets_a_gpu_or_else_some_cores(machines, needs, count):
    assert share_of_machine(machines) == (needs, count)


class Nodes:
    """What `Machines` asks Ray for."""

    def __init__(self, *nodes):
        self.now = list(nodes)

    def nodes(self):
        return self.now

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "m")


@pytest.mark.parametrize(
    "accelerator", [{**machine(GPU=1.0, CPU=4.0), "NodeID": "g"}, host("a", 0, tpus=8)], ids=["GPU", "TPU"]
)
def test_while_accelerators_are_away_their_work_is_not_given_to_cores(accelerator, monkeypatch):
    state = pytest.importorskip("ray._private.state")
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"a0": {"TPU": 8.0}})
    ray = Nodes(machine(CPU=8.0), accelerator)
    machines = Machines(ray)
    assert machines.room(0, ()) == 1
    accelerator["Alive"] = False
    assert machines.room(0, ()) == 0
    assert machines.take(4, ()) is None


def test_when_ray_has_died_on_the_drivers_machine_that_is_said():
    ray = Nodes(machine(CPU=8.0), host("a", 0, tpus=8))
    machines = Machines(ray)
    del ray.now[0]
    with pytest.raises(JaxboothError, match="Ray has died on the driver's own machine"):
        machines.room(0, ())
