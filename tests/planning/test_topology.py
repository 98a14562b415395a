import importlib.util
import os

import jax
import pytest

from jaxbooth.errors import ConfigError
from jaxbooth.planning import topology
from jaxbooth.planning.chips import GPUS, TPUS, chip_of
from jaxbooth.planning.topology import EXAMPLES, count_devices, describe_topology, parse_topology, without_a_tpu


@pytest.fixture
def bare(monkeypatch):
    """An environment that says nothing of TPUs."""
    for name in topology.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_topologies(name):
    slices, chip, shape = parse_topology(name)
    assert chip in TPUS and name.removeprefix(f"{slices}x") == f"{chip}:{'x'.join(map(str, shape))}"


def test_several_slices_have_the_devices_of_all():
    assert parse_topology("3xv5e:4x4") == (3, "v5e", (4, 4))
    assert [count_devices(name)[1] for name in ("v5e:4x4", "2xv5e:4x4", "2xv3:2x2")] == [16, 32, 16]


@pytest.mark.parametrize(
    "name",
    ["v5e-8", "v7x:2x2x1", "", "v5e", "v4:2x4", "v5e:2x2x1", "v5e:0x4", "v5e:2x", "V5E:2x4", "0xv5e:2x4", "xv5e:2x4"],
)
def test_a_wrong_name_is_told_with_right_ones(name):
    with pytest.raises(ConfigError) as error:
        describe_topology(name)
    assert f'topology "{name}" cannot be used' in str(error.value) and "v5e:2x4" in str(error.value)


def test_without_libtpu_the_way_to_get_it_is_told(bare, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxbooth\[plan\]'"):
        describe_topology("v5e:2x4")
    assert not set(topology.ENVIRONMENT) & set(os.environ)


def test_a_machine_with_a_tpu_keeps_its_environment(bare, monkeypatch):
    monkeypatch.setattr(topology, "tpu_machine", lambda: True)
    without_a_tpu()
    assert not set(topology.ENVIRONMENT) & set(os.environ)


def test_elsewhere_libtpu_is_told_not_to_look_for_a_tpu_unless_the_user_said_so(bare, monkeypatch):
    monkeypatch.setattr(topology, "tpu_machine", lambda: False)
    monkeypatch.setattr(topology.os, "environ", environment := {"TPU_LOG_DIR": "logs"})
    without_a_tpu()
    assert environment == topology.ENVIRONMENT | {"TPU_LOG_DIR": "logs"}
    assert jax.config.jax_platforms == "cpu"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible', "there is no such slice"),
        ("ABORTED: multi-process lockfile. Run rm", "another process holds libtpu"),
        ("FAILED_PRECONDITION: TPU_LOAD_LIBRARY=0, not loading libtpu", "libtpu cannot be used"),
    ],
)
def test_what_libtpu_says_becomes_an_error_that_can_be_mended(bare, monkeypatch, said, told):
    def refuse(**options):
        raise RuntimeError(f"{said}\nmore")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topology, "without_a_tpu", lambda: None)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match=told):
        describe_topology("v5e:3x3")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v4:2x2x2", {"chip_config_name": "megacore"}),
        ("v4:2x2x1", {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}),
        ("v5p:2x2x4", {"chip_config_name": "megacore"}),
        ("v5e:1x1", {"chips_per_host_bounds": (1, 1, 1)}),
        ("v5e:2x4", {"chips_per_host_bounds": (2, 4, 1)}),
        ("v5e:4x4", {}),
    ],
)
def test_cores_are_joined_and_small_slices_are_one_host(bare, monkeypatch, name, options):
    asked = {}

    class Description:
        devices = ()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topology, "without_a_tpu", lambda: None)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", lambda **given: asked.update(given) or Description)
    assert describe_topology(name) == []
    assert asked == {"platform": "tpu", "topology_name": name} | options


def test_chips_are_found_by_what_jax_calls_them():
    chips = (*TPUS.values(), *GPUS)
    kinds = [kind for chip in chips for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
    assert all(chip_of(kind) is chip for chip in chips for kind in chip.kinds)
    assert chip_of("cpu") is None
    for chip in chips:
        assert chip.source.startswith("https://")
        assert 10 < chip.memory_bytes / 2**30 < 200 and 5e13 < chip.flops < 2e15 and 2e11 < chip.bandwidth < 6e12
