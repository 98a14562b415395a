import json

import pytest

from jaxbooth.config import load
from jaxbooth.errors import ConfigError
from jaxbooth.run_folder import RunFolder, versions

TEXT = """
base: {path: pocket}
method: {type: dreambooth}
subjects: [{name: rex, images: photos, class_noun: dog}]
train: {steps: 10}
"""


@pytest.fixture
def config(tmp_path):
    """A configuration with overrides."""
    (tmp_path / "rex.yaml").write_text(TEXT)
    return lambda *overrides: load(tmp_path / "rex.yaml", overrides)


@pytest.fixture
def run(tmp_path, config):
    """A run that was begun."""
    run = RunFolder(tmp_path / "run")
    run.claim(config(), {"base": "0123", "commit": "abcd", "versions": versions()})
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_claim_writes_the_configuration_and_the_record_of_the_first_start(run, config):
    assert names(run.path) == ["config.yaml", "run.json"] and run.path.stat().st_mode & 0o777 == 0o700
    run.claim(config("sample.seed=3"), {"base": "9999", "commit": "ffff"})
    assert run.config() == config("sample.seed=3")
    assert json.loads(run.record_file.read_text())["base"] == "0123" and run.recorded_commit() == "abcd"


@pytest.mark.parametrize(
    "overrides",
    [
        [], ["run_dir=elsewhere"], ["mesh.fsdp=8"], ["checkpoint.keep=null"], ["sample.prompts=[x]"], ["export=false"],
        ["train.log_every_steps=1"], ["prior.batch_size=9"], ["train.steps=20"],
    ],
)  # fmt: skip
def test_what_does_not_change_the_steps_already_taken_may_differ(run, config, overrides):
    run.check(config(*overrides))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=5", "train.steps: 10 -> 5"),
        ("train.seed=1", "train.seed: 0 -> 1"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate: 5e-06 -> 1.0"),
        ("base.path=x", "base.path: pocket -> x"),
        ("method.train_text_encoder=true", "method.train_text_encoder: False -> True"),
        ("subjects.0.token=zwx", "subjects.0.token: sks -> zwx"),
        ("subjects=[{name: a, images: b, class_noun: c}, {name: d, images: e, class_noun: f}]", "subjects.1.name"),
        ("prior.loss_weight=0", "prior.loss_weight: 1.0 -> 0.0"),
        ("data.random_flip=true", "data.random_flip: False -> True"),
    ],
)
def test_run_of_another_configuration_is_refused_with_every_difference(run, config, override, said):
    with pytest.raises(ConfigError) as error:
        run.check(config(override, "train.noise_offset=0.5"))
    assert said in str(error.value) and "train.noise_offset: 0.0 -> 0.5" in str(error.value)
    assert "run_dir=" in str(error.value)


def test_longer_plan_is_refused_where_it_would_bend_the_schedule(run, config):
    run.claim(config("optimizer.lr_scheduler=cosine"), {})
    with pytest.raises(ConfigError, match="cosine schedule"):
        run.check(config("optimizer.lr_scheduler=cosine", "train.steps=20"))


def test_longer_plan_is_refused_where_it_would_move_the_part_in_which_the_word_learns(run, config):
    pivotal = ("method={type: pivotal}", "subjects.0.token=<dog>")
    run.claim(config(*pivotal), {})
    with pytest.raises(ConfigError, match="pivotal moves its parameters"):
        run.check(config(*pivotal, "train.steps=20"))


def test_folder_that_is_new_or_empty_is_free_and_any_other_is_not(tmp_path, config):
    RunFolder(tmp_path / "new").check(config())
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check(config())
    with pytest.raises(ConfigError, match="is not empty and is no run folder"):
        RunFolder(tmp_path).check(config())
    with pytest.raises(ConfigError, match="no config.yaml"):
        RunFolder(tmp_path).config()


def test_damaged_configuration_and_record_are_named(run, config):
    run.record_file.write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        run.recorded_commit()
    run.config_file.write_text("base: [")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        run.check(config())


def test_place_that_cannot_be_written_is_found_before_and_nothing_stays(tmp_path):
    RunFolder(tmp_path / "a" / "b").check_writable()
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot be written"):
            RunFolder(place).check_writable()


def test_results_of_a_shorter_plan_are_kept_under_another_name(run):
    run.set_aside_results()
    for number in range(2):
        (run.samples / "after").mkdir(parents=True)
        (run.samples / "after" / "00.png").write_text(str(number))
        run.pipeline.mkdir()
        run.adapter.mkdir()
        run.set_aside_results()
    assert names(run.samples) == ["after.old-0", "after.old-1"]
    exports = ["adapter.old-0", "adapter.old-1", "pipeline.old-0", "pipeline.old-1"]
    assert names(run.path) == sorted(["config.yaml", "run.json", "samples", *exports])
    assert (run.samples / "after.old-1" / "00.png").read_text() == "1"
