import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jaxbooth
from jaxbooth.errors import DataError
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.store import OutputStore

KEY = content_key({"steps": 10})
OTHER = content_key({"steps": 11})
CONTENT = bytes(range(256)) * 8


@pytest.fixture
def store(tmp_path):
    return OutputStore(tmp_path / "out")


def commit(store, name="toy", key=KEY, content=CONTENT, facts=None) -> bool:
    with store.attempt(name, key) as attempt:
        (attempt.path / "weights.bin").write_bytes(content)
        (attempt.path / "kohya").mkdir()
        (attempt.path / "kohya" / "toy.bin").write_bytes(content[::-1])
        return store.commit(attempt, facts or {"loss": 0.5})


def hidden(store, name="toy") -> list[str]:
    """Attempts and damaged results of a subject."""
    return sorted(path.name.split("-")[0] for path in store.of_subject(name).glob(".[tb]*"))


def test_keys_follow_the_content_and_not_the_order():
    assert content_key({"a": 1, "b": [1e-4, {"c": None}]}) == content_key({"b": [0.0001, {"c": None}], "a": 1})
    assert len({content_key({"a": value}) for value in (1, 2, "1", None, [1], 0.1)}) == 6
    assert len(KEY) == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x")])
def test_what_is_not_json_gets_no_key(value):
    with pytest.raises((ValueError, TypeError)):
        content_key({"a": value})


@pytest.mark.parametrize("name", ["", ".", "..", ".toy", "../toy", "a/b", "/etc", "toy\n", "tö", "a b", "x" * 101])
def test_names_that_lead_elsewhere_are_refused(store, name):
    with pytest.raises(DataError, match="cannot be a subject's name"):
        store.attempt(name, KEY)
    assert not store.root.exists()


@pytest.mark.parametrize("key", ["", KEY[:16], KEY.upper(), "../" + KEY[3:], KEY + "\n"])
def test_what_is_no_key_is_refused(store, key):
    with pytest.raises(DataError, match="no content key"):
        store.is_done("toy", key)


def test_a_commit_makes_a_result_with_its_facts(store):
    assert not store.is_done("toy", KEY) and store.facts("toy", KEY) is None
    assert commit(store, facts={"versions": {"jax": "0.12"}, "loss": {3: 0.5, 10: 0.25}})
    assert store.is_done("toy", KEY)
    assert store.facts("toy", KEY) == {"versions": {"jax": "0.12"}, "loss": {"3": 0.5, "10": 0.25}}
    done = json.loads((store.folder("toy", KEY) / "DONE.json").read_text())
    assert done["key"] == KEY and sorted(done["files"]) == ["kohya/toy.bin", "weights.bin"]
    assert done["files"]["weights.bin"][0] == len(CONTENT)
    assert hidden(store) == []


def test_the_second_commit_loses_and_leaves_nothing(store):
    assert commit(store, content=CONTENT)
    assert not commit(store, content=b"later")
    assert (store.folder("toy", KEY) / "weights.bin").read_bytes() == CONTENT
    assert hidden(store) == []


def test_another_key_is_another_result_beside_it(store):
    assert commit(store) and commit(store, key=OTHER)
    assert store.is_done("toy", KEY) and store.is_done("toy", OTHER) and not store.is_done("cat", KEY)


def test_an_attempt_that_is_not_committed_goes(store):
    with pytest.raises(ZeroDivisionError), store.attempt("toy", KEY) as attempt:
        (attempt.path / "weights.bin").write_bytes(CONTENT)
        raise ZeroDivisionError
    assert hidden(store) == [] and not store.is_done("toy", KEY)


def test_a_loss_that_is_not_finite_is_no_success(store):
    with pytest.raises(ValueError), store.attempt("toy", KEY) as attempt:
        (attempt.path / "weights.bin").write_bytes(CONTENT)
        store.commit(attempt, {"loss": float("nan")})
    assert not store.is_done("toy", KEY)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: None,
        lambda folder: (folder / "empty").mkdir(),
        lambda folder: (folder / "link").symlink_to("/etc/passwd"),
        lambda folder: os.mkfifo(folder / "pipe"),
        lambda folder: (folder / "DONE.json").write_text("{}"),
    ],
    ids=["nothing", "empty folder", "link", "pipe", "its own seal"],
)
def test_what_cannot_be_a_result_is_refused(store, write):
    with pytest.raises(ValueError), store.attempt("toy", KEY) as attempt:
        write(attempt.path)
        store.commit(attempt, {})
    assert not store.folder("toy", KEY).exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_is_private_whatever_the_umask(store, umask):
    before = os.umask(umask)
    try:
        commit(store)
        (store.folder("toy", KEY) / "weights.bin").write_bytes(b"damaged")
        store.is_done("toy", KEY)
        commit(store)
    finally:
        os.umask(before)
    paths = [store.root, *store.root.rglob("*")]
    modes = {path.relative_to(store.root).as_posix(): path.stat().st_mode & 0o777 for path in paths}
    assert set(modes.values()) == {0o600, 0o700}, modes
    assert all(mode == (0o700 if (store.root / name).is_dir() else 0o600) for name, mode in modes.items())


def flip(folder):
    content = bytearray((folder / "weights.bin").read_bytes())
    content[1000] ^= 4
    (folder / "weights.bin").write_bytes(content)


def forge(folder):
    seal = json.loads((folder / "DONE.json").read_text())
    (folder / "DONE.json").write_text(json.dumps(seal | {"facts": {"loss": 0.0}}))


def empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def become_a_file(folder):
    empty(folder)
    folder.rmdir()
    folder.write_text("a file")


