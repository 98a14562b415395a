"""`jaxbooth fleet plan`: the compiler's verdicts are made up here, so that every one of them can be had."""

import sys
from pathlib import Path

import jax
import pytest
import yaml
from PIL import Image
from small_recipe import said, small_family

from jaxbooth import cli, fleet_plan
from jaxbooth.errors import ConfigError, MeshError, MethodError
from jaxbooth.fleet_plan import plan_fleet, read_fleet
from jaxbooth.fleet_plan_text import describe_plan
from jaxbooth.planning import machine as machines
from jaxbooth.planning.machine import Machine, this_machine
from jaxbooth.pocket import BASE
from jaxbooth.sharding import MeshConfig


@pytest.fixture
def fleet(tmp_path):
    """Writes `subjects.yaml` and `run.yaml`; returns both paths."""

    def write(count: int, overrides: dict | None = None, **config) -> tuple[Path, Path]:
        photos = tmp_path / "photos"
        photos.mkdir(exist_ok=True)
        for number in range(3):
            Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(photos / f"{number}.png")
        subjects = [{"name": f"toy{number:04}", "images": "photos"} for number in range(count)]
        subjects[0] |= overrides or {}
        (tmp_path / "subjects.yaml").write_text(yaml.safe_dump({"subjects": subjects}))
        subject = {"name": "toy", "images": str(photos), "class_noun": "bear", "token": "sks"}
        values = {"base": {"path": str(BASE)}, "method": {"type": "lora", "rank": 2}, "subjects": [subject]}
        values |= {"data": {"resolution": 64}, "train": {"steps": 100}, "prior": {"loss_weight": 1.0}} | config
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "subjects.yaml", tmp_path / "run.yaml"

    return write


@pytest.fixture
def compiler_says(monkeypatch):
    """Packs of up to `room` subjects fit; each subject adds 0.1 s to a step. Gives the sizes that were asked for."""

    def say(room: int, kind: str = "TPU v5 lite") -> list[int]:
        asked = []

        def plan(self, step, size, compiler_options=None):
            asked.append(size)
            size = self.layout(step, size)[0]
            return said(size, size <= room, kind, gigabytes=81.9 * size)

        monkeypatch.setattr(Machine, "plan", plan)
        return asked

    return say


def eight(memory: int | None = None, mesh: MeshConfig = machines.CHOSEN) -> Machine:
    return Machine("v5e:2x4", tuple(jax.devices()), memory, mesh)


def planned(paths, machine=None, **options):
    manifest, config = read_fleet(*paths)
    return plan_fleet(manifest, config, machine or eight(), **options)


def sizes(plan) -> list[tuple[int, int]]:
    return [(len(pack.members), pack.size) for pack in plan.packs]


def test_the_largest_pack_that_fits_is_found_and_the_subjects_are_divided(fleet, compiler_says):
    asked = compiler_says(room=16)
    plan = planned(fleet(47))
    assert asked == [8, 16, 24] and plan.size == 16
    assert sizes(plan) == [(16, 16), (16, 16), (15, 16)]


def test_no_more_places_are_asked_for_than_there_are_subjects(fleet, compiler_says):
    asked = compiler_says(room=1000)
    plan = planned(fleet(20))
    assert asked == [8, 16, 24] and plan.size == 24 and sizes(plan) == [(20, 24)]


def test_a_given_size_is_the_only_one_asked_for(fleet, compiler_says):
    asked = compiler_says(room=16)
    plan = planned(fleet(20), pack_size=32)
    assert asked == [32] and plan.size is None and plan.packs == ()
    text = "\n".join(describe_plan(plan))
    assert "32 subjects: does not fit, needs 32.00 GiB of 16.00" in text and "base.remat=layers" in text


def test_a_given_size_that_does_not_fill_the_machine_is_planned_as_it_will_run(fleet, compiler_says):
    compiler_says(room=16)
    plan = planned(fleet(5), pack_size=5)
    assert plan.size == 5 and plan.plans[5].subjects == 8 and plan.hours == pytest.approx(100 * 0.8 / 3600)
    assert "packs: 1 of 8 places, 3 of them empty (--pack-size 5)" in "\n".join(describe_plan(plan))


def test_hours_and_price_by_the_bound_say_that_they_are_a_bound(fleet, compiler_says):
    compiler_says(room=8)
    plan = planned(fleet(16), price_per_hour=9.0)
    # Two packs of eight, 100 steps of 0.8 s.
    assert plan.hours == pytest.approx(2 * 100 * 0.8 / 3600)
    text = "\n".join(describe_plan(plan))
    assert "at least 0.0444 hours" in text and "a bound, not a measurement: 0.8 s a step" in text
    assert "price: at least 0.40 in all, 0.0250 a subject, at 9 an hour (given)" in text
    assert "not counted: loading, compilation" in text


def test_hours_by_a_measured_step_are_no_bound_and_small_packs_count_in_proportion(fleet, compiler_says):
    compiler_says(room=16)
    plan = planned(fleet(24), step_seconds=3.2)
    assert plan.size == 16 and sizes(plan) == [(16, 16), (4, 4), (4, 4)]
    assert plan.seconds(16) == 3.2 and plan.seconds(4) == pytest.approx(1.6)  # 8 was compiled
    text = "\n".join(describe_plan(plan))
    assert "at least" not in text.split("training:")[1] and "by the 3.2 s a step of 16 subjects that you gave" in text


