"""A committed result, read back, is the model that was exported."""

import json

import numpy as np
import pytest
import yaml
from trained_models import REX, states_of, trained

from jaxbooth.config import validate
from jaxbooth.errors import ConversionError
from jaxbooth.export.formats import export, own_formats
from jaxbooth.export.source import Base
from jaxbooth.fleet_result import load_result
from jaxbooth.merge import arrays
from jaxbooth.weights.digest import base_digest

METHODS = {
    "lora": {"type": "lora", "rank": 4, "alpha": 2, "text_encoder": True, "targets": "attn-mlp-conv"},
    "dora": {"type": "lora", "rank": 4, "use_dora": True},
    "textual_inversion": {"type": "textual_inversion", "num_vectors": 3},
    "custom_diffusion": {"type": "custom_diffusion"},
    "pivotal": {"type": "pivotal", "rank": 2},
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


@pytest.mark.parametrize("method", ["textual_inversion", "pivotal"])
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
