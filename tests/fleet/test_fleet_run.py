"""A fleet from manifest to gallery, with children that train nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_fleets import write_base, write_config, write_fleet, write_manifest, write_pictures
from toy_children import Children, ended, member_of

import jaxbooth
from jaxbooth import cli, fleet_run
from jaxbooth.errors import ConfigError, DataError, MethodError
from jaxbooth.fleet.driver import Limits, Outcome
from jaxbooth.fleet.leases import Leases
from jaxbooth.fleet.pack_folders import note_members, pack_folder
from jaxbooth.fleet.packs import Candidate, form_packs
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


# ---- the command


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxbooth", "fleet", *map(str, arguments)])
        capsys.readouterr()
        return cli._run(), *capsys.readouterr()

    return run


@pytest.fixture
def children(folder, monkeypatch):
    """What the command starts in place of processes."""
    children = Children(OutputStore(folder / "out"))
    monkeypatch.setattr(fleet_run, "Serial", lambda asked: children)
    return children


WORK = ("work", "subjects.yaml", "--config", "config.yaml", "--out", "out", "--pack-size", 4)


def test_exit_codes_tell_done_given_up_and_stopped(folder, call, children):
    children.poison = {"tom": 65}
    code, out, err = call(*WORK)
    assert code == 3 and "2 of 3 subjects done: out/index.html" in out and "given up: tom" in out, err
    assert call(*WORK)[0] == 3  # nothing is tried again by itself
    code, out, _ = call("status", "out", "--failed", "--verify")
    assert code == 0 and out.splitlines() == [
        "2 done, 0 running, 0 missing, 1 failed", "tom: exit code 65; its log ends: Error 65"
    ]  # fmt: skip
    children.poison = {}
    assert call("retry", "out") == (0, "tom\n", "") and call("retry", "out") == (0, "", "")
    assert call("status", "out")[1] == "2 done, 0 running, 1 missing, 0 failed\n"
    assert call(*WORK)[0] == 0
    (folder / "photos" / "rex" / "0.txt").write_text("changed")
    children.before = lambda files: os.kill(os.getpid(), signal.SIGTERM) or ended(75)
    code, out, _ = call(*WORK)
    assert code == 75 and "2 of 3 subjects done" in out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_interrupt_does_not_wait(folder, call, children):
    def interrupt(files):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    children.before = interrupt
    assert call(*WORK)[0] == 130
    assert not list((folder / "out" / ".fleet" / "claims").glob("*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_bad_manifest_is_refused_with_all_its_problems_and_no_traceback(folder, call):
    write_manifest(folder / "subjects.yaml", NAMES, rex={"images": "../elsewhere"}, tom={"stepz": 3}, ann={"seed": -1})
    code, out, err = call(*WORK)
    assert code == 2 and not out and "Traceback" not in err and "3 problems, nothing was started" in err
    for said in ("leads out of", "stepz is not a field", "seed: must be 0 or more"):
        assert said in err.replace("'", "")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("work", "none.yaml", "--config", "config.yaml", "--out", "out"), "none.yaml"),
        (("work", "subjects.yaml", "--config", "none.yaml", "--out", "out"), "no such configuration file"),
        (("work", "subjects.yaml", "--config", "config.yaml"), "--out"),
        ((*WORK[:-1], 0), "--pack-size"),
        ((*WORK, "trian.steps=3"), "Did you mean"),
        ((*WORK, "method={type: dreambooth}"), "Set --pack-size 1"),
        ((*WORK, "--shard", 2, "--num-shards", 2), "shard 2 of 2"),
        (("status", "nowhere"), "is no fleet's folder"),
        (("retry", "nowhere"), "is no fleet's folder"),
        (("purge", "out", "../rex"), "cannot be a subject's name"),
    ],
)
def test_bad_input_exits_with_2(folder, call, arguments, said):
    code, _, err = call(*arguments)
    assert code == 2 and said in err and "Traceback" not in err


def test_after_a_purge_nothing_names_the_subject(folder, call, children):
    children.poison = {"ann": 1}
    out, store, fleet = folder / "out", OutputStore(folder / "out"), fleet_of(folder)
    assert call(*WORK)[0] == 3
    key, ann = fleet.keys["rex"], fleet.keys["ann"]
    # What else can lie about: an attempt, a damaged result, a pack, a job, a lease, what a killed process left.
    store.attempt("rex", key).close()
    shutil.copytree(store.folder("rex", key), store.of_subject("rex") / f".bad-{key[:16]}-0")
    members = [member_of(Candidate("rex", key)), member_of(Candidate("ann", ann))]
    packs = [pack_folder(store, keys, 4) for keys in ([key, ann], [ann])]
    for pack, these in zip(packs, (members, members[1:]), strict=True):
        note_members(pack, these, 4)
    (packs[0] / "metrics.jsonl").write_text('{"subject/rex/loss": 1}')
    (store.bookkeeping / "removing" / "0").mkdir(parents=True)
    (store.bookkeeping / "removing" / "0" / "rex.txt").write_text("rex")
    lease = Leases(store)
    assert lease.claim("rex", key)
    code, _, err = call("purge", "out", "rex")
    assert code == 2 and "being worked on" in err and store.is_done("rex", key)
    assert call("purge", "out", "rex", "--force") == (0, "rex\n", "")
    left = [path for path in out.rglob("*") if "rex" in path.name or (path.is_file() and b"rex" in path.read_bytes())]
    assert left == [] and packs[1].is_dir() and not packs[0].exists()
    assert call("status", "out")[1] == "1 done, 0 running, 0 missing, 1 failed\n"
    assert call("purge", "out", "rex") == (0, "", "")
    assert call("purge", "out", "tom", "ann") == (0, "tom\nann\n", "")
    assert call("status", "out")[1] == "0 done, 0 running, 0 missing, 0 failed\n"


def test_status_tells_who_is_being_worked_on(folder, call, children):
    children.poison = {"tom": 65, "ann": 65}
    assert call(*WORK)[0] == 3
    call("retry", "out", "tom")
    assert Leases(children.store).claim("tom", fleet_of(folder).keys["tom"])
    assert call("status", "out")[1] == "1 done, 1 running, 0 missing, 1 failed\n"


# ---- size


def many(folder: Path, count: int) -> float:
    """Seconds that it takes to open a fleet of so many subjects and to form its packs."""
    write_base(folder / "base")
    write_config(folder)
    pictures = write_pictures(folder / "pictures", 0, count=5, size=16)
    for number in range(count):
        own = folder / "photos" / f"s{number:05}"
        own.mkdir(parents=True)
        for picture in pictures.iterdir():
            os.link(picture, own / picture.name)
    write_manifest(folder / "subjects.yaml", [f"s{number:05}" for number in range(count)])
    began = time.monotonic()
    fleet = open_fleet(folder / "subjects.yaml", folder / "config.yaml")
    packs = form_packs(fleet.candidates, pack_sizes(fleet.config, 64), {})
    assert len(fleet.members) == count and sum(len(pack.members) for pack in packs) == count
    return time.monotonic() - began


def test_a_thousand_subjects_are_planned_in_seconds(tmp_path):
    assert many(tmp_path, 1000) < 30  # 1 to 2 s where nobody else is at work


@pytest.mark.slow
def test_ten_thousand_subjects_are_planned_in_half_a_minute_and_two_gigabytes(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path; from test_fleet_run import many\n"
        "seconds = many(Path(sys.argv[1]), 10_000)\n"
        "print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    seconds, gigabytes = map(float, ran.stdout.split())
    print(f"{seconds:.1f} s, {gigabytes:.2f} GB")
    assert seconds < 30 and gigabytes < 2


def test_a_fleet_is_opened_without_touching_an_accelerator(folder):
    """A driver that held the device would leave none to its children."""
    program = (
        "from pathlib import Path; from jaxbooth.fleet_run import open_fleet\n"
        "open_fleet(Path('subjects.yaml'), Path('config.yaml'))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "no_such_platform"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
