"""New words in tokenizer folders: every version of transformers reads them, and gives them the same ids."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace

import pytest
import transformers
from tokenizers import Tokenizer
from twins import TOKENIZER

from jaxbooth.errors import ConversionError
from jaxbooth.families import NewToken, from_diffusers, with_new_tokens
from jaxbooth.pipeline import tokenizers
from jaxbooth.weights.added_tokens import add_tokens, new_token_ids

IDS = {"<Rex>": 49408, "<Rex>_1": 49409, "zwx": 49410}
# What the three words, other spellings of them, and plain text become, between start and end of text.
EXPECTED = {
    "a <Rex> <Rex>_1 dog": [320, 49408, 49409, 1929],
    "<Rex>,<Rex>_1": [49408, 267, 49409],
    "a<Rex>dog": [320, 49408, 1929],
    "a <rex>, dog": [320, 283, 10904, 29, 267, 1929],
    "zwx azwxb": [49410, 320, 49410, 321],
    "a Dog": [320, 1929],
}


@pytest.fixture(params=["vocab and merges", "tokenizer.json"])
def folder(request, tmp_path):
    """A tokenizer as hub repositories have it, and as transformers 5 saves it."""
    if request.param == "tokenizer.json":
        transformers.CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path / "tokenizer")
        (tmp_path / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    else:
        shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("reader", ["CLIPTokenizer", "CLIPTokenizerFast", "AutoTokenizer"])
def test_every_tokenizer_class_knows_the_words(reader, folder):
    add_tokens(folder, IDS)
    tokenizer = getattr(transformers, reader).from_pretrained(folder)
    assert {name: tokenizer.get_added_vocab()[name] for name in IDS} == IDS and len(tokenizer) == 49411
    for prompt, ids in EXPECTED.items():
        assert tokenizer(prompt).input_ids == [49406, *ids, 49407], prompt


READ = """
import json, sys, transformers
assert transformers.__version__.startswith("4.57")
found = {}
for name in ("CLIPTokenizer", "CLIPTokenizerFast"):
    tokenizer = getattr(transformers, name).from_pretrained(sys.argv[1])
    found[name] = {prompt: tokenizer(prompt).input_ids[1:-1] for prompt in json.loads(sys.argv[2])}
print(json.dumps(found))
"""


@pytest.mark.slow  # installs an older library
def test_transformers_4_gives_the_same_ids(tmp_path):
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    add_tokens(tmp_path / "tokenizer", IDS)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    there = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (there / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # behind its own packages
    command = [python, "-m", "pip", "install", "--quiet", "transformers==4.57.*"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("pip cannot install transformers 4.57")
    command = [python, "-c", READ, tmp_path / "tokenizer", json.dumps(list(EXPECTED))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"CLIPTokenizer": EXPECTED, "CLIPTokenizerFast": EXPECTED}


def test_files_of_old_clients_are_there_too(folder):
    add_tokens(folder, IDS)
    assert json.loads((folder / "added_tokens.json").read_text()) == IDS
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {entry["content"]: int(number) for number, entry in decoder.items()} == IDS


def test_clients_that_read_tokenizer_json_alone_know_the_words(tmp_path):
    transformers.CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path)
    add_tokens(tmp_path, IDS)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for prompt, ids in EXPECTED.items():
        assert tokenizer.encode(prompt).ids == [49406, *ids, 49407], prompt


def test_in_memory_and_on_disk_words_are_found_alike(folder, tmp_path):
    """Prompts of training, whose words are added in memory, and of the saved pipeline."""
    inside = tokenizers(str(tmp_path), 1, (NewToken("<Rex>", 2), NewToken("zwx")))[0]
    before = {prompt: inside(prompt).input_ids for prompt in EXPECTED}
    add_tokens(folder, IDS)
    assert before == {prompt: [49406, *ids, 49407] for prompt, ids in EXPECTED.items()}
    saved = transformers.CLIPTokenizer.from_pretrained(folder)
    assert before == {prompt: saved(prompt).input_ids for prompt in EXPECTED}


def test_words_that_are_there_stay_and_others_come_behind(folder):
    add_tokens(folder, {"<Rex>": 49408})
    add_tokens(folder, {"<Tom>": 49409})
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    assert tokenizer("<Rex> <Tom>").input_ids == [49406, 49408, 49409, 49407]


def test_without_words_nothing_is_written(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    add_tokens(folder, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_table_whose_rows_are_not_the_tokenizers_is_refused(twin_folder):
    family = from_diffusers(twin_folder("sd1"))
    taught = with_new_tokens(replace(family, new_tokens=(NewToken("<rex>", 2),)))
    assert new_token_ids(taught) == ({"<rex>": 49408, "<rex>_1": 49409},)
    shorter = replace(taught, text_encoders=tuple(replace(c, vocab_size=49409) for c in taught.text_encoders))
    with pytest.raises(ConversionError) as caught:
        new_token_ids(shorter)
    assert "<rex> has id 49408, its vector is row 49407 of 49409" in str(caught.value)


def test_a_damaged_tokenizer_file_is_named(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConversionError, match="tokenizer_config.json is not valid JSON"):
        add_tokens(folder, IDS)
