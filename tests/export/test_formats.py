"""The table of formats: what can be written as what."""

import pytest
from trained_models import REX, trained

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.formats import FORMATS, check_format, export, own_formats
from jaxbooth.methods import CustomDiffusion, DreamBooth, Finetune, LoRA, Perfusion, Pivotal, TextualInversion

WHOLE = {"diffusers", "merged"}
SERVED = {
    DreamBooth(): WHOLE,
    Finetune(): WHOLE,
    LoRA(): WHOLE | {"peft-lora", "kohya-lora"},
    Pivotal(): WHOLE | {"peft-lora", "kohya-lora"},
    TextualInversion(): WHOLE | {"ti", "a1111-ti"},
    CustomDiffusion(): WHOLE | {"custom-diffusion", "peft-lora", "kohya-lora"},
    Perfusion(): WHOLE | {"perfusion"},
}
IDS = [method.type for method in SERVED]


def test_the_formats_are_those_of_the_command_line():
    names = "diffusers|merged|peft-lora|kohya-lora|ti|a1111-ti|custom-diffusion|perfusion"
    assert list(FORMATS) == names.split("|")


@pytest.mark.parametrize(("method", "served"), SERVED.items(), ids=IDS)
def test_each_method_can_be_written_in_its_formats_and_in_no_other(method, served):
    assert {name for name, form in FORMATS.items() if form.serves_method(method)} == served
    for name in FORMATS.keys() - served:
        with pytest.raises(MethodError) as caught:
            check_format(name, method)
        message = str(caught.value)
        assert message.startswith(f"method {method.type} cannot be exported as {name}")
        assert all(other in message for other in served)


@pytest.mark.parametrize("method", SERVED, ids=IDS)
def test_adapters_have_small_files_of_their_own_and_full_weights_have_none(method):
    own = own_formats(method)
    assert bool(own) == method.has_adapter and not WHOLE & set(own)
    assert set(own) <= SERVED[method]


def test_a_base_as_it_is_can_only_be_a_pipeline():
    assert check_format("merged", None)
    with pytest.raises(
        MethodError, match="a model without a run cannot be exported as ti; it can be as diffusers, merged"
    ):
        check_format("ti", None)


def test_unknown_formats_and_dtypes_name_the_known_ones():
    with pytest.raises(MethodError, match="format ckpt is not known.*diffusers, merged, ti, a1111-ti"):
        check_format("ckpt", TextualInversion())
    with pytest.raises(MethodError, match="dtype int8 is not known.*float32, float16, bfloat16"):
        check_format("ti", TextualInversion(), "int8")


def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(twin, tmp_path):
    source = trained(twin("sd1"), TextualInversion())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="not empty"):
        export(source, "ti", tmp_path / "mine")
    with pytest.raises(ConversionError, match="not empty"):
        export(source, "ti", tmp_path / "mine" / "notes.txt")
    with pytest.raises(ConversionError, match="cannot be written"):
        export(source, "ti", tmp_path / "mine" / "notes.txt" / "out")
    wide = trained(twin("sd1"), TextualInversion(), (REX,))
    rows = wide.model.text_encoders[0].text_model.embeddings.token_embedding.rows
    rows[...] = rows[...] * 1e6
    with pytest.raises(ConversionError, match="too large for float16"):
        export(wide, "ti", tmp_path / "out", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken_and_parents_are_made(twin, tmp_path):
    (tmp_path / "empty").mkdir()
    source = trained(twin("sd1"), TextualInversion())
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert export(source, "ti", out) == out
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "learned_embeds.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]
