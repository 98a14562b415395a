"""The gate before any score is put beside a published one, and how photos are told apart."""

import numpy as np
import pytest

from jaxbooth.evaluation.published import ROWS, calibration
from jaxbooth.evaluation.similarity_table import similarity


def test_the_whole_set_within_a_hundredth_is_good():
    lines, good = calibration({"dino": 0.781, "clip_i": 0.880}, {"dino": 0.83, "clip_i": 0.91}, is_whole_set=True)
    assert good and "dino 0.781 (with self pairs 0.830)" in lines[0]
    assert "published: dino 0.774, clip_i 0.885" in lines[1] and len(lines) == 2


def test_a_row_that_is_off_is_told_loudly():
    lines, good = calibration({"dino": 0.70, "clip_i": 0.889}, {"dino": 0.8, "clip_i": 0.9}, is_whole_set=True)
    assert not good and lines[-1].startswith("WARNING") and "dino is off by -0.074" in lines[-1]
    assert "clip_i is off" not in lines[-1]


def test_other_photos_are_not_compared_and_that_is_said():
    lines, good = calibration({"dino": 0.5}, {"dino": 0.6}, is_whole_set=False)
    assert good and "not compared with the published" in lines[1] and "WARNING" not in "".join(lines)


def test_own_measures_have_nothing_to_be_compared_with():
    lines, good = calibration({"subject_fidelity": 0.64}, {"subject_fidelity": 0.7}, is_whole_set=True)
    assert good and len(lines) == 1


def test_published_rows_are_the_papers():
    assert ROWS["Real images"] == {"dino": 0.774, "clip_i": 0.885}
    with_prior, without = (row for name, row in ROWS.items() if "15 subjects" in name)
    assert with_prior["pres"] < without["pres"] and with_prior["div"] > without["div"]


def test_photos_are_compared_by_whose_they_are():
    draw = np.random.default_rng(0)
    rows = {name: draw.standard_normal((count, 6)) for name, count in (("dog", 4), ("dog2", 3), ("can", 2))}
    rows = {name: part / np.linalg.norm(part, axis=-1, keepdims=True) for name, part in rows.items()}
    class_of = {"dog": "dog", "dog2": "dog", "can": "can"}
    listed = [(name, row) for name, part in rows.items() for row in part]
    groups: dict[str, list[float]] = {"same": [], "class": [], "other": []}
    right = 0
    for i, (name, row) in enumerate(listed):
        others = [(other @ row, theirs) for j, (theirs, other) in enumerate(listed) if j != i]
        right += max(others)[1] == name
        for theirs, other in listed[:i]:
            kind = "same" if theirs == name else "class" if class_of[theirs] == class_of[name] else "other"
            groups[kind].append(other @ row)
    found = similarity(rows, class_of)
    assert found[:3] == pytest.approx([np.mean(part) for part in groups.values()])
    assert found.nearest_right == pytest.approx(right / 9) and found.photos == 9
    assert np.isnan(similarity({"can": rows["can"]}, {}).same_class)
