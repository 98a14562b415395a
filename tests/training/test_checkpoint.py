import json
import os
import shutil
import stat
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import FINGERPRINT, assert_bit_equal, make_mesh, make_state, open_store, save_steps, shapes_of

from jaxbooth.errors import CheckpointError
from jaxbooth.training import checkpoint_folder, digests

# Round trips


def test_restore_newest_is_bit_equal_to_the_newest_save(folder, mesh):
    state = make_state(2, mesh)
    with open_store(folder) as store:
        step, restored = store.restore_newest(state)
    assert step == 2
    assert_bit_equal(restored, state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert one.sharding == other.sharding


@pytest.mark.parametrize("shape", [(1, 2, 2), (4, 1, 1), (1, 1, 1), (1, 1, 8), (8, 1, 1)])
def test_restore_on_another_mesh_is_bit_equal(folder, target, mesh, shape):
    other = make_mesh(*shape)
    with open_store(folder) as store:
        restored = store.restore(1, shapes_of(target, other))
    assert_bit_equal(restored, make_state(1, mesh))
    assert {device for leaf in jax.tree.leaves(restored) for device in leaf.devices()} == set(other.devices.flat)


def test_a_chain_of_eight_four_and_one_devices_keeps_every_bit(tmp_path, target, mesh):
    state = make_state(1, mesh)
    with open_store(tmp_path) as store:
        for step, shape in enumerate([(2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 1, 4)], start=1):
            store.save(step, state)
            state = store.restore(step, shapes_of(target, make_mesh(*shape)))
    assert_bit_equal(state, make_state(1, mesh))


def test_the_state_may_be_donated_once_save_returns(tmp_path, mesh):
    overwrite = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    with open_store(tmp_path) as store:
        state = make_state(1, mesh)
        shapes = shapes_of(state)
        store.save(1, state)
        jax.block_until_ready(overwrite(state))
        restored = store.restore(1, shapes)
        jax.block_until_ready(overwrite(restored))  # a restored state can be donated, too
        assert_bit_equal(store.restore(1, shapes), make_state(1, mesh))


def test_a_save_is_finished_without_another_call(tmp_path, mesh):
    with open_store(tmp_path) as store:
        store.save(1, make_state(1, mesh))
        deadline = time.monotonic() + 60
        while store.steps() != [1] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store.steps() == [1]


def test_the_seal_lists_every_leaf_file_and_version(folder):
    seal = json.loads((folder / "2" / "DONE.json").read_text())
    assert seal["format"] == digests.FORMAT and seal["step"] == 2 and seal["fingerprint"] == FINGERPRINT
    assert seal["leaves"] == {
        "step": [[], "int32"],
        "adapter.unet.to_q.lora_a": [[8, 16, 64], "float32"],
        "adapter.rows": [[0, 3], "float32"],
        "opt_state.0.count": [[], "int32"],
        "opt_state.0.mu.a": [[8, 16, 64], "bfloat16"],
        "finite": [[8], "bool"],
    }
    assert seal["versions"]["jax"] == jax.__version__ and "orbax-checkpoint" in seal["versions"]
    files = {
        path.relative_to(folder / "2").as_posix() for path in (folder / "2" / "state").rglob("*") if path.is_file()
    }
    assert set(seal["files"]) == files


# What stays in the folder


def test_an_empty_folder_has_nothing_to_restore(tmp_path, target):
    with open_store(tmp_path / "run" / "checkpoints") as store:
        assert store.steps() == [] and store.restore_newest(target) is None


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40]), (None, [10, 20, 30, 40])])
def test_the_newest_checkpoints_are_kept(tmp_path, keep, left):
    save_steps(tmp_path, 10, 20, 30, 40, keep=keep)
    with open_store(tmp_path) as store:
        assert store.steps() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in left]


def test_a_save_below_the_newest_step_removes_neither(tmp_path, mesh):
    save_steps(tmp_path, 10, 20)
    with open_store(tmp_path, keep=1) as store:
        store.save(15, make_state(15, mesh))
    assert open_store(tmp_path).steps() == [15, 20]


