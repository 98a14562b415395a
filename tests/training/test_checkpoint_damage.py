import logging
import os
import shutil
import stat

import pytest
from checkpoint_states import assert_bit_equal, make_state, open_store

from jaxbooth.errors import CheckpointError


def biggest_file(step_folder):
    return max((path for path in step_folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


DAMAGES = [
    *((how, biggest_file, "state/ocdbt.process_0/d/") for how in (truncate, empty, os.remove, flip_a_byte)),
    *((how, lambda step: step / "state" / "_METADATA", "_METADATA") for how in (truncate, os.remove, flip_a_byte)),
    *((how, lambda step: step / "state" / "manifest.ocdbt", "manifest.ocdbt") for how in (truncate, os.remove)),
    *((how, lambda step: step / "DONE.json", "DONE.json") for how in (truncate, empty, os.remove, flip_a_byte)),
    (shutil.rmtree, lambda step: step / "state", "is missing"),
]


@pytest.mark.parametrize(("how", "where", "named"), DAMAGES)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_used(
    folder, target, mesh, caplog, how, where, named
):  # fmt: skip
    how(where(folder / "2"))
    with caplog.at_level(logging.WARNING), open_store(folder) as store:
        step, restored = store.restore_newest(target)
        assert step == 1 and store.steps() == [1]
        assert_bit_equal(restored, make_state(1, mesh))
        assert str(folder / "2") in caplog.text and named in caplog.text and "2.damaged-0" in caplog.text
        store.save(2, make_state(2, mesh))
        assert store.restore_newest(target)[0] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged-0"]


def test_a_flipped_byte_is_found_in_every_file(folder, target):
    with open_store(folder) as store:
        for path in [path for path in (folder / "2").rglob("*") if path.is_file()]:
            flip_a_byte(path)
            with pytest.raises(CheckpointError, match=path.name):
                store.restore(2, target)
            flip_a_byte(path)
        store.restore(2, target)


def test_a_step_damaged_twice_keeps_both_remains(folder, target, mesh):
    with open_store(folder) as store:
        flip_a_byte(biggest_file(folder / "2"))
        store.restore_newest(target)
        store.save(2, make_state(2, mesh))
        assert store.restore_newest(target)[0] == 2
        os.remove(folder / "2" / "DONE.json")
        store.save(2, make_state(2, mesh))
        assert store.restore_newest(target)[0] == 2
    assert sorted(path.name for path in folder.glob("*.damaged-*")) == ["2.damaged-0", "2.damaged-1"]


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_again_silently(folder, target):
    flip_a_byte(biggest_file(folder / "1"))
    truncate(folder / "2" / "DONE.json")
    for _ in range(2):  # also when the damaged ones have been set aside before
        with (
            open_store(folder) as store,
            pytest.raises(CheckpointError, match="every checkpoint of this run is damaged"),
        ):
            store.restore_newest(target)
    assert sorted(path.name for path in folder.iterdir()) == ["1.damaged-0", "2.damaged-0"]


# Reading only


def test_reading_only_changes_nothing_in_the_folder(folder, target, mesh, caplog):
    flip_a_byte(biggest_file(folder / "2"))
    (folder / "3.tmp-dead").mkdir()
    folder.chmod(0o755)
    with open_store(folder, read_only=True) as store:
        assert store.restore_newest(target)[0] == 1
        with pytest.raises(CheckpointError, match="reading only"):
            store.save(5, make_state(5, mesh))
    assert "passed over" in caplog.text and stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3.tmp-dead"]


def test_reading_only_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        open_store(tmp_path / "checkpoints", read_only=True)