def become_a_link(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


DAMAGES = {
    "flipped bit": flip,
    "cut short": lambda folder: (folder / "weights.bin").write_bytes(CONTENT[:-1]),
    "missing file": lambda folder: (folder / "kohya" / "toy.bin").unlink(),
    "missing seal": lambda folder: (folder / "DONE.json").unlink(),
    "half a seal": lambda folder: os.truncate(folder / "DONE.json", 100),
    "empty seal": lambda folder: os.truncate(folder / "DONE.json", 0),
    "list for a seal": lambda folder: (folder / "DONE.json").write_text("[]"),
    "changed seal": forge,
    "empty folder": empty,
    "file": become_a_file,
    "link": become_a_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_set_aside_and_made_again(store, damage):
    commit(store)
    DAMAGES[damage](store.folder("toy", KEY))
    assert store.problems("toy", KEY)
    assert not store.is_done("toy", KEY)
    assert not os.path.lexists(store.folder("toy", KEY))
    assert hidden(store) == ([] if damage == "empty folder" else [".bad"])
    assert commit(store) and store.is_done("toy", KEY)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_commit_gets_past_something_damaged_in_its_way(store, damage):
    commit(store)
    DAMAGES[damage](store.folder("toy", KEY))
    assert commit(store) and store.is_done("toy", KEY)
    assert hidden(store) in ([], [".bad"])


def test_what_another_process_has_mended_meanwhile_is_not_set_aside(store):
    commit(store)
    flip(store.folder("toy", KEY))
    with (store.of_subject("toy") / ".lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other process sets the damaged result aside
        done = pool.submit(store.is_done, "toy", KEY)
        with pytest.raises(TimeoutError):
            done.result(0.2)
        store.remove(store.folder("toy", KEY))
        assert commit(store)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert done.result(10)
    assert store.is_done("toy", KEY) and hidden(store) == []


def test_without_verifying_only_sizes_are_compared(store):
    commit(store)
    flip(store.folder("toy", KEY))
    assert store.is_done("toy", KEY, verify=False) and store.facts("toy", KEY) == {"loss": 0.5}
    assert store.problems("toy", KEY) == ["weights.bin was changed: its SHA-256 differs"]
    DAMAGES["cut short"](store.folder("toy", KEY))
    assert not store.is_done("toy", KEY, verify=False)


def test_a_result_of_another_key_does_not_count(store):
    commit(store)
    twin = KEY[:16] + OTHER[16:]
    assert store.problems("toy", twin) == [f"DONE.json is of another key: {KEY}"]


def test_a_result_that_cannot_be_read_now_is_not_taken_for_damaged(store, monkeypatch):
    commit(store)

    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match="Input/output"):
            store.is_done("toy", KEY)
    assert store.is_done("toy", KEY)


def test_only_attempts_that_are_old_and_that_nobody_holds_are_cleaned(store):
    abandoned, held, young = (store.attempt("toy", KEY) for _ in range(3))
    for attempt in (abandoned, held, young):
        (attempt.path / "weights.bin").write_bytes(CONTENT)
    abandoned.close()  # as the kernel does for a process that was killed
    young.close()
    for attempt in (abandoned, held):
        for path in (attempt.path / "weights.bin", attempt.path):
            os.utime(path, (time.time() - 7200,) * 2)
    assert store.clean_temporary(3600) == [abandoned.path]
    assert held.path.exists() and young.path.exists() and not abandoned.path.exists()
    assert not list((store.bookkeeping / "removing").iterdir())
    assert store.commit(held, {})


def test_a_file_written_lately_keeps_an_old_attempt(store):
    attempt = store.attempt("toy", KEY)
    (attempt.path / "weights.bin").write_bytes(CONTENT)
    attempt.close()
    os.utime(attempt.path, (time.time() - 7200,) * 2)
    assert store.clean_temporary(3600) == []


def test_an_attempt_that_was_cleaned_away_fails_to_commit(store):
    with store.attempt("toy", KEY) as attempt:
        (attempt.path / "weights.bin").write_bytes(CONTENT)
        store.remove(attempt.path)
        with pytest.raises((OSError, ValueError)):
            store.commit(attempt, {})
    assert not store.folder("toy", KEY).exists()


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("free", [0, 4096])
def test_on_a_full_disk_nothing_becomes_visible_and_once_there_is_space_it_goes_on(tiny_disk, free):
    store = OutputStore(tiny_disk / "out")
    assert commit(store)
    with store.attempt("cat", KEY) as attempt:
        for number in range(200):  # so many that the seal is larger than a page
            (attempt.path / f"{number}.txt").write_text("")
        space = shutil.disk_usage(tiny_disk).free
        (tiny_disk / "filler").write_bytes(bytes(space - free))
        with pytest.raises(OSError, match="No space") as caught:
            store.commit(attempt, {})
        assert "cat/.tmp-" in caught.value.__notes__[0] and "Free space: 0.0 MB" in caught.value.__notes__[0]
        assert not store.folder("cat", KEY).exists() and store.is_done("toy", KEY)
        (tiny_disk / "filler").unlink()
        assert store.commit(attempt, {}) and store.is_done("cat", KEY)


def test_the_store_needs_no_jax():
    modules = ["store", "leases", "strikes", "packs", "supervisor", "upkeep"]
    imports = "; ".join(f"import jaxbooth.fleet.{module}" for module in modules)
    root = Path(jaxbooth.__file__).parents[1]
    check = f"import sys; {imports}; sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'PIL')))"
    subprocess.run([sys.executable, "-c", check], check=True, env=os.environ | {"PYTHONPATH": str(root)})
