"""Packs that really train, on a tiny random base: what each subject gets, and what becomes of those that fail."""

import json
import shutil
import time
from collections import Counter

import pytest
from PIL import Image
from safetensors.numpy import load_file
from small_packs import drawings, fleet_of, job_of, one_quick_device, programs, read_lines, solo_losses, write_fleet
from twins import SMALLEST, make_twin

from jaxbooth import pack_run, pipeline
from jaxbooth.fleet.pack_folders import begun_pack
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.pack_results import write_result
from jaxbooth.pack_run import run_job

# The weights that a full fine-tune starts from are one array, those that it trains one for each subject.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")

SUBJECTS = {
    "ann": {},
    "bob": {"steps": 2, "learning_rate": 3e-3},
    "cat": {"class_noun": "cat", "seed": 5},
    "hurt": {},
    "mad": {"learning_rate": 1e30},
    "eve": {"class_noun": "cat"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_twin(tmp_path_factory.mktemp("base") / "base", "sd1", **SMALLEST)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    with one_quick_device(tmp_path_factory.getbasetemp() / "cache"):  # as `own_cache` has it
        yield


@pytest.fixture(scope="module")
def trained(quick, base, tmp_path_factory):
    """A folder with two packs of one job, in the second of which two of three fail; what was compiled and drawn."""
    folder = tmp_path_factory.mktemp("fleet")
    write_fleet(folder, base, SUBJECTS)
    photo = folder / "photos" / "hurt" / "1.png"
    photo.write_bytes(photo.read_bytes()[:600])  # its header is whole
    job = job_of(folder, ["ann", "bob", "cat"], ["hurt", "mad", "eve"])
    pipeline._program.cache_clear()  # else pictures are drawn by what other tests' models of the same sizes compiled
    with programs() as compiled, drawings() as drawn, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_run, "write_result", when_the_next_pack_is_at_work(job, write_result))
        run_job(job)
    return folder, compiled, drawn


def when_the_next_pack_is_at_work(job, write):
    """Holds the results of all packs but the last back until the process is at the next one."""

    def write_late(store, trained, index, key, drawn):
        number = next(number for number, pack in enumerate(job.packs) if key in {one.key for one in pack.members})
        deadline = time.monotonic() + 300
        while int(job.step_file.with_name("pack").read_text()) == number < len(job.packs) - 1:
            assert time.monotonic() < deadline, "the next pack waits for this one's results"
            time.sleep(0.01)
        return write(store, trained, index, key, drawn)

    return write_late


def result_of(folder, name, out="out"):
    return OutputStore(folder / out).folder(name, fleet_of(folder).keys[name])


def facts_of(folder, name):
    return json.loads((result_of(folder, name) / "DONE.json").read_text())["facts"]


def losses_of(folder, name, out="out"):
    return [line["loss"] for line in read_lines(result_of(folder, name, out) / "metrics.jsonl")]


def test_every_good_subject_is_committed_with_all_that_it_should_have(trained):
    folder = trained[0]
    store, keys = OutputStore(folder / "out"), fleet_of(folder).keys
    for name in ("ann", "bob", "cat", "eve"):
        assert store.is_done(name, keys[name], verify=True), name
        result = result_of(folder, name)
        assert {path.name for path in result.iterdir()} == {
            "DONE.json", "peft-lora", "kohya-lora", "preview.png", "metrics.jsonl"
        }  # fmt: skip
        assert list((result / "peft-lora").glob("*.safetensors")) and (result / "peft-lora" / "README.md").is_file()
        assert Image.open(result / "preview.png").size[0] > 16
    assert not list(store.root.glob("*/.tmp-*")) and not list((store.bookkeeping / "packs").iterdir())


def test_the_facts_are_the_subject_s_own(trained):
    folder = trained[0]
    ann, bob, cat = (facts_of(folder, name) for name in ("ann", "bob", "cat"))
    assert (ann["steps"], ann["learning_rate"], ann["pack_size"], ann["images"]) == (4, pytest.approx(1e-3), 4, 3)
    assert (bob["steps"], bob["learning_rate"]) == (2, pytest.approx(3e-3))
    assert (cat["seed"], cat["class_noun"], cat["token"], cat["method"]) == (5, "cat", "sks", "lora")
    assert ann["seed"] == int(fleet_of(folder).keys["ann"][:15], 16) and ann["loss"] == losses_of(folder, "ann")[-1]
    assert len(losses_of(folder, "ann")) == 4 and len(losses_of(folder, "bob")) == 2
    card = (result_of(folder, "bob") / "peft-lora" / "README.md").read_text()
    assert "- steps: 2\n" in card and "learning rate 0.003" in card


def test_a_subject_s_losses_are_those_of_a_run_alone(trained):
    folder = trained[0]
    for name in ("ann", "bob"):
        seed = facts_of(folder, name)["seed"]
        assert losses_of(folder, name) == pytest.approx(solo_losses(folder, name, seed), rel=1e-5), name


def test_subjects_that_cannot_be_trained_are_given_up_and_say_why(trained):
    folder = trained[0]
    store, keys = OutputStore(folder / "out"), fleet_of(folder).keys
    for name, said in {"hurt": "1.png", "mad": "not finite at step"}.items():
        assert said in StrikeBook(store).failure(name, keys[name])["reason"]
        assert {path.name for path in store.of_subject(name).iterdir()} == {f"{keys[name][:16]}.FAILED.json"}


def test_packs_of_one_job_share_all_large_programs(trained):
    folder, compiled, drawn = trained
    in_order = sorted(("ann", "bob", "cat"), key=fleet_of(folder).keys.get)  # as a pack has its members
    nouns = [SUBJECTS[name].get("class_noun", "dog") for name in in_order]
    # Class pictures are drawn once a class and two at a time, which is a program of its own.
    # Of the other pack, eve alone is left.
    of_classes = [[f"a {noun}"] * 2 for noun in dict.fromkeys(nouns)]
    assert drawn == [*of_classes, *[[f"a sks {noun}"] for noun in nouns], ["a sks cat"]]
    counts = Counter(compiled)
    assert counts["train_step"] == 1 and counts["run"] == 2, counts.most_common(30)


def test_a_neighbour_that_breaks_down_leaves_no_trace(trained, tmp_path):
    """The same pack with a healthy subject in its place gives the same files, to the bit."""
    folder = trained[0]
    shutil.copytree(folder / "photos", tmp_path / "photos")
    write_fleet(tmp_path, base_of(folder), SUBJECTS | {"mad": {"seed": 3}})
    run_job(job_of(tmp_path, ["mad", "eve"]))
    assert files_of(tmp_path, "eve") == files_of(folder, "eve") and losses_of(tmp_path, "mad")


def test_a_pack_that_was_stopped_while_it_wrote_is_not_trained_again(trained, tmp_path, monkeypatch):
    folder = trained[0]
    shutil.copytree(folder / "photos", tmp_path / "photos")
    write_fleet(tmp_path, base_of(folder), SUBJECTS)
    store, keys = OutputStore(tmp_path / "out"), fleet_of(tmp_path).keys

    def write(store, trained, index, key, drawn):
        if key == keys["cat"]:
            raise OSError("disk full")
        return write_result(store, trained, index, key, drawn)

    monkeypatch.setattr(pack_run, "write_result", write)
    with pytest.raises(OSError, match="disk full"):
        run_job(job_of(tmp_path, ["ann", "bob", "cat"]))
    monkeypatch.undo()
    assert store.is_done("ann", keys["ann"]) and store.is_done("bob", keys["bob"])
    # Meanwhile somebody moves the base and the results: paths are no part of what the pack is.
    shutil.copytree(base_of(folder), tmp_path / "base")
    write_fleet(tmp_path, tmp_path / "base", SUBJECTS)
    (tmp_path / "out").rename(tmp_path / "moved")
    free = [one for one in fleet_of(tmp_path).candidates if one.name not in ("ann", "bob")]
    begun, pack = begun_pack(OutputStore(tmp_path / "moved"), free, {}, 4)
    assert [one.name for one in begun.members] == ["cat"] and begun.size == 4
    with programs() as compiled:
        run_job(job_of(tmp_path, ["cat"], out="moved", begun=pack))
    assert "train_step" not in compiled and not pack.exists()
    assert files_of(tmp_path, "cat", "moved") == files_of(folder, "cat")


def base_of(folder):
    return fleet_of(folder).base


def files_of(folder, name, out="out") -> dict:
    """What is in a result, but for what a clock says."""
    result, found = result_of(folder, name, out), {}
    for path in result.rglob("*"):
        if path.suffix == ".safetensors":  # the order of its header is nobody's promise
            tensors = load_file(path)
            found[path.name] = {key: (array.shape, array.tobytes()) for key, array in tensors.items()}
        elif path.suffix in (".png", ".md"):
            found[str(path.relative_to(result))] = path.read_bytes()
    return found | {"losses": losses_of(folder, name, out)}
