from random import Random

import numpy as np
import pytest
from PIL import Image

from jaxbooth.errors import DataError
from jaxbooth.pocket import draw
from jaxbooth.pocket.scenes import NOUNS, draw_scene, training_sprites
from jaxbooth.pocket.sprites import Sprite


@pytest.fixture
def sprites():
    square = Image.new("RGBA", (96, 96), (30, 90, 200, 255))
    return training_sprites([Sprite("fxemoji", codepoint, square) for codepoint in NOUNS])


@pytest.fixture
def rows(sprites, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(draw, "ROWS_PER_FILE", 8)
    files = draw.draw_dataset(sprites, 20, 3, tmp_path / "scenes")
    assert [file.name for file in files] == [f"train-0000{i}.parquet" for i in range(3)]
    return datasets.load_dataset(str(tmp_path / "scenes"), split="train", cache_dir=str(tmp_path / "cache"))


def test_a_drawn_data_set_opens_as_pictures_with_captions(rows, sprites):
    assert rows.column_names == ["image", "text"] and len(rows) == 20
    scene, text = draw_scene(sprites, Random("3:13"))
    assert rows[13]["text"] == text
    assert np.array_equal(np.asarray(rows[13]["image"]), np.asarray(scene))


def test_a_longer_data_set_begins_with_the_shorter_one(sprites, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = [
        parquet.read_table(draw.draw_dataset(sprites, count, 0, tmp_path / str(count))[0]).to_pylist()
        for count in (3, 6)
    ]
    assert tables[1][:3] == tables[0]


def test_nothing_is_overwritten(sprites, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="nothing is overwritten"):
        draw.draw_dataset(sprites, 1, 0, tmp_path)


def test_a_missing_archive_ends_the_command_with_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        draw.main(["--sprites", str(tmp_path / "none.tar"), "--count", "1", "--out", str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert "make_sprites.py" in capsys.readouterr().err
