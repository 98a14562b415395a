import io
import json

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from jaxbooth.data.datasets import DatasetConfig, load_captioned, load_uncaptioned  # noqa: E402
from jaxbooth.errors import DataError  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def picture(i):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8))


def write_pictures(folder, names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    return folder


def write_metadata(folder, names, key="text"):
    rows = [{"file_name": name, key: f"caption of {name}"} for name in names]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


NAMES = ["a.png", "b_test.png", "sub/c.png", "validation.png"]  # names that imagefolder would take for splits


@pytest.fixture
def folder(tmp_path):
    return write_metadata(write_pictures(tmp_path / "toys [1]", NAMES), NAMES)


def load(path, **fields):
    return load_captioned(DatasetConfig(path=str(path), **fields))


def test_imagefolder_gives_every_picture_with_its_caption(folder):
    (folder / ".DS_Store").write_text("junk")
    (folder / "readme.md").write_text("junk")
    toys = load(folder)
    assert {item.key: item.caption for item in toys} == {name: f"caption of {name}" for name in NAMES}
    assert toys.notes == ("4 of 4 images captioned",)
    item = next(item for item in toys if item.key == "sub/c.png")
    np.testing.assert_array_equal(item.load(), picture(2))


def test_pictures_stay_encoded_until_asked_for(folder):
    (folder / "a.png").write_bytes(b"")
    toys = load(folder)  # opening decodes nothing
    broken = next(item for item in toys if item.key == "a.png")
    with pytest.raises(DataError, match=r"a\.png: the file is empty"):
        broken.load()


def test_changed_captions_are_seen_at_the_next_load(folder):
    assert load(folder)[0].caption.startswith("caption")
    rows = [{"file_name": name, "text": "new"} for name in NAMES]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {item.caption for item in load(folder)} == {"new"}


def test_missing_caption_column_names_the_columns_there_are(tmp_path):
    folder = write_metadata(write_pictures(tmp_path, ["a.png", "b.png"]), ["a.png", "b.png"], key="prompt")
    with pytest.raises(DataError, match=r"no column 'text'; columns: image, prompt. Set caption_column"):
        load(folder)
    assert load(folder, caption_column="prompt")[0].caption == "caption of a.png"
    with pytest.raises(DataError, match=r"no column 'picture'; columns: image, prompt. Set image_column"):
        load(folder, image_column="picture")


def test_pictures_without_metadata_are_an_error(folder):
    write_pictures(folder, ["z1.png", "z2.png"])
    with pytest.raises(DataError, match=r"4 of 6 images are captioned: z1.png, z2.png have no metadata"):
        load(folder)


def test_metadata_without_pictures_is_an_error(folder):
    write_metadata(folder, [*NAMES, "gone.png", "sub/gone.png"])
    with pytest.raises(DataError, match=r"2 pictures of the metadata are not in the folder: gone.png, sub/gone.png"):
        load(folder)


def test_picture_may_have_several_rows(folder):
    write_metadata(folder, [*NAMES, "a.png"])
    assert [item.key for item in load(folder)].count("a.png") == 2


def test_metadata_row_without_file_name_is_an_error(folder):
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": None, "text": "lost"}) + "\n")
    with pytest.raises(DataError, match="1 rows of the metadata have no file_name"):
        load(folder)


def test_metadata_cannot_reach_out_of_the_folder(folder, tmp_path):
    write_pictures(tmp_path, ["outside.png"])
    for name in ["../outside.png", str(tmp_path / "outside.png")]:
        write_metadata(folder, [*NAMES, name])
        with pytest.raises(DataError, match=r"outside\.png"):
            load(folder)


def test_subfolder_of_the_splits_name_is_the_split(tmp_path):
    for split in ["train", "test"]:
        write_metadata(write_pictures(tmp_path / split, ["a.png", f"{split}.png"]), ["a.png", f"{split}.png"])
    assert {item.key for item in load(tmp_path)} == {"train/a.png", "train/train.png"}
    assert {item.key for item in load(tmp_path, split="test")} == {"test/a.png", "test/test.png"}
    with pytest.raises(DataError, match="no split 'validation'"):
        load(tmp_path, split="validation")


def test_caption_files_beside_pictures_are_read(tmp_path):
    folder = write_pictures(tmp_path, ["a.png", "b.png"])
    (folder / "a.txt").write_text("first\n")
    (folder / "b.txt").write_text("second\n")
    assert [(item.key, item.caption) for item in load(folder)] == [("a.png", "first"), ("b.png", "second")]
    (folder / "b.txt").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are captioned: b.png have no caption"):
        load(folder)


def test_folder_without_captions_says_how_to_write_them(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    with pytest.raises(DataError, match=r"no column 'text'; columns: image.*metadata.jsonl, or NAME.txt"):
        load(tmp_path)
    config = DatasetConfig(path=str(tmp_path))
    assert [item.caption for item in load_uncaptioned(config, "a toy")] == ["a toy"]


def test_limit_takes_the_first_pictures(folder):
    assert [item.key for item in load(folder, limit=2)] == [item.key for item in load(folder)][:2]
    assert len(load(folder, limit=99)) == 4


def write_parquet(file, captions):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(len(captions)):
        buffer = io.BytesIO()
        picture(i).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    datasets.Dataset.from_dict({"image": rows, "text": captions}).to_parquet(file)


def test_parquet_folder_is_read_lazily_through_the_gate(tmp_path):
    write_parquet(tmp_path / "data" / "train-0.parquet", ["one", "two"])
    write_parquet(tmp_path / "data" / "train-1.parquet", ["three"])
    toys = load(tmp_path)
    assert [(item.key, item.caption) for item in toys][:2] == [("train[0]", "one"), ("train[1]", "two")]
    np.testing.assert_array_equal(toys[1].load(), picture(1))
    assert toys[-1].caption == "three"
    with pytest.raises(IndexError):
        toys[3]


def test_several_captions_of_a_picture_give_the_first_and_empty_ones_are_counted(tmp_path):
    write_parquet(tmp_path / "x.parquet", [["three", "third"], ["", "x"]])
    toys = load(tmp_path)
    assert [item.caption for item in toys] == ["three", ""]
    assert toys.notes == ("2 of 2 images captioned", "1 captions are empty")


def test_rows_without_text_are_an_error(tmp_path):
    write_parquet(tmp_path / "x.parquet", ["one", None, "three", None])
    with pytest.raises(DataError, match="holds no text in 2 of 4 rows: 1, 3"):
        load(tmp_path)


def test_column_that_holds_no_pictures_is_an_error(tmp_path):
    datasets.Dataset.from_dict({"image": [1, 2], "text": ["a", "b"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"column 'image' holds .*int64.*, not pictures"):
        load(tmp_path)


def test_digest_follows_the_pictures(tmp_path):
    one, two = write_pictures(tmp_path / "one", ["a.png"]), write_pictures(tmp_path / "two", ["b.png", "c.png"])
    digests = [load_uncaptioned(DatasetConfig(path=str(path)), "x").images_digest() for path in (one, two)]
    assert digests[0] != digests[1]
    assert load_uncaptioned(DatasetConfig(path=str(two), limit=1), "y").images_digest() == digests[0]


def test_many_small_pictures_are_opened_without_decoding_them(tmp_path):
    write_pictures(tmp_path, ["0.png"])
    data = (tmp_path / "0.png").read_bytes()
    rows = {"image": [{"bytes": data, "path": None}] * 20_000, "text": [f"caption {i}" for i in range(20_000)]}
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "many" / "x.parquet")
    toys = load(tmp_path / "many")
    assert len(toys) == 20_000 and toys[19_999].caption == "caption 19999" and toys[7].load().size == (20, 20)


# --- where the data set is -------------------------------------------------------------------------------------------


def test_missing_folder_suggests_its_sibling(tmp_path, monkeypatch):
    (tmp_path / "data" / "toys").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path in ["data/toyz", "./data/toyz", str(tmp_path / "data" / "toyz")]:
        with pytest.raises(DataError, match=r'no such folder. Did you mean ".*/data/toys"'):
            load(path)


def test_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        load(tmp_path)
    write_pictures(tmp_path, ["sub/a.png"])
    with pytest.raises(DataError, match="in subfolders only"):
        load(tmp_path)


def test_revision_of_a_folder_is_an_error(folder):
    with pytest.raises(DataError, match="revision='main' is for data sets of the Hub"):
        load(folder, revision="main")


def test_hub_data_set_is_opened_by_id_and_nothing_more(monkeypatch):
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options))
        return datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": "x.png"}], "text": ["a toy"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (toy,) = load("nobody/toys", split="test", revision="abc")
    assert calls == [("nobody/toys", {"split": "test", "revision": "abc"})]
    assert toy.caption == "a toy" and toy.load().size == (20, 20) and toy.key == "test[0]"


def test_data_set_that_is_nowhere_is_a_data_error(monkeypatch):
    def load_dataset(path, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"nobody/toys: not a folder here, and it cannot be opened .*\(no route\)"):
        load("nobody/toys")


def test_every_field_of_the_config_is_described():
    assert all(field.description for field in DatasetConfig.model_fields.values())