def test_a_pack_takes_as_long_as_its_subject_with_most_steps(fleet, compiler_says):
    compiler_says(room=8)
    plan = planned(fleet(8, overrides={"steps": 300}))
    assert plan.hours == pytest.approx(300 * 0.8 / 3600)


def test_devices_without_published_peaks_need_a_measured_step(fleet, compiler_says):
    compiler_says(room=8, kind="cpu")
    machine = Machine("this machine", tuple(jax.devices()), 2**34)
    plan = planned(fleet(8), machine)
    assert plan.hours is None
    assert "hours: unknown, there is no bound for cpu" in "\n".join(describe_plan(plan))
    assert planned(fleet(8), machine, step_seconds=36.0).hours == pytest.approx(1.0)


def test_the_base_is_told_to_be_moved_once_where_two_sizes_show_it(fleet, compiler_says):
    compiler_says(room=8)
    assert not [line for line in describe_plan(planned(fleet(8))) if line.startswith("frozen")]
    compiler_says(room=16)
    line = next(line for line in describe_plan(planned(fleet(16))) if line.startswith("frozen"))
    assert "3 GB on each device; using them moves 5 GB at 8, 5 GB at 16 subjects a step" in line


def test_packs_too_small_for_the_machine_are_filled_up_and_take_as_long(fleet, compiler_says):
    compiler_says(room=16)
    plan = planned(fleet(17))
    assert plan.size == 16 and sizes(plan) == [(16, 16), (1, 1)]
    assert plan.places == {16: 16, 1: 8}  # two rows do not divide over eight devices
    assert plan.hours == pytest.approx(100 * (1.6 + 0.8) / 3600)
    assert "packs: 1 of 16, 1 of 8 places, 7 of them empty (--pack-size 16)" in "\n".join(describe_plan(plan))


def test_whole_models_are_planned_one_at_a_time(fleet, compiler_says):
    asked = compiler_says(room=100)
    paths = fleet(3, method={"type": "dreambooth"}, train={"steps": 10, "batch_size": 4})
    assert planned(paths).size == 1 and asked == [1]
    with pytest.raises(MethodError, match="whole models"):
        planned(paths, pack_size=4)


def test_a_configured_mesh_is_kept(fleet, compiler_says):
    asked = compiler_says(room=100)
    plan = planned(fleet(5), eight(mesh=MeshConfig(subject=4, data=2)))
    assert asked == [8] and plan.machine.layout(plan.step, 5)[1].shape == {"subject": 4, "data": 2, "fsdp": 1}
    with pytest.raises(MeshError, match="there are 8 devices"):
        planned(fleet(5), eight(mesh=MeshConfig(subject=3)))
    for options in ({}, {"pack_size": 8, "ask_compiler": False}):
        with pytest.raises(MeshError, match="2 rows a step .* do not divide"):
            planned(fleet(5), eight(mesh=MeshConfig(data=8)), **options)


def test_without_the_compiler_a_size_must_be_given_and_is_trusted(fleet, compiler_says):
    asked = compiler_says(room=1)
    with pytest.raises(ConfigError, match="give --pack-size"):
        planned(fleet(20), ask_compiler=False)
    plan = planned(fleet(20), ask_compiler=False, pack_size=16, step_seconds=9.0)
    assert asked == [] and plan.hours == pytest.approx((100 + 100) * 9.0 / 3600)
    assert "taken on trust" in "\n".join(describe_plan(plan))


def test_published_bases_need_no_files(fleet):
    _, config = read_fleet(*fleet(1, base={"path": "sd15", "dtype": "bfloat16"}, data={"resolution": 512}))
    step = fleet_plan.step_recipe(config)
    assert (step.rows, step.resolution, step.dtype, step.family.name) == (2, 512, "bfloat16", "sd1")
    assert small_family().name == "sd1"


def test_this_machine_s_memory_is_shared_by_its_devices_unless_a_bound_is_given():
    found = this_machine(None)
    assert found.devices == tuple(jax.devices()) and 2**26 < found.memory_bytes < 2**45
    assert this_machine(None, memory_gib=1.5).memory_bytes == 3 * 2**29


def test_the_command_prints_the_plan_and_its_exit_code_says_whether_all_fits(fleet, compiler_says, capsys, monkeypatch):
    def call(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["jaxbooth", "fleet", "plan", *map(str, arguments)])
        capsys.readouterr()
        code = cli._run()
        return code, "".join(capsys.readouterr())

    manifest, config = fleet(16)
    compiler_says(room=8)
    code, out = call(manifest, "--config", config, "train.steps=50", "--step-seconds", "2", "--price-per-hour", "3")
    assert code == 0 and "packs: 2 of 8 places, 0 of them empty (--pack-size 8)" in out
    assert "training: 0.0556 hours" in out and "price: 0.17 in all" in out
    compiler_says(room=0)
    assert call(manifest, "--config", config)[0] == 3
    code, out = call(manifest, "--config", config, "--topology", "v5e-8")
    assert code == 2 and 'topology "v5e-8" cannot be used' in out
