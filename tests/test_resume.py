"""Runs that are killed, asked to stop, or damaged, and go on with the same command: as if nothing had happened."""

import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from command import Command, difference, losses, state, weights

from jaxbooth.sharding import MeshConfig, make_mesh

STEPS, PREEMPTED = 10, 75


@pytest.fixture
def run(straight_run):
    """A place for a run of its own, beside the undisturbed one."""
    return straight_run / f"run-{len(list(straight_run.glob('run-*')))}"


@pytest.fixture
def finished(straight_run, run):
    """A copy of the undisturbed run."""
    shutil.copytree(straight_run / "straight", run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("run_dir: straight", f"run_dir: {run.name}"))
    return run


def train(run, *overrides, **options):
    """The command in a process of its own; each start of a run differs from the last in nothing but `overrides`."""
    return Command(run.parent, "train", "toy.yaml", f"run_dir={run.name}", *overrides, **options)


def go_on(run, *overrides):
    """The same command again, to its good end; returns what it printed."""
    with train(run, *overrides) as command:
        assert command.finish() == 0, command.said()
        return command.said()


def is_sealed(run, step):
    return (run / "checkpoints" / str(step) / "DONE.json").is_file()


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different


def assert_equals_straight(run):
    """Losses, state and exported weights, all of them bit for bit."""
    straight = run.parent / "straight"
    assert [line["step"] for line in losses(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(straight)
    assert_same_bits(state(run, STEPS), state(straight, STEPS))
    assert_same_bits(weights(run), weights(straight))


def kill_after(run, step, *overrides, **options):
    """Starts the run and ends it by SIGKILL as soon as the checkpoint of `step` is there."""
    with train(run, *overrides, **options) as command:
        command.until(lambda: is_sealed(run, step))
        command.kill()
        assert command.finish() == -9
    assert not (run / "pipeline").exists()


def test_4_steps_then_kill_9_then_6_steps_are_10_steps_bit_for_bit(run):
    kill_after(run, 4)
    assert not is_sealed(run, 8)
    assert "going on from step 4" in go_on(run)
    assert_equals_straight(run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["10", "4", "8"]


def test_after_kill_9_on_eight_devices_one_device_goes_on_with_the_same_state(run):
    kill_after(run, 4, "mesh.data=2", "mesh.fsdp=4", devices=8)
    eight = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:8])
    restored = state(run, 4)
    assert_same_bits(restored, state(run, 4, eight))
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in restored}
    stored = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / "4" / "state", restore_args=as_numpy)
    assert_same_bits(restored, stored)

    before = losses(run)[:4]
    assert "going on from step 4" in go_on(run)
    assert losses(run)[:4] == before  # what eight devices have written stays
    straight = run.parent / "straight"
    for ours, theirs in zip(losses(run), losses(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    error = difference(weights(run), weights(straight))
    print(f"weights after {STEPS} steps: {error:.1e}")
    assert error <= 1e-5


def test_sigterm_saves_and_exits_with_75_and_the_same_command_finishes(run):
    with train(run) as command:
        command.until(lambda: (run / "metrics.jsonl").is_file() and len(losses(run)) >= 2)
        command.terminate()
        assert command.finish() == PREEMPTED
        said = command.said()
    step = len(losses(run))
    assert step < STEPS and f"stopped at step {step}; it is saved" in said
    assert is_sealed(run, step) and not (run / "pipeline").exists()
    assert f"going on from step {step}" in go_on(run)
    assert_equals_straight(run)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip_one_bit(file):
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        byte = handle.read(1)[0]
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 1]))


def test_damaged_newest_checkpoints_are_named_and_set_aside_and_the_one_before_is_used(finished):
    steps, shown = finished / "checkpoints", []
    for step, damage in ((10, truncate), (8, flip_one_bit)):
        largest = max((steps / str(step) / "state").rglob("*"), key=lambda file: file.stat().st_size)
        damage(largest)
        name = largest.relative_to(steps / str(step))
        shown.append(f"{steps / str(step)}: damaged, kept as {step}.damaged-0: {name}")
    shutil.rmtree(finished / "pipeline")
    said = go_on(finished)
    assert all(line in said for line in shown)
    assert said.index(shown[0]) < said.index(shown[1]) < said.index("going on from step 4")
    assert sorted(path.name for path in steps.iterdir()) == ["10", "10.damaged-0", "4", "8", "8.damaged-0"]
    assert_equals_straight(finished)


def test_a_finished_run_started_again_does_nothing(finished):
    before = contents(finished)
    said = go_on(finished)
    assert "going on from step 10" in said
    assert contents(finished) == before


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_that_was_stopped_is_not_taken_over_by_another_configuration(finished):
    before = contents(finished)
    with train(finished, "train.seed=1") as command:
        assert command.finish() == 2
        assert "train.seed: 0 -> 1" in command.said()
    assert contents(finished) == before
