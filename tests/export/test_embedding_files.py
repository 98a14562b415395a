"""New words as files: what diffusers, A1111 and ComfyUI make of them."""

import numpy as np
import pytest
from card_script import assert_close, blocks, drawn_prompt, pipeline_of_card, states_of_client
from safetensors.numpy import load_file, save_file
from trained_models import DIGEST, KINDS, REX, TOM, states_of, trained
from twins import make_twin

from jaxbooth import load_pipeline
from jaxbooth.errors import ConversionError, MethodError
from jaxbooth.export.embeddings import a1111_names, load_embeddings, token_vectors
from jaxbooth.export.formats import export
from jaxbooth.methods import LoRA, TextualInversion

WIDTHS = {"sd1": [32], "sd2": [32], "sdxl": [32, 32]}


def renamed(token, subject=REX):
    return subject.model_copy(update={"token": token})


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


# ---- diffusers


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_encodes_a_prompt_with_the_word_as_we_do(kind, vectors, twin, twin_folder, tmp_path):
    source = trained(twin(kind), TextualInversion(num_vectors=vectors))
    folder = export(source, "ti", tmp_path / "out")
    pipe, prompt = pipeline_of_card(folder, twin_folder(kind)), drawn_prompt(folder)
    names = ["<rex>", "<rex>_1", "<rex>_2"][:vectors]
    assert [pipe.tokenizer.convert_tokens_to_ids(name) for name in names] == list(range(49408, 49408 + vectors))
    assert len(pipe.tokenizer) == 49408 + vectors
    theirs, ours = states_of_client(pipe, prompt), states_of(source.plain, prompt)
    for found, expected in zip(theirs, ours, strict=True):
        if expected is not None:
            assert_close(found, expected)
    base = states_of(twin(kind), prompt)[0]
    assert np.abs(theirs[0] - base).max() > 0.1 * np.abs(base).max()


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_has_one_key_the_token_and_its_vectors(kind, twin, tmp_path):
    source = trained(twin(kind), TextualInversion(num_vectors=2))
    folder = export(source, "ti", tmp_path / "out")
    assert files_of(folder) == ["learned_embeds.safetensors", "learned_embeds_2.safetensors"][: len(WIDTHS[kind])]
    [(_, _, vectors)] = token_vectors(source)
    for file, rows in zip(files_of(folder), vectors, strict=True):
        [(key, tensor)] = load_file(folder / file).items()
        assert key == "<rex>" and tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, rows)


def test_pooled_text_of_sdxl_is_right_where_old_configs_name_a_wrong_end_of_text(tmp_path):
    base = make_twin(tmp_path / "base", "sdxl", text={"eos_token_id": 2, "num_hidden_layers": 1})
    source = trained(load_pipeline(base), TextualInversion(num_vectors=2))
    folder = export(source, "ti", tmp_path / "out")
    pipe, prompt = pipeline_of_card(folder, base), drawn_prompt(folder)
    assert_close(states_of_client(pipe, prompt)[1], states_of(source.plain, prompt)[1])
    pipe.text_encoder_2.text_model.eos_token_id = 2  # without the card's line
    assert np.abs(states_of_client(pipe, prompt)[1] - states_of(source.plain, prompt)[1]).max() > 0.1


def test_a_token_with_capitals_works_in_lower_case(twin, twin_folder, tmp_path):
    source = trained(twin("sd1"), TextualInversion(num_vectors=2), (renamed("<Rex>"),))
    folder = export(source, "ti", tmp_path / "out")
    pipe = pipeline_of_card(folder, twin_folder("sd1"))
    assert drawn_prompt(folder) == "a photo of a <rex> on the beach"
    theirs = states_of_client(pipe, drawn_prompt(folder))[0]
    assert_close(theirs, states_of(source.plain, "a photo of a <Rex> on the beach")[0])


def test_subjects_learned_together_have_a_file_each(twin, twin_folder, tmp_path):
    source = trained(twin("sd1"), TextualInversion(num_vectors=2), (REX, TOM))
    folder = export(source, "ti", tmp_path / "out")
    assert files_of(folder) == ["my-rex.learned_embeds.safetensors", "tom.learned_embeds.safetensors"]
    pipe, prompt = pipeline_of_card(folder, twin_folder("sd1")), drawn_prompt(folder)
    assert prompt == "a photo of a <rex> and a <tom> on the beach"
    assert_close(states_of_client(pipe, prompt)[0], states_of(source.plain, prompt)[0])


# ---- A1111, Forge, ComfyUI: the rules by which they read a file


