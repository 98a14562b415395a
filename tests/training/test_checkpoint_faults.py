"""Kills, full disks and failures, from outside, on training programs in processes of their own."""

import os
import random
import signal
import subprocess
import time

import checkpoint_program
import pytest
from program_runner import resumed_step

from jaxbooth.training.checkpoint_folder import CheckpointFolder


def kill_while_saving(start, folder, trials, seed):
    waits = random.Random(seed)
    for _ in range(trials):
        finished = CheckpointFolder(folder, read_only=True).finished() if folder.exists() else []
        first = max(finished, default=0) + 1
        program = start(folder, "--megabytes", 24)
        program.wait_for(f"restored {first - 1}")
        program.wait_for(f"saved {first + 1}")
        time.sleep(waits.uniform(0, 0.4))
        program.kill()
        code, _ = program.finish()
        assert code == -signal.SIGKILL
        # Save n + 1 returns only after the commit of n.
        assert CheckpointFolder(folder, read_only=True).finished()[-1] >= first
    newest = CheckpointFolder(folder, read_only=True).finished()[-1]
    assert resumed_step(folder, "--megabytes", 24) == newest
    assert not list(folder.glob("*.tmp-*")) and not list(folder.glob("*.damaged-*"))


def test_three_kills_while_saving_resume_at_the_last_finished_checkpoint(start, tmp_path):
    kill_while_saving(start, tmp_path / "checkpoints", trials=3, seed=0)


@pytest.mark.slow
def test_eight_kills_while_saving_resume_at_the_last_finished_checkpoint(start, tmp_path):
    kill_while_saving(start, tmp_path / "checkpoints", trials=8, seed=1)


@pytest.mark.parametrize(("moment", "resumed"), [("seal", 1), ("rename", 1), ("prune", 2)])
def test_a_kill_at_each_instant_of_the_commit_leaves_a_whole_checkpoint(start, tmp_path, moment, resumed):
    code, _ = start(tmp_path, "--until", 2, "--keep", 1, "--kill-at", moment).finish()
    assert code == -signal.SIGKILL
    assert CheckpointFolder(tmp_path, read_only=True).finished() == [resumed]
    assert resumed_step(tmp_path, "--keep", 1) == resumed
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [str(resumed)]


def test_an_exception_of_the_loop_still_commits_the_last_save(start, tmp_path):
    program = start(tmp_path, "--raise-at", 3, "--megabytes", 8)
    code, lines = program.finish()
    assert code == 1 and lines[-1] == "saved 3"
    assert "a failure of the training loop" in program.errors.read_text()
    assert CheckpointFolder(tmp_path, read_only=True).finished()[-1] == 3


def test_ctrl_c_twice_still_commits_the_last_save(start, tmp_path):
    program = start(tmp_path, "--megabytes", 8)
    program.wait_for("saved 2")
    for _ in range(2):
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    code, lines = program.finish()
    assert code == -signal.SIGINT and "KeyboardInterrupt" in program.errors.read_text()
    last = int(lines[-1].split()[1]) if lines else 2
    assert CheckpointFolder(tmp_path, read_only=True).finished()[-1] >= last


def test_a_save_that_cannot_be_written_is_reported_and_the_program_ends(start, tmp_path):
    checkpoint_program.main([str(tmp_path), "--until", "1", "--megabytes", "4"])
    program = start(tmp_path, "--megabytes", 4, "--limit-bytes", 100_000)
    code, lines = program.finish()  # hangs for ever if a thread of the failed save stays behind
    errors = program.errors.read_text()
    assert code == 1 and lines == ["restored 1", "saved 2"]
    assert f"CheckpointError: {tmp_path / '2'}: the checkpoint could not be written" in errors
    assert "Free space" in errors and "Finished checkpoints: [1]" in errors
    assert resumed_step(tmp_path, "--megabytes", 4) == 1


def test_a_save_whose_folders_cannot_be_made_is_reported_and_the_program_ends(start, tmp_path):
    program = start(tmp_path, "--spoil-drafts")
    code, lines = program.finish()
    assert code == 1 and lines == ["restored 0", "saved 1"]
    assert f"CheckpointError: {tmp_path / '2'}: the checkpoint could not be written" in program.errors.read_text()
    assert resumed_step(tmp_path) == 1


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_training_resumes_after_it_grew(start, small_disk):
    folder = small_disk / "checkpoints"
    program = start(folder, "--megabytes", 4)
    code, lines = program.finish()
    errors = program.errors.read_text()
    assert code == 1 and lines[-1] == "saved 3"
    assert f"CheckpointError: {folder / '3'}" in errors and "Free space: 0." in errors
    assert "Finished checkpoints: [1, 2]" in errors
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    code, lines = start(folder, "--megabytes", 4, "--until", 4).finish()
    assert code == 0 and lines == ["restored 2", "saved 3", "saved 4"]


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_ends_the_program_with_its_name(start, small_disk):
    folder = small_disk / "checkpoints"
    program = start(folder)
    program.wait_for("saved 2")
    for _ in range(200):  # busy while a file is open for writing
        if not subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True).returncode:
            break
        time.sleep(0.01)
    code, _ = program.finish()
    assert code == 1 and f"CheckpointError: {folder}" in program.errors.read_text()
    program = start(folder)
    assert program.finish() == (1, []) and "cannot be written here" in program.errors.read_text()


@pytest.mark.slow
def test_two_processes_save_and_resume_on_other_numbers_of_processes(start, start_two, tmp_path):
    for program in start_two(tmp_path, "--until", 3, "--megabytes", 8):
        code, lines = program.finish()
        assert (code, [line for line in lines if "Gloo" not in line]) == (
            0,
            ["restored 0", "saved 1", "saved 2", "saved 3"],
        )
    assert CheckpointFolder(tmp_path, read_only=True).finished() == [1, 2, 3]
    for program in start_two(tmp_path, "--until", 4, "--megabytes", 8, "--mesh", "4x1x2"):
        program.wait_for("restored 3")
        assert program.finish()[0] == 0
    for mesh in ("2x2x2", "1x1x1"):
        one = start(tmp_path, "--until", 0, "--megabytes", 8, "--mesh", mesh, devices=8 if mesh == "2x2x2" else 1)
        assert one.finish() == (0, ["restored 4"])
    os.truncate(tmp_path / "4" / "DONE.json", 9)
    for program in start_two(tmp_path, "--until", 0, "--megabytes", 8):
        program.wait_for("restored 3")  # both agree on it, though only one looks at the files
        assert program.finish()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_of_one_of_two_processes_while_saving_leaves_a_whole_checkpoint(start, start_two, tmp_path, victim):
    pair = start_two(tmp_path, "--megabytes", 48)
    pair[victim].wait_for("saved 3")
    time.sleep(0.1)
    pair[victim].kill()
    assert all(program.finish()[0] != 0 for program in pair)  # the other one is ended by JAX, not by us
    newest = CheckpointFolder(tmp_path, read_only=True).finished()[-1]
    assert newest >= 2
    assert resumed_step(tmp_path, "--megabytes", 48) == newest
    assert not list(tmp_path.glob("[0-9]*.tmp-*")) and not list(tmp_path.glob("*.damaged-*"))
    assert os.path.isdir(tmp_path / str(newest))