def test_saving_a_finished_step_again_changes_nothing(folder, mesh):
    before = (folder / "2" / "DONE.json").stat()
    with open_store(folder) as store:
        store.save(2, make_state(99, mesh))
        assert_bit_equal(store.restore(2, make_state(0, mesh)), make_state(2, mesh))
    after = (folder / "2" / "DONE.json").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_files_and_folders_are_private_under_a_loose_umask(tmp_path):
    before = os.umask(0o022)
    try:
        save_steps(tmp_path / "checkpoints", 1)
    finally:
        os.umask(before)
    paths = [tmp_path / "checkpoints", *(tmp_path / "checkpoints").rglob("*")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_drafts_of_dead_runs_are_removed_and_those_of_live_ones_stay(tmp_path):
    live = checkpoint_folder.CheckpointFolder(tmp_path)
    draft = tmp_path / live.make_draft(3)
    (tmp_path / "2.tmp-dead" / "state").mkdir(parents=True)
    assert open_store(tmp_path).steps() == []
    assert [path.name for path in tmp_path.iterdir()] == [draft.name]
    live.discard(draft)


def test_of_two_stores_that_save_the_same_step_one_wins_whole(tmp_path, mesh, target):
    with open_store(tmp_path) as one, open_store(tmp_path) as other:
        one.save(5, make_state(1, mesh))
        other.save(5, make_state(2, mesh))
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    with open_store(tmp_path) as store:
        _, restored = store.restore_newest(target)
    winner = 1 if int(restored["step"]) == 1 else 2
    assert_bit_equal(restored, make_state(winner, mesh))


# What does not fit


def test_all_leaves_that_differ_are_listed_in_one_error(folder, target, mesh):
    adapter = {
        "unet.to_q.lora_a": target["adapter"]["unet.to_q.lora_a"].update(shape=(8, 4, 64)),
        "new": target["step"],
    }
    changed = {**target, "adapter": adapter, "step": target["step"].update(dtype=jnp.uint32)}
    with open_store(folder) as store, pytest.raises(CheckpointError) as error:
        store.restore_newest(changed)
    for line in (
        "4 arrays of the checkpoint do not fit",
        "adapter.new: missing from the checkpoint",
        "adapter.rows: in the checkpoint only",
        "adapter.unet.to_q.lora_a: float32[8, 16, 64] in the checkpoint, float32[8, 4, 64] in this run",
        "step: int32[] in the checkpoint, uint32[] in this run",
    ):
        assert line in str(error.value)
    assert open_store(folder).steps() == [1, 2]


def test_a_checkpoint_of_another_run_is_refused_by_the_keys_that_differ(folder, target):
    with open_store(folder, fingerprint={"method": "dora", "base": "tiny", "rank": "4"}) as store:
        with pytest.raises(CheckpointError) as error:
            store.restore_newest(target)
    assert "method: 'lora' in the checkpoint, 'dora' in this run" in str(error.value)
    assert "rank: None in the checkpoint, '4' in this run" in str(error.value)
    assert "base" not in str(error.value).split("\n", 1)[1]
    assert open_store(folder).steps() == [1, 2]


def test_a_seal_of_another_format_is_refused_and_not_called_damaged(folder, target, monkeypatch):
    monkeypatch.setattr(digests, "FORMAT", digests.FORMAT + 1)
    with open_store(folder) as store, pytest.raises(CheckpointError, match="reads format 2"):
        store.restore_newest(target)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(folder, target):
    with open_store(folder) as store, pytest.raises(CheckpointError, match=r"no such checkpoint. Steps: \[1, 2\]"):
        store.restore(7, target)


@pytest.mark.parametrize("leaf", [np.zeros(3), 1.0, jax.random.key(0)], ids=["numpy", "float", "key"])
def test_a_state_of_anything_but_arrays_is_a_type_error_that_names_the_leaf(tmp_path, leaf):
    with open_store(tmp_path) as store, pytest.raises(TypeError, match="opt.mu"):
        store.save(1, {"opt": {"mu": leaf}})


def test_leaves_of_the_same_dotted_name_are_refused(tmp_path):
    with open_store(tmp_path) as store, pytest.raises(ValueError, match="dotted name"):
        store.save(1, {"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}})


def test_a_target_without_a_sharding_is_refused(folder, target):
    with open_store(folder) as store, pytest.raises(TypeError, match="finite"):
        store.restore(2, {**target, "finite": jax.ShapeDtypeStruct((8,), jnp.bool)})


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        open_store(tmp_path, keep=0)


# Saves that fail


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(folder, facts):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(digests, "seal", refuse)
    return monkeypatch


def test_a_failed_save_is_reported_by_the_next_one_and_the_store_stays_usable(folder, mesh, target, full_disk):
    with open_store(folder) as store:
        store.save(3, make_state(3, mesh))
        with pytest.raises(CheckpointError) as error:
            store.save(4, make_state(4, mesh))
        assert str(folder / "3") in str(error.value) and "No space left" in str(error.value)
        assert "Free space: " in str(error.value) and "Finished checkpoints: [1, 2]" in str(error.value)
        assert not list(folder.glob("*.tmp-*"))  # its files do not fill the disk further
        full_disk.undo()
        store.save(4, make_state(4, mesh))
    assert open_store(folder).restore_newest(target)[0] == 4


def test_a_failed_last_save_is_reported_on_leaving(folder, mesh, full_disk):
    with pytest.raises(CheckpointError, match="No space left"), open_store(folder) as store:
        store.save(3, make_state(3, mesh))


def test_closing_twice_is_allowed(folder, mesh):
    with open_store(folder) as store:
        store.save(3, make_state(3, mesh))
        store.close()
    assert store.steps() == [1, 2, 3]


def test_the_exception_that_ends_the_run_is_not_hidden_by_a_failed_save(folder, mesh, full_disk, caplog):
    with pytest.raises(ZeroDivisionError), open_store(folder) as store:
        store.save(3, make_state(3, mesh))
        raise ZeroDivisionError
    assert "could not be written" in caplog.text


def test_a_folder_that_vanishes_is_an_error_with_its_name(folder, mesh):
    with open_store(folder) as store:
        shutil.rmtree(folder)
        with pytest.raises(CheckpointError, match=str(folder)):
            store.save(3, make_state(3, mesh))


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written here"):
        open_store(tmp_path / "file" / "checkpoints")
