"""Runs of the command in processes of their own: killed, asked to stop, or damaged, they go on as if nothing had been.

And the same run by two processes, which must be the one that a single process makes.
"""

import json
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from command import Command, call, difference, losses, state, two_processes, weights, write_config
from PIL import Image
from twins import SMALLEST, make_twin

from jaxbooth.sharding import MeshConfig, make_mesh

STEPS, PREEMPTED = 10, 75


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """A folder with `toy.yaml` and `straight`, its ten steps on one device, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    call(folder, "train", write_config(folder, make_twin(folder / "base", "sd1", **SMALLEST)), "run_dir=straight")
    return folder


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


PROBED = ["train.probe.every_steps=2", "train.probe.timesteps=2"]
DRAWN = ["sample.prompts=['a {token} {class_noun}']", "sample.every_steps=3", "sample.num_steps=1"]
DRAWN += ["sample.guidance_scale=1", "sample.sampler=euler_ancestral"]


@pytest.mark.slow
def test_with_probes_and_pictures_on_the_way_it_is_the_same_run_killed_or_not(run):
    """And its state is that of the run without them."""
    watched, overrides = run.with_name("watched"), [*PROBED, *DRAWN]
    call(run.parent, "train", "toy.yaml", "run_dir=watched", *overrides)
    assert_same_bits(state(watched, STEPS), state(run.parent / "straight", STEPS))
    kill_after(run, 4, *overrides)
    assert "going on from step" in go_on(run, *overrides)
    assert losses(run) == losses(watched) and (run / "probe.jsonl").read_text() == (watched / "probe.jsonl").read_text()
    assert [line["step"] for line in losses(run) if "probe/class" in line] == [0, 2, 4, 6, 8, 10]
    assert_same_bits(state(run, STEPS), state(watched, STEPS))
    best = (run / "checkpoints" / "best.json").read_text()
    assert best == (watched / "checkpoints" / "best.json").read_text()
    pictures = {str(file.relative_to(watched)): file.read_bytes() for file in (watched / "samples").rglob("*.png")}
    folders = ("before", "step-000003", "step-000006", "step-000009", "after")
    assert pictures.keys() == {f"samples/{folder}/00.png" for folder in folders}
    assert all((run / name).read_bytes() == content for name, content in pictures.items())


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


@pytest.mark.slow
def test_a_run_may_sum_its_gradients_in_bfloat16(run):
    straight, rounded = run.parent / "straight", "train.reduce_dtype=bfloat16"
    call(run.parent, "train", "toy.yaml", f"run_dir={run.name}", "mesh.data=2", "mesh.fsdp=4", rounded, devices=8)
    for ours, theirs in zip(losses(run), losses(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)
    assert 1e-5 < difference(weights(run), weights(straight)) <= 1e-2


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


# ---- two processes


def test_two_processes_of_four_devices_train_as_one_process_of_one_device(straight_run):
    """The second has a cache of its own, as hosts have: what it must encode again, both encode."""
    mesh, caches = ("mesh.data=2", "mesh.fsdp=4"), ("cache", "cache-of-its-own")
    with two_processes(straight_run, "train", "toy.yaml", "run_dir=two", *mesh, caches=caches) as commands:
        for command in commands:
            assert command.finish() == 0, command.said()
    two, straight = straight_run / "two", straight_run / "straight"
    for ours, theirs in zip(losses(two), losses(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    errors = difference(weights(two), weights(straight)), difference(*map(with_gradient, (two, straight)))
    print("weights {:.1e}, state {:.1e}".format(*errors))
    assert max(errors) <= 1e-5


def with_gradient(run):
    """The last state without the moments of keys' biases, which softmax does not see: rounding errors of a zero."""
    arrays = state(run, STEPS)
    return {name: array for name, array in arrays.items() if not ("opt_state" in name and "k_proj.bias" in name)}


@pytest.mark.slow
def test_two_processes_draw_what_one_process_draws(straight_run):
    """With class pictures of the base, the text encoder frozen, and pictures before and after."""
    options = ["mesh.data=2", "mesh.fsdp=4", "method.train_text_encoder=false", "train.steps=3", "train.ema_decay=0.9"]
    options += ["prior.images=null", "prior.num_images=5", "prior.num_steps=2"]
    options += ["sample.prompts=['a {token} {class_noun}']", "sample.num_steps=2"]
    drawn = "train", "toy.yaml", *options
    with two_processes(straight_run, *drawn, "run_dir=two-draw", caches=("cache-two", "cache-two")) as commands:
        for command in commands:
            assert command.finish() == 0, command.said()
    call(straight_run, *drawn, "run_dir=one-draws", devices=8, JAXBOOTH_CACHE=str(straight_run / "cache-one"))
    assert difference(weights(straight_run / "two-draw"), weights(straight_run / "one-draws")) <= 1e-5
    for folders, count in ((("two-draw/samples", "one-draws/samples"), 2), (("cache-two/prior", "cache-one/prior"), 5)):
        two, one = (sorted((straight_run / folder).rglob("*.png")) for folder in folders)
        assert len(two) == len(one) == count
        for ours, theirs in zip(two, one, strict=True):
            assert ours.parts[-2:] == theirs.parts[-2:]
            np.testing.assert_allclose(np.array(Image.open(ours), int), np.array(Image.open(theirs), int), atol=1)


@pytest.mark.slow
def test_two_processes_probe_and_draw_on_the_way_as_one_process_does(straight_run):
    options = "train", "toy.yaml", "mesh.data=2", "mesh.fsdp=4", *PROBED, *DRAWN
    with two_processes(straight_run, *options, "run_dir=two-watched") as commands:
        for command in commands:
            assert command.finish() == 0, command.said()
    call(straight_run, *options, "run_dir=one-watched", devices=8)
    two, one = straight_run / "two-watched", straight_run / "one-watched"
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    notes = [json.loads((folder / "checkpoints" / "best.json").read_text()) for folder in (two, one)]
    assert notes[0] == pytest.approx(notes[1], rel=1e-5)
    pictures = [sorted((folder / "samples").rglob("*.png")) for folder in (two, one)]
    assert len(pictures[0]) == 5
    for ours, theirs in zip(*pictures, strict=True):
        assert ours.parts[-2:] == theirs.parts[-2:]
        np.testing.assert_allclose(np.array(Image.open(ours), int), np.array(Image.open(theirs), int), atol=1)


@pytest.mark.slow
def test_when_one_of_two_processes_is_asked_to_stop_both_save_and_one_process_goes_on(straight_run):
    run, mesh = straight_run / "stopped", ("mesh.data=2", "mesh.fsdp=4")
    with two_processes(straight_run, "train", "toy.yaml", "run_dir=stopped", "train.steps=200", *mesh) as commands:
        commands[1].until(lambda: (run / "metrics.jsonl").is_file() and len(losses(run)) >= 2)
        commands[1].terminate()
        assert [command.finish() for command in commands] == [75, 75]
    step = len(losses(run))
    assert 2 <= step < 200 and is_sealed(run, step)
    assert f"going on from step {step}" in go_on(run, "train.steps=200")
    assert len(losses(run)) == 200 and is_sealed(run, 200)
    for ours, theirs in zip(losses(run), losses(straight_run / "straight"), strict=False):
        assert ours == pytest.approx(theirs, rel=1e-4)
