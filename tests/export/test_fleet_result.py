"""A committed result, read back, is the model that was exported."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from trained_models import REX, states_of, trained

from jaxbooth.config import validate
from jaxbooth.errors import ConfigError, ConversionError
from jaxbooth.evaluate_sources import open_source
from jaxbooth.evaluation.prompt_sets import load_prompt_set
from jaxbooth.export.formats import export, own_formats
from jaxbooth.export.source import Base
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.wanted import write_wanted
from jaxbooth.fleet_result import load_result
from jaxbooth.merge import arrays
from jaxbooth.weights.digest import base_digest

KEY = "3f2a" * 16
FEW = r"attn2\.to_q$|resnets\.1\.conv1$"  # linear layers and convolutions
METHODS = {
    "lora": {"type": "lora", "rank": 4, "alpha": 2, "text_encoder": True, "targets": FEW},
    "dora": {"type": "lora", "rank": 4, "use_dora": True, "targets": FEW},
    "textual_inversion": {"type": "textual_inversion", "num_vectors": 3},
    "custom_diffusion": {"type": "custom_diffusion"},
    "pivotal": {"type": "pivotal", "rank": 2, "targets": FEW},
}


def result(kind, values, twin, twin_folder, folder):
    """A result folder, the fleet's configuration, and what it was made of."""
    subject = {"name": REX.name, "images": "photos", "class_noun": "dog", "token": "<rex>"}
    config = validate({"base": {"path": str(twin_folder(kind))}, "method": values, "subjects": [subject]}, "test")
    base = Base("owner/tiny-diffusion", base_digest(twin_folder(kind)))
    source = trained(twin(kind), config.method, base=base)
    for name in own_formats(config.method):
        export(source, name, folder / name)
    return config, source


@pytest.mark.parametrize("method", METHODS)
def test_a_result_is_the_exported_model(method, twin, twin_folder, tmp_path):
    config, source = result("sd1", METHODS[method], twin, twin_folder, tmp_path)
    found, wanted = arrays(load_result(tmp_path, config)), arrays(source.plain)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6, err_msg=name)
    moved = [name for name, value in arrays(twin("sd1")).items() if value.shape != wanted[name].shape
             or not np.allclose(value, wanted[name], atol=1e-3)]  # fmt: skip
    assert moved


@pytest.mark.parametrize("method", ["textual_inversion", pytest.param("pivotal", marks=pytest.mark.slow)])
def test_words_of_both_text_encoders_are_found(method, twin, twin_folder, tmp_path):
    config, source = result("sdxl", METHODS[method], twin, twin_folder, tmp_path)
    found, prompt = load_result(tmp_path, config), "a photo of a <rex> dog"
    for ours, theirs in zip(states_of(found, prompt), states_of(source.plain, prompt), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_result_of_another_method_is_refused(twin, twin_folder, tmp_path):
    config, _ = result("sd1", METHODS["lora"], twin, twin_folder, tmp_path)
    other = yaml.safe_load(json.dumps(config.model_dump(mode="json"))) | {"method": METHODS["textual_inversion"]}
    with pytest.raises(ConversionError, match="no result of textual_inversion"):
        load_result(tmp_path, validate(other, "test"))


# ---- a fleet's folder as something to evaluate


def fleet(twin, twin_folder, tmp_path, noted=("images", "config")):
    """A fleet's folder with one subject done and one missing."""
    config, source = result("sd1", METHODS["textual_inversion"], twin, twin_folder, tmp_path / "files")
    photos, store = tmp_path / "photos", OutputStore(tmp_path / "fleet")
    photos.mkdir()
    for number in range(2):
        Image.fromarray(np.full((16, 16, 3), number * 90, np.uint8)).save(photos / f"{number}.png")
    with store.attempt("my-rex", KEY) as attempt:
        for name in own_formats(config.method):
            export(source, name, attempt.path / name)
        store.commit(attempt, {})
    subjects = [
        {"name": name, "key": KEY, "class_noun": "dog", "token": "<rex>", "images": str(photos)}
        for name in ("my-rex", "tom")
    ]
    values = config.model_dump(mode="json", exclude={"subjects", "run_dir"})
    for subject in subjects:
        if "images" not in noted:
            subject.pop("images")
    write_wanted(store, subjects, values)
    return store.root, source


def test_a_fleets_folder_is_evaluated_by_what_is_done(twin, twin_folder, tmp_path):
    folder, trained_source = fleet(twin, twin_folder, tmp_path)
    source = open_source(folder)
    (subject,) = source.subjects
    assert (subject.name, subject.class_noun, subject.noun_in_prompts) == ("my-rex", "dog", False)
    assert len(subject.photos) == 2 and subject.resolution == 16 and subject.mark == KEY[:16]
    assert "1 subjects are not done and left out: tom" in source.notes[0]
    assert source.default_out == folder / "evaluation"
    found, prompt = subject.load(), subject.prompts(load_prompt_set("pocket"))[0]
    assert prompt == "a <rex> in the jungle"
    np.testing.assert_allclose(states_of(found, prompt)[0], states_of(trained_source.plain, prompt)[0], atol=1e-5)


def test_a_fleet_of_an_earlier_version_is_told_what_to_do(twin, twin_folder, tmp_path):
    folder, _ = fleet(twin, twin_folder, tmp_path, noted=())
    with pytest.raises(ConfigError, match="Run the same `jaxbooth fleet` command again"):
        open_source(folder)
