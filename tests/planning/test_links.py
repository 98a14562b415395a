"""The bound by the links between chips: what leaves a chip, over the links that lead somewhere."""

from types import SimpleNamespace

import pytest

from jaxbooth.planning.chips import TPUS
from jaxbooth.planning.hlo import Collective
from jaxbooth.planning.links import exchange_seconds, slice_shape
from jaxbooth.planning.plan import StepPlan

GB = 10**9
FSDP = {"subject": 1, "data": 1, "fsdp": 4}
V5E = TPUS["v5e"]  # 50 GB a second over a link


@pytest.mark.parametrize(
    ("kind", "mesh", "shape", "seconds"),
    [
        ("all-gather", FSDP, (2, 2), 0.75 / 100),  # three quarters come from elsewhere, over two links
        ("reduce-scatter", FSDP, (2, 2), 0.75 / 100),
        ("all-reduce", FSDP, (2, 2), 1.5 / 100),  # summed in parts, then handed out
        ("all-reduce", {"subject": 1, "data": 4, "fsdp": 1}, (2, 2), 1.5 / 100),
        ("all-reduce", {"subject": 1, "data": 2, "fsdp": 8}, (4, 4), 1.0 / 200),  # the smaller group: a bound
        ("all-gather", {"subject": 1, "data": 1, "fsdp": 16}, (4, 4), 15 / 16 / 200),  # chips inside have four
        ("all-gather", {"subject": 1, "data": 1, "fsdp": 8}, (2, 4), 7 / 8 / 150),
        ("all-reduce", {"subject": 4, "data": 1, "fsdp": 1}, (2, 2), 0),  # subjects send each other nothing
        ("all-gather", {"subject": 1, "data": 1, "fsdp": 1}, (1, 1), 0),
    ],
)
def test_a_gigabyte_takes_what_the_links_allow(kind, mesh, shape, seconds):
    assert exchange_seconds({kind: Collective(3, GB)}, mesh, V5E, shape) == pytest.approx(seconds)


def test_two_devices_of_one_chip_share_its_links():
    v3 = TPUS["v3"]
    among_chips = exchange_seconds({"all-gather": Collective(1, GB)}, {"data": 1, "fsdp": 8}, v3, (2, 2))
    assert among_chips == pytest.approx(0.75 / 140)
    assert exchange_seconds({"all-gather": Collective(1, GB)}, {"data": 1, "fsdp": 2}, v3, (2, 2)) == 0


def test_links_can_be_what_binds():
    facts = {"flops": 1e12, "bytes_accessed": 2 * GB, "collectives": {"all-gather": Collective(1, 4 * GB)}}
    plan = StepPlan(1, 4, FSDP, "TPU v5 lite", True, 0, 0, **facts, slice_shape=(2, 2))
    assert (plan.bound_by, plan.least_seconds) == ("collectives", pytest.approx(0.03))
    elsewhere = StepPlan(1, 4, FSDP, "TPU v5 lite", True, 0, 0, **facts)  # several slices: not known
    assert elsewhere.exchange_seconds is None and elsewhere.bound_by == "flops"
    gpus = StepPlan(1, 4, FSDP, "NVIDIA H100 80GB HBM3", True, 0, 0, **facts, slice_shape=None)
    assert gpus.exchange_seconds is None


def test_a_slice_is_measured_by_its_chips_coordinates():
    def chip(x, y, number=0, platform="tpu"):
        return SimpleNamespace(platform=platform, coords=(x, y, 0), slice_index=number)

    one = [chip(x, y) for x in (2, 3) for y in range(4)]
    assert slice_shape(one) == (2, 4, 1)
    assert slice_shape([*one, chip(0, 0, number=1)]) is None
    assert slice_shape([chip(0, 0, platform="gpu")]) is None
