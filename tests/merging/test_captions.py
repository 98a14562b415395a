import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from jaxbooth.merging.captions import _SLOT, _rules, captions


@pytest.fixture(scope="module")
def many():
    return captions(100_000)


def test_a_hundred_thousand_captions_are_distinct(many):
    assert len(many) == len(set(many)) == 100_000


def test_captions_are_the_same_everywhere_and_a_longer_list_begins_with_a_shorter(many):
    assert captions(1200) == many[:1200] and captions(0) == []
    digest = hashlib.sha256("\n".join(many).encode()).hexdigest()
    assert digest[:16] == "9dbed6c9b7315e5b", "covariances were computed over these captions: change them with care"


def test_captions_have_4_to_20_words_of_varied_number(many):
    lengths = Counter(len(caption.split()) for caption in many)
    assert min(lengths) >= 4 and max(lengths) <= 20
    assert all(lengths[words] > 200 for words in range(4, 21)) and max(lengths.values()) < 20_000


def test_twelve_hundred_captions_speak_of_more_things_than_features_are_wide(many):
    words = Counter(word for caption in many[:1200] for word in set(re.findall(r"[a-z'-]+", caption)))
    assert len(words) > 1400  # CLIP's features are 768 wide, SD2's 1024
    content = [count for word, count in words.items() if len(word) > 4]
    assert max(content) < 120  # no word is in a tenth of them


def test_captions_are_clean_english_on_one_line(many):
    assert all(re.fullmatch(r"[a-z][a-z' ,-]*[a-z]", caption) for caption in many)
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,|\b(\w+) \1\b", caption) for caption in many)
    assert not any(re.search(r"\ban? (uni|use|euro|one\b|hour|honest)", caption) for caption in many)


def test_no_caption_repeats_a_content_word(many):
    for caption in many[:5000]:
        words = [word for word in caption.replace(",", "").split() if len(word) > 3]
        assert len(words) == len(set(words)), caption


def test_every_slot_of_the_grammar_has_a_rule_and_every_rule_is_used():
    rules = _rules()
    used = {slot for alternatives in rules.values() for text in alternatives for slot in _SLOT.findall(text)}
    assert used | {"caption"} == set(rules)
    assert all(text for alternatives in rules.values() for text in alternatives)
    for name, alternatives in rules.items():
        assert name == "caption" or len(alternatives) == len(set(alternatives)), name


def test_features_of_the_captions_have_full_rank_on_a_trained_text_encoder(trained):
    values = np.linalg.eigvalsh(trained.moment)  # of 200 captions
    assert np.linalg.matrix_rank(trained.moment) == len(values) == 64
    assert values[0] > 1e-8 * values[-1]
