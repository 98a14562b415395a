import json
import random
from pathlib import Path

import pytest

from jaxbooth.data.prompts import check_token
from jaxbooth.data.rare_tokens import STOP_WORDS, rare_tokens

TOKENIZER = Path(__file__).parents[3] / "shared" / "data" / "clip_tokenizer"

VOCABULARY = {
    "olis</w>": 49397,
    "sbu</w>": 46281,
    "ohwx</w>": 47993,
    "sks</w>": 48136,
    "fck</w>": 49000,
    "sbu": 44000,
    "pll": 47629,
    "a</w>": 320,
    "dog</w>": 1929,
    "z</w>": 45000,
    "abcde</w>": 45001,
    "ab1</w>": 45002,
    "<|endoftext|>": 49407,
}


def test_candidates_are_rare_whole_words_that_are_not_stopped():
    assert set(rare_tokens(VOCABULARY, seed=0)) == {"olis", "sbu", "ohwx"}
    assert "sks" in rare_tokens(VOCABULARY, seed=0, stop_words=())


def test_order_depends_on_the_seed_alone():
    shuffled = list(VOCABULARY.items())
    random.Random(1).shuffle(shuffled)
    assert rare_tokens(VOCABULARY, seed=5) == rare_tokens(dict(shuffled), seed=5)
    assert len({rare_tokens(VOCABULARY, seed=seed) for seed in range(20)}) > 1
    fewer = {token: number for token, number in VOCABULARY.items() if token != "sbu</w>"}
    assert rare_tokens(fewer, 5) == tuple(word for word in rare_tokens(VOCABULARY, 5) if word != "sbu")


def test_stop_words_are_sorted_and_distinct():
    assert list(STOP_WORDS) == sorted(set(STOP_WORDS))


@pytest.mark.skipif(not TOKENIZER.is_dir(), reason="needs CLIP's tokenizer files")
def test_every_candidate_of_clip_is_one_token_there_and_back():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
    everything = rare_tokens(vocabulary, 0, stop_words=())
    assert set(STOP_WORDS) <= set(everything)  # a stop word that is no candidate stops nothing
    encoded = tokenizer(list(everything)).input_ids
    assert encoded == [[49406, vocabulary[f"{word}</w>"], 49407] for word in everything]
    assert [tokenizer.decode(ids[1:-1]).strip() for ids in encoded] == list(everything)
    assert not any(check_token(tokenizer, word, "stuffed animal") for word in rare_tokens(vocabulary, 0)[:50])
    assert "split" in check_token(tokenizer, "zwx", "dog")[0] and "common" in check_token(tokenizer, "photo", "dog")[0]
