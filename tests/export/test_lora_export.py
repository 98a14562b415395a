"""From a trained model to LoRA files, and what their clients make of them."""

import numpy as np
import pytest
from card_script import answer_of_client, assert_close, blocks, drawn_prompt, pipeline_of_card, states_of_client
from safetensors.numpy import load_file, save_file
from trained_models import DIGEST, KINDS, REX, TOM, answer_of, states_of, trained

from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.formats import export
from jaxbooth.export.lora import load_adapter_lora, lora_weights, nearest_lora, relative_error
from jaxbooth.export.tensor_file import read_tensors
from jaxbooth.merging.compression import kept_rank
from jaxbooth.methods import CustomDiffusion, LoRA, Pivotal, TextualInversion
from jaxbooth.weights.torch_keys import to_torch

BOTH = LoRA(rank=4, alpha=2, targets=r"attn2|proj_in|resnets\.1\.conv1$", text_encoder=True, text_encoder_rank=2)
PROMPT = "a photo of a <rex> dog on the beach"


@pytest.mark.parametrize("layout", ["peft-lora", "kohya-lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_answers_with_the_exported_lora_as_we_do(kind, layout, twin, twin_folder, tmp_path):
    source = trained(twin(kind), BOTH)
    pipe = pipeline_of_card(export(source, layout, tmp_path / "out"), twin_folder(kind))
    states, pooled = states_of_client(pipe, PROMPT)
    ours, ours_pooled = states_of(source.plain, PROMPT)
    assert_close(states, ours)
    if pooled is not None:
        assert_close(pooled, ours_pooled)
    answer = answer_of(source.plain, PROMPT)
    assert_close(answer_of_client(pipe, PROMPT), answer)
    assert np.abs(answer - answer_of(twin(kind), PROMPT)).max() > 0.1 * np.abs(answer).max()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_the_change_of_every_weight_is_that_of_merging(options, twin):
    sd = twin("sd1")
    source = trained(sd, BOTH.model_copy(update=options))
    before = {n: to_torch(part) for n, part in sd.components()}
    after = {n: to_torch(part) for n, part in source.plain.components()}
    weights = lora_weights(source)
    for component, tensors in before.items():
        for key, tensor in tensors.items():
            layer = weights.get(f"{component}.{key.removesuffix('.weight')}") if key.endswith(".weight") else None
            wanted = 0 if layer is None else layer.delta(tensor)
            np.testing.assert_allclose(after[component][key] - tensor, wanted, rtol=0, atol=1e-6, err_msg=key)


def test_alpha_and_rank_are_told_as_configured(twin):
    weights = lora_weights(trained(twin("sd1"), LoRA(rank=49, alpha=1, targets=r"attn2\.to_q$", use_rslora=True)))
    assert {(layer.rank, layer.alpha, layer.use_rslora) for layer in weights.values()} == {(49, 1.0, True)}


@pytest.mark.parametrize("layout", ["peft-lora", "kohya-lora"])
def test_strength_scales_the_exported_change(layout, twin, tmp_path):
    method = LoRA(rank=4, targets=r"attn2\.to_q$")
    for strength in (1.0, 0.25):
        export(trained(twin("sd1"), method, strength=strength), layout, tmp_path / str(strength))
    file = "pytorch_lora_weights.safetensors" if layout == "peft-lora" else "my-rex.safetensors"
    whole, quarter = (load_adapter_lora(tmp_path / s / file, twin("sd1")) for s in ("1.0", "0.25"))
    assert whole.keys() == quarter.keys()
    for path, layer in whole.items():
        np.testing.assert_allclose(quarter[path].delta(), 0.25 * layer.delta(), rtol=1e-6)


def test_strength_of_dora_is_refused(twin):
    source = trained(twin("sd1"), LoRA(rank=4, targets=r"attn2\.to_q$", use_dora=True), strength=0.5)
    with pytest.raises(MethodError, match="strength 0.5: a DoRA file"):
        lora_weights(source)


def test_dora_of_kohyas_layout_is_not_offered_to_diffusers(twin, tmp_path):
    source = trained(twin("sd1"), LoRA(rank=4, targets=r"attn2\.to_q$", use_dora=True))
    folder = export(source, "kohya-lora", tmp_path / "out")
    assert "diffusers" not in blocks(folder) and "This is DoRA" in (folder / "README.md").read_text()


def test_pivotal_lora_has_its_word_beside_it_and_diffusers_loads_both(twin, twin_folder, tmp_path):
    method = Pivotal(rank=4, targets="attn2", text_encoder=True, text_encoder_rank=2, num_vectors=2)
    source = trained(twin("sd1"), method)
    folder = export(source, "peft-lora", tmp_path / "out")
    names = {"README.md", "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"}
    assert {file.name for file in folder.iterdir()} == names
    pipe, prompt = pipeline_of_card(folder, twin_folder("sd1")), drawn_prompt(folder)
    assert "<rex>" in prompt
    assert_close(answer_of_client(pipe, prompt), answer_of(source.plain, prompt))


def test_pivotal_lora_for_kohya_has_its_word_in_a_folder_of_its_own(twin, tmp_path):
    folder = export(trained(twin("sd1"), Pivotal(rank=4, targets=r"attn2\.to_q$")), "kohya-lora", tmp_path / "out")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*.*")}
    assert files == {"README.md", "my-rex.safetensors", "embeddings/emb-rex.safetensors"}
    uses = blocks(folder)
    assert "`a photo of a emb-rex dog on the beach <lora:my-rex:1>`" in uses["A1111, Forge"]
    assert "`a photo of a embedding:emb-rex dog on the beach`" in uses["ComfyUI"]
    assert "--textual_inversion_embeddings embeddings/emb-rex.safetensors" in uses["kohya"]


# ---- Custom Diffusion as the nearest LoRA


def test_custom_diffusion_as_lora_is_the_best_of_its_ranks_and_the_card_tells_the_error(twin, twin_folder, tmp_path):
    source = trained(twin("sd1"), CustomDiffusion())
    weights, notes = nearest_lora(source)
    missed = whole = 0.0
    before, after = (to_torch(sd.unet) for sd in (twin("sd1"), source.plain))
    for path, layer in weights.items():
        key = path.removeprefix("unet.") + ".weight"
        delta = after[key] - before[key]
        sigma = np.linalg.svd(delta, compute_uv=False)
        assert layer.rank == kept_rank(sigma, 0.6)
        np.testing.assert_allclose(
            np.linalg.norm(layer.delta() - delta), np.sqrt(np.sum(sigma[layer.rank :] ** 2)), rtol=1e-4
        )
        missed, whole = missed + np.sum(sigma[layer.rank :] ** 2), whole + np.sum(sigma**2)
    assert len(weights) == sum("attn2.to_k" in key or "attn2.to_v" in key for key in before)
    error = np.sqrt(missed / whole)
    assert 0.1 < error < 0.9 and f"relative error of the change of the weights {error:.3g}" in notes[0]
    folder = export(source, "peft-lora", tmp_path / "out")
    assert notes[0] in (folder / "README.md").read_text() and (folder / "learned_embeds.safetensors").is_file()
    pipeline_of_card(folder, twin_folder("sd1"))


def test_relative_error_of_nothing_learned_is_0():
    assert relative_error({}, {}) == 0


# ---- bad input


def test_an_adapter_of_another_base_is_refused(twin, tmp_path):
    source = trained(twin("sd1"), LoRA(rank=4, targets=r"attn2\.to_q$"))
    for layout in ("peft-lora", "kohya-lora"):
        folder = export(source, layout, tmp_path / layout)
        file = next(folder.glob("*.safetensors"))
        assert load_adapter_lora(file, twin("sd1"), DIGEST).keys() == lora_weights(source).keys()
        with pytest.raises(MethodError) as caught:
            load_adapter_lora(file, twin("sd1"), "ffff")
        for words in (str(file), "owner/tiny-diffusion", DIGEST, "ffff", "Give the base"):
            assert words in str(caught.value)
    save_file(load_file(file), tmp_path / "foreign.safetensors")  # other programs do not tell
    assert load_adapter_lora(tmp_path / "foreign.safetensors", twin("sd1"), "ffff")


def test_a_lora_of_another_family_names_what_does_not_fit(twin, tmp_path):
    export(trained(twin("sdxl"), LoRA(rank=4, targets=r"attn2\.to_k$")), "peft-lora", tmp_path / "xl")
    with pytest.raises(ConversionError, match="transformer_blocks.1.attn2.to_k"):
        load_adapter_lora(tmp_path / "xl", twin("sd1"))


def test_a_model_without_low_rank_layers_is_refused(twin):
    with pytest.raises(MethodError, match="no low-rank layers"):
        lora_weights(trained(twin("sd1"), TextualInversion()))


def test_header_tells_what_the_file_is_of(twin, tmp_path):
    source = trained(twin("sd1"), LoRA(rank=4, targets=r"attn2\.to_q$"), subjects=(REX, TOM))
    _, header = read_tensors(export(source, "kohya-lora", tmp_path / "out") / "my-rex+tom.safetensors")
    assert header["jaxbooth_base"] == DIGEST and header["ss_steps"] == "123"
    assert header["jaxbooth_subjects"] == '[["my-rex", "<rex>", "dog"], ["tom", "<tom>", "cat"]]'
    assert header["modelspec.trigger_phrase"] == "a photo of a <rex> dog and a <tom> cat on the beach"
