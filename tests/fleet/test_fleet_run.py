"""A fleet from manifest to gallery, with children that train nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_fleets import write_base, write_config, write_fleet, write_manifest, write_pictures
from toy_children import Children

import jaxbooth
from jaxbooth import fleet_run
from jaxbooth.errors import ConfigError, DataError, MethodError
from jaxbooth.fleet.driver import Limits, Outcome
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet_run import open_fleet, pack_sizes, work

NAMES = ["rex", "tom", "ann"]
LIMITS = Limits((1, 4))
ROOT = Path(jaxbooth.__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fleet(tmp_path, NAMES)
    return tmp_path


def keys(folder, *overrides, manifest="subjects.yaml", config="config.yaml") -> dict[str, str]:
    return open_fleet(folder / manifest, folder / config, overrides).keys


# ---- keys


def test_a_key_is_the_subject_s_own_and_the_same_every_time(folder):
    found = keys(folder)
    assert list(found) == NAMES and len(set(found.values())) == 3 and keys(folder) == found
    # Twins: a name is part of a key, since its folder is.
    shutil.rmtree(folder / "photos" / "tom")
    shutil.copytree(folder / "photos" / "rex", folder / "photos" / "tom")
    assert keys(folder)["tom"] not in (found["tom"], found["rex"]) and keys(folder)["rex"] == found["rex"]


def test_a_byte_of_a_photo_a_caption_or_a_mask_changes_one_key_alone(folder):
    seen = [keys(folder)]
    photo = folder / "photos" / "rex" / "0.png"
    photo.write_bytes(photo.read_bytes() + b"\0")
    seen.append(keys(folder))
    photo.with_suffix(".txt").write_text("a {token} on a mat")
    seen.append(keys(folder))
    photo.with_suffix(".txt").write_text("a {token} on a hat")
    seen.append(keys(folder))
    shutil.copy(photo, photo.with_name("0.mask.png"))
    seen.append(keys(folder))
    photo.with_name("masks").mkdir()
    shutil.copy(photo, photo.with_name("masks") / "1.PNG")
    seen.append(keys(folder))
    photo.with_name("metadata.jsonl").write_text("{}")
    seen.append(keys(folder))
    photo.rename(photo.with_name("zero.png"))  # pictures are taken in the order of their names
    seen.append(keys(folder))
    assert len({one["rex"] for one in seen}) == len(seen)
    assert {(one["tom"], one["ann"]) for one in seen} == {(seen[0]["tom"], seen[0]["ann"])}


def test_what_does_not_decide_a_result_changes_no_key(folder):
    before = keys(folder)
    for override in (
        "mesh.subject=2", "checkpoint.save_every_steps=7", "run_dir=elsewhere", "train.log_every_steps=1",
        "sample.batch_size=2", "prior.batch_size=2", "export=false", "subjects.0.images=other",
    ):  # fmt: skip
        assert keys(folder, override) == before, override
    (folder / "photos" / "rex" / ".DS_Store").write_bytes(b"Mac")
    (folder / "photos" / "rex" / "Thumbs.db").write_bytes(b"Windows")
    (folder / "photos" / "rex" / "notes").mkdir()
    write_manifest(folder / "turned.yaml", NAMES[::-1])
    assert keys(folder, manifest="turned.yaml") == before
    write_manifest(folder / "one.yaml", ["rex"])
    assert keys(folder, manifest="one.yaml") == {"rex": before["rex"]}


def test_moving_everything_changes_no_key(folder, tmp_path_factory):
    before, other = keys(folder), tmp_path_factory.mktemp("other") / "place"
    shutil.copytree(folder, other)
    write_config(other)  # names the base by its new path
    assert keys(other) == before


def test_all_that_decides_a_result_changes_every_key(folder):
    seen = [keys(folder)]
    for override in ("method.rank=3", "optimizer.learning_rate=1e-3", "train.steps=7", "train.seed=1",
                     "data.random_flip=true", "sample.prompts=['a {token}']", "base.dtype=bfloat16"):  # fmt: skip
        seen.append(keys(folder, override))
    (folder / "base" / "unet" / "model.safetensors").write_bytes(b"other")
    seen.append(keys(folder))
    (folder / "base" / "scheduler" / "config.json").write_text('{"prediction_type": "v_prediction"}')
    seen.append(keys(folder))
    for name in NAMES:
        assert len({one[name] for one in seen}) == len(seen)


def test_own_class_pictures_count_by_their_content_and_not_by_their_place(folder):
    write_pictures(folder / "class", 9)
    options = ("prior.loss_weight=1", "prior.num_images=3")
    before = keys(folder, *options, "prior.images=class")
    (folder / "class").rename(folder / "moved")
    assert keys(folder, *options, "prior.images=moved") == before
    (folder / "moved" / "1.png").write_bytes((folder / "moved" / "2.png").read_bytes())
    assert keys(folder, *options, "prior.images=moved")["rex"] != before["rex"]
    with pytest.raises(DataError, match="prior.images"):
        keys(folder, *options, "prior.images=class")


def test_what_a_subject_says_of_itself_changes_its_key_alone(folder):
    before = keys(folder)
    for own in ({"steps": 3}, {"seed": 3}, {"learning_rate": 1e-3}, {"token": "olis"}, {"class_noun": "cat"},
                {"captions": "a {token} at noon"}):  # fmt: skip
        write_manifest(folder / "own.yaml", NAMES, rex=own)
        found = keys(folder, manifest="own.yaml")
        assert found["rex"] != before["rex"] and (found["tom"], found["ann"]) == (before["tom"], before["ann"]), own


def test_subjects_that_say_nothing_follow_the_configuration_s_first(folder):
    rows = [{"name": "rex", "images": "photos/rex"}]
    (folder / "bare.yaml").write_text(json.dumps({"subjects": rows}))
    (entry,) = open_fleet(folder / "bare.yaml", folder / "config.yaml", ["subjects.0.token=olis"]).manifest.entries
    assert (entry.subject.class_noun, entry.subject.token) == ("dog", "olis")


def test_a_hub_base_is_pinned_to_the_commit_that_the_keys_stand_for(folder, monkeypatch):
    snapshot = write_base(folder / "hub" / "snapshots" / "c0ffee")
    monkeypatch.setattr(fleet_run, "resolve", lambda path, revision: snapshot)
    fleet = open_fleet(folder / "subjects.yaml", folder / "config.yaml", ["base.path=me/model", "base.revision=main"])
    assert fleet.values["base"]["path"] == "me/model" and fleet.values["base"]["revision"] == "c0ffee"


# ---- refusals


def refused(folder, *overrides, kind=ConfigError) -> str:
    with pytest.raises(kind) as error:
        keys(folder, *overrides)
    return str(error.value)


def test_overrides_that_would_bend_a_plan_are_refused_with_their_places(folder):
    rows = [f"{{name: {name}, images: photos/{name}, {own}}}" for name, own in
            {"rex": "steps: 3", "tom": "token: olis", "ann": "learning_rate: 1e-3"}.items()]  # fmt: skip
    (folder / "subjects.yaml").write_text("subjects:\n" + "".join(f"- {row}\n" for row in rows))
    said = refused(folder, "optimizer.lr_scheduler=cosine")
    assert "subjects.yaml:2: steps of its own would change the cosine schedule" in said and said.count("\n") == 1
    said = refused(folder, "optimizer.type=prodigy", "optimizer.learning_rate=1", "optimizer.lr_scheduler=linear")
    assert "steps of its own would change the linear schedule" in said
    assert "subjects.yaml:4: prodigy finds the learning rate itself" in said
    assert keys(folder)  # constant: no plan is bent


def test_words_that_cannot_be_learned_are_refused_with_their_places(folder):
    write_config(folder, base={"path": "pocket"}, method={"type": "textual_inversion"})
    tokens = {"rex": {"token": "<rex>"}, "tom": {"token": "dog"}, "ann": {"token": None}}
    write_manifest(folder / "subjects.yaml", NAMES, **tokens)
    said = refused(folder).splitlines()
    assert len(said) == 3 and "does not go with the configuration" in said[0]
    assert "subjects.yaml:" in said[1] and "token: 'dog' is in the vocabulary already" in said[1]
    assert "token: textual_inversion learns a new word: give one" in said[2]


def test_problems_of_thousands_are_counted_and_not_all_printed(folder):
    rows = [{"name": f"s{i}", "images": "photos/rex", "steps": 3, "class_noun": "dog"} for i in range(300)]
    (folder / "subjects.yaml").write_text(json.dumps({"subjects": rows}))
    said = refused(folder, "optimizer.lr_scheduler=cosine").splitlines()
    assert len(said) == 52 and said[-1] == "... and 250 more."


def test_methods_that_are_not_of_single_subjects_are_refused(folder):
    assert "train.joint" in refused(folder, "train.joint=true")
    write_config(folder, method={"type": "finetune"}, dataset={"path": "photos"}, subjects=[])
    assert "learns from a data set" in refused(folder, kind=MethodError)


def test_whole_models_train_one_at_a_time(folder):
    config = open_fleet(folder / "subjects.yaml", folder / "config.yaml", ["method={type: dreambooth}"]).config
    assert pack_sizes(config, 1) == (1,)
    with pytest.raises(MethodError, match="a pack of 4 would hold 4 .* 14 GB each for SD 1.5.* --pack-size 1"):
        pack_sizes(config, 4)
    lora = open_fleet(folder / "subjects.yaml", folder / "config.yaml").config
    assert pack_sizes(lora, 1) == (1,) and pack_sizes(lora, 4) == (1, 4) and pack_sizes(lora, 10) == (1, 4, 10)


# ---- work, status, report


def fleet_of(folder):
    return open_fleet(folder / "subjects.yaml", folder / "config.yaml")


def test_work_leaves_results_a_gallery_and_a_summary(folder):
    out, fleet = folder / "out", fleet_of(folder)
    children = Children(OutputStore(out), {"tom": 65})
    assert work(fleet, out, LIMITS, engine=children) == Outcome(2, ("tom",), False)
    assert [(state.name, state.state) for state in fleet_run.status(out, verify=True)] == [
        ("rex", "done"), ("tom", "failed"), ("ann", "done"),
    ]  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"] == {"subjects": 3, "done": 2, "failed": 1, "missing": 0}
    entries = {entry["name"]: entry for entry in summary["subjects"]}
    assert "Error 65" in entries["tom"]["reason"] and entries["rex"]["key"] == fleet.keys["rex"]
    assert (entries["rex"]["class_noun"], entries["rex"]["token"]) == ("dog", "sks")
    page = (out / "index.html").read_text()
    assert "2 done, 1 failed" in page and "Error 65" in page
    assert {path.stat().st_mode & 0o077 for path in out.rglob("*.json")} == {0}


def test_the_report_is_written_too_when_the_fleet_ends_with_an_error(folder):
    def broken(files):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        work(fleet_of(folder), folder / "out", LIMITS, engine=Children(OutputStore(folder / "out"), before=broken))
    assert json.loads((folder / "out" / "summary.json").read_text())["counts"]["missing"] == 3


def test_shards_share_the_subjects_and_the_gallery(folder):
    out, fleet = folder / "out", fleet_of(folder)
    both = [Children(OutputStore(out)) for _ in range(2)]
    done = [work(fleet, out, LIMITS, index, 2, children).done for index, children in enumerate(both)]
    assert sum(done) == 3 and not both[0].trained & both[1].trained
    assert json.loads((out / "summary.json").read_text())["counts"]["done"] == 3
    with pytest.raises(ConfigError, match="shard 2 of 2"):
        work(fleet, out, LIMITS, 2, 2)


def test_other_photos_make_a_new_result_and_the_old_one_stays(folder):
    out, store = folder / "out", OutputStore(folder / "out")
    work(fleet_of(folder), out, LIMITS, engine=Children(store))
    old = fleet_of(folder).keys["rex"]
    shutil.copy(folder / "photos" / "tom" / "0.png", folder / "photos" / "rex" / "3.png")
    children, fleet = Children(store), fleet_of(folder)
    assert work(fleet, out, LIMITS, engine=children).done == 3 and children.packs() == [(1, ["rex"])]
    assert store.is_done("rex", old) and store.is_done("rex", fleet.keys["rex"])
    # What is wanted now is what is shown.
    assert [state.key for state in fleet_run.status(out) if state.name == "rex"] == [fleet.keys["rex"]]


def test_a_folder_where_nothing_was_started_is_no_fleet_s(tmp_path):
    with pytest.raises(ConfigError, match="is no fleet's folder"):
        fleet_run.status(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_anything(folder):
    (folder / "out").write_text("a file")
    with pytest.raises(ConfigError, match="--out"):
        work(fleet_of(folder), folder / "out", LIMITS)


def test_a_fleet_is_opened_without_touching_an_accelerator(folder):
    """A driver that held the device would leave none to its children."""
    program = (
        "from pathlib import Path; from jaxbooth.fleet_run import open_fleet\n"
        "open_fleet(Path('subjects.yaml'), Path('config.yaml'))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "no_such_platform"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
