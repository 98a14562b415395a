"""Packs of other methods: words that differ, whole models, more devices than subjects."""

import json
from collections import Counter

import jax
import pytest
from small_packs import NO_PICTURES, SAMPLER, fleet_of, job_of, one_quick_device, programs, solo_losses, write_fleet
from test_pack_run import base, facts_of, losses_of, result_of  # noqa: F401

from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.pack_run import run_job
from jaxbooth.sharding import MeshConfig, pack_layout

# The weights that a full fine-tune starts from are one array, those that it trains one for each subject.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")

WORDS = {
    "ann": {"token": "<ann>"},
    "bob": {"token": "<bob>", "class_noun": "teddy bear"},
    "cat": {"token": "<cat>", "class_noun": "cat"},
    "dot": {"token": "<dot>", "class_noun": "alarm clock"},
    "sly": {"token": "dog"},  # a word that the vocabulary has
}
PREVIEWS = {"prior": {"loss_weight": 0}, "sample": {"prompts": ["a {token}"], "class_prompts": []} | SAMPLER}


@pytest.fixture
def quick(tmp_path_factory):
    with one_quick_device(tmp_path_factory.getbasetemp() / "cache"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "formats"),
    [
        ({"type": "textual_inversion", "num_vectors": 2}, {"ti", "a1111-ti"}),
        ({"type": "perfusion", "covariance_captions": 100}, {"perfusion"}),
        ({"type": "custom_diffusion", "size_augmentation": 0}, {"custom-diffusion"}),
        ({"type": "pivotal", "rank": 2}, {"peft-lora", "kohya-lora"}),  # each with the word in a file beside it
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_subjects_with_words_of_their_own_share_every_program(method, formats, quick, base, tmp_path):  # noqa: F811
    subjects = {name: own for name, own in WORDS.items() if name != "sly"}
    train = {"steps": 4, "log_every_steps": 1, "early_stop": {"every_steps": 2}}
    write_fleet(tmp_path, base, subjects, method=method, train=train, **PREVIEWS)
    with programs() as compiled:
        run_job(job_of(tmp_path, ["ann", "bob"], ["cat", "dot"], size=2))
    counts = Counter(compiled)
    # One for all that is drawn; none if a method before had a model of the same structure.
    assert counts["train_step"] == counts["losses"] == 1 and counts["run"] <= 1, counts.most_common(30)
    store, keys = OutputStore(tmp_path / "out"), fleet_of(tmp_path).keys
    for name in ("ann", "bob", "cat", "dot"):
        assert store.is_done(name, keys[name])
        found = {path.name for path in result_of(tmp_path, name).iterdir() if path.is_dir()}
        assert found == formats and WORDS[name]["token"] == facts_of(tmp_path, name)["token"]
    seed = facts_of(tmp_path, "bob")["seed"]
    assert losses_of(tmp_path, "bob") == pytest.approx(solo_losses(tmp_path, "bob", seed), rel=1e-5)


@pytest.mark.slow
def test_a_word_of_the_vocabulary_is_its_subject_s_fault_alone(quick, base, tmp_path, monkeypatch):  # noqa: F811
    write_fleet(tmp_path, base, WORDS, method={"type": "textual_inversion"}, **PREVIEWS)
    # A manifest with it is refused; a worker of another version, or another tokenizer, may meet it all the same.
    monkeypatch.setattr("jaxbooth.fleet_run.check_entries", lambda *arguments: None)
    run_job(job_of(tmp_path, ["ann", "sly", "bob"]))
    store, keys = OutputStore(tmp_path / "out"), fleet_of(tmp_path).keys
    assert "in the vocabulary already" in StrikeBook(store).failure("sly", keys["sly"])["reason"]
    assert store.is_done("ann", keys["ann"]) and store.is_done("bob", keys["bob"])


@pytest.mark.slow
def test_whole_models_one_after_the_other_each_start_from_the_base(quick, base, tmp_path):  # noqa: F811
    write_fleet(tmp_path, base, {"ann": {}, "bob": {}}, method={"type": "dreambooth"}, **NO_PICTURES)
    run_job(job_of(tmp_path, ["ann"], ["bob"], size=1))
    for name in ("ann", "bob"):
        assert (result_of(tmp_path, name) / "merged" / "model_index.json").is_file()
        seed = facts_of(tmp_path, name)["seed"]
        assert losses_of(tmp_path, name) == pytest.approx(solo_losses(tmp_path, name, seed), rel=1e-5)


# ---- more devices than subjects


@pytest.mark.parametrize(
    ("size", "devices", "rows", "places", "mesh"),
    [
        (4, 1, 1, 4, MeshConfig(subject=1)),
        (16, 8, 1, 16, MeshConfig(subject=8)),
        (4, 8, 2, 4, MeshConfig(subject=4)),  # two rows on two devices
        (4, 8, 1, 8, MeshConfig(subject=8)),  # one row does not divide over two
        (1, 8, 1, 8, MeshConfig(subject=8)),
        (1, 8, 8, 1, MeshConfig(subject=1)),
        (10, 4, 1, 12, MeshConfig(subject=4)),
    ],
)
def test_a_pack_is_laid_out_or_filled_up(size, devices, rows, places, mesh):
    assert pack_layout(size, devices, rows) == (places, mesh)


def test_a_mesh_that_was_configured_is_filled_up():
    mesh = MeshConfig(subject=4, data=2)
    assert [pack_layout(size, 8, 1, mesh) for size in (1, 4, 6)] == [(4, mesh), (4, mesh), (8, mesh)]


@pytest.mark.slow
def test_one_subject_on_eight_devices(base, tmp_path):  # noqa: F811
    assert jax.device_count() == 8
    write_fleet(tmp_path, base, {"ann": {}}, **NO_PICTURES)
    run_job(job_of(tmp_path, ["ann"], size=1))
    facts = facts_of(tmp_path, "ann")
    assert facts["pack_size"] == 8 and len(losses_of(tmp_path, "ann")) == 4
    assert json.loads((result_of(tmp_path, "ann") / "DONE.json").read_text())["key"] == fleet_of(tmp_path).keys["ann"]
    with one_quick_device(tmp_path / "cache"):
        alone = solo_losses(tmp_path, "ann", facts["seed"])
    assert losses_of(tmp_path, "ann") == pytest.approx(alone, rel=1e-5)