def a1111(tensors, file, sdxl):
    """(word, vectors by encoder): SDXL's two keys; else the first and only tensor, which is called like the file."""
    if "clip_g" in tensors and "clip_l" in tensors:
        assert sdxl
        return file.stem, [tensors["clip_l"], tensors["clip_g"]]
    assert not sdxl and len(tensors) == 1
    return file.stem, [next(iter(tensors.values()))]


def comfyui(tensors, file, sdxl):
    """Each encoder asks for its own key, and takes the first tensor where there is none."""
    keys = ["clip_l", "clip_g"] if sdxl else ["clip_l"]
    return f"embedding:{file.stem}", [tensors.get(key, next(iter(tensors.values()))) for key in keys]


@pytest.mark.parametrize("client", [a1111, comfyui])
@pytest.mark.parametrize("kind", KINDS)
def test_other_clients_find_the_vectors_by_their_key_rules(kind, client, twin, tmp_path):
    source = trained(twin(kind), TextualInversion(num_vectors=2))
    folder = export(source, "a1111-ti", tmp_path / "out")
    [file] = folder.glob("*.safetensors")
    word, found = client(load_file(file), file, kind == "sdxl")
    assert word.removeprefix("embedding:") == "emb-rex"
    [(_, _, vectors)] = token_vectors(source)
    assert len(found) == len(vectors)
    for theirs, ours in zip(found, vectors, strict=True):
        assert theirs.ndim == 2
        np.testing.assert_array_equal(theirs, ours)
    heading = {a1111: "A1111, Forge", comfyui: "ComfyUI"}[client]
    assert f"`a photo of a {word} on the beach`" in blocks(folder)[heading]


@pytest.mark.parametrize(
    ("token", "word"),
    [
        ("<rex-the-dog>", "rex-the-dog"),
        ("<dog>", "emb-dog"),  # a word of the vocabulary: it would show the subject in every prompt
        ("../../etc/x", "etcx"),
        ("\u72ac", "my-rex"),
        ("[v]", "emb-v"),
    ],
)
def test_a_word_is_named_so_that_a_file_and_a_prompt_can_hold_it(token, word, twin):
    assert a1111_names(trained(twin("sd1"), TextualInversion(), (renamed(token),))) == {"my-rex": word}


def test_two_words_never_share_a_file(twin, tmp_path):
    source = trained(twin("sd1"), TextualInversion(), (renamed("<xyzq>"), renamed("[XYZQ]", TOM)))
    assert files_of(export(source, "a1111-ti", tmp_path / "out")) == ["XYZQ-tom.safetensors", "xyzq.safetensors"]


# ---- sizes, reading, bad input


def test_file_of_sd15_is_3_kilobytes(twin, tmp_path):
    sd = load_pipeline(
        make_twin(tmp_path / "wide", "sd1", unet={"cross_attention_dim": 768}, text={"hidden_size": 768})
    )
    source = trained(sd, TextualInversion())
    for name in ("ti", "a1111-ti"):
        [file] = export(source, name, tmp_path / name).glob("*.safetensors")
        print(f"{name}: {file.stat().st_size} bytes")
        assert 768 * 4 < file.stat().st_size < 3584


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtype_is_the_one_asked_for(dtype, twin, tmp_path):
    source = trained(twin("sd1"), TextualInversion())
    [file] = export(source, "ti", tmp_path / "out", dtype).glob("*.safetensors")
    [(_, _, (rows,))] = token_vectors(source)
    assert load_file(file)["<rex>"].dtype == dtype
    np.testing.assert_allclose(load_embeddings(file)["<rex>"], rows, rtol=1e-2, atol=1e-3)


def test_files_are_read_back(twin, tmp_path):
    source = trained(twin("sdxl"), TextualInversion(num_vectors=2))
    [(_, _, (small, large))] = token_vectors(source)
    first = export(source, "ti", tmp_path / "ti") / "learned_embeds.safetensors"
    both = export(source, "a1111-ti", tmp_path / "a1111") / "emb-rex.safetensors"
    np.testing.assert_array_equal(load_embeddings(first, DIGEST)["<rex>"], small)
    np.testing.assert_array_equal(load_embeddings(both, DIGEST)["clip_g"], large)
    for file in (first, both):
        with pytest.raises(MethodError, match="learned on owner/tiny-diffusion"):
            load_embeddings(file, "ffff")


def test_a_file_that_is_no_embedding_is_refused(tmp_path):
    save_file({"a": np.ones((1, 2)), "b": np.ones((1, 2))}, tmp_path / "two.safetensors")
    with pytest.raises(ConversionError, match="no embedding: it holds a, b"):
        load_embeddings(tmp_path / "two.safetensors")


def test_a_model_without_new_words_is_refused(twin):
    with pytest.raises(MethodError, match="no new word"):
        token_vectors(trained(twin("sd1"), LoRA(rank=2, targets=r"attn2\.to_q$")))
