import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jaxbooth.data import subjects
from jaxbooth.data.captions import CaptionedImage
from jaxbooth.data.subjects import SubjectConfig, load_subject, load_subjects
from jaxbooth.errors import DataError


def write_pictures(folder, count=4, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}{suffix}")
    return folder


@pytest.fixture
def dog(tmp_path):
    return write_pictures(tmp_path / "dog")


def config(folder, **fields):
    return SubjectConfig(**{"name": "dog", "class_noun": "dog", "images": str(folder), **fields})


def test_subject_has_its_pictures_in_order_under_the_papers_prompt(dog):
    subject = load_subject(config(dog))
    assert [item.key for item in subject.images] == ["00.png", "01.png", "02.png", "03.png"]
    assert {item.caption for item in subject.images} == {"a sks dog"} == {subject.instance_prompt}
    assert subject.class_prompt == "a dog" and subject.notes == () and subject.ignored == ()
    assert subject.images[0].load().size == (24, 24)


def test_relative_folder_starts_from_the_root(dog):
    assert len(load_subject(config("dog"), root=dog.parent).images) == 4


def test_every_field_of_the_config_is_described():
    assert all(field.description for field in SubjectConfig.model_fields.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../x"},
        {"name": ""},
        {"class_noun": " "},
        {"token": ""},
        {"captions": "Sidecar"},
        {"captions": "a {tokn} dog"},
        {"captions": ""},
        {"min_images": 0},
        {"colour": "red"},
    ],
)
def test_config_that_cannot_be_meant_is_refused(fields):
    with pytest.raises(ValidationError):
        config("dog", **fields)


def test_template_and_missing_token(dog):
    assert load_subject(config(dog, captions="photo of {token} {class_noun}")).images[0].caption == "photo of sks dog"
    assert load_subject(config(dog, token=None)).images[0].caption == "a dog"
    literal = load_subject(config(dog, captions="a photo of ohwx dog", token="ohwx"))
    assert literal.images[0].caption == "a photo of ohwx dog" and not literal.notes


def test_junk_is_ignored_and_told(dog):
    for name in [".DS_Store", "Thumbs.db", "notes.txt"]:
        (dog / name).write_text("junk")
    (dog / "old").mkdir()
    subject = load_subject(config(dog))
    assert subject.ignored == (".DS_Store", "Thumbs.db", "notes.txt", "old/")
    assert subject.notes == ("ignored: .DS_Store, Thumbs.db, notes.txt, old/",)


def test_too_few_pictures_is_an_error_unless_allowed(tmp_path):
    folder = write_pictures(tmp_path / "dog", count=2)
    (folder / "notes.txt").write_text("junk")
    with pytest.raises(DataError, match=r"2 images found, 3 or more are needed .* Ignored: notes.txt"):
        load_subject(config(folder))
    assert len(load_subject(config(folder, min_images=2)).images) == 2


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="0 images found"):
        load_subject(config(tmp_path))


def test_missing_folder_suggests_its_sibling(dog):
    with pytest.raises(DataError, match=r'no such folder. Did you mean ".*/dog"'):
        load_subject(config(dog.parent / "dgo"))
    with pytest.raises(DataError, match=r'no such folder. Did you mean ".*/dog"'):
        load_subject(config(dog.parent / "dogs" / "train"))
    with pytest.raises(DataError, match="this is a file"):
        load_subject(config(dog / "00.png"))


def test_all_damaged_pictures_of_all_subjects_are_reported_at_once(dog, tmp_path):
    (dog / "00.png").write_bytes(b"")
    (dog / "01.png").write_bytes((dog / "01.png").read_bytes()[:200])
    cat = write_pictures(tmp_path / "cat", count=1)
    with pytest.raises(DataError) as error:
        load_subjects([config(dog), config(cat, name="cat"), config(tmp_path / "no", name="no"), config(dog)])
    message = str(error.value)
    for part in ["00.png: the file is empty", "01.png: cannot be decoded", "1 images found", "no such folder"]:
        assert part in message
    assert 'Two subjects are called "dog"' in message and "02.png" not in message


def test_several_good_subjects_load(dog, tmp_path):
    cat = write_pictures(tmp_path / "cat")
    assert [subject.name for subject in load_subjects([config(dog), config(cat, name="cat")])] == ["dog", "cat"]


def test_copies_are_counted_and_named(dog):
    Image.open(dog / "01.png").save(dog / "copy.bmp")  # other bytes, same pixels
    (dog / "zero.png").write_bytes((dog / "00.png").read_bytes())
    notes = load_subject(config(dog)).notes
    assert notes == ("2 of 6 images are copies of another: copy.bmp = 01.png, zero.png = 00.png",)


# --- captions beside the pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_sidecar_captions_are_read_and_filled(dog, suffix):
    for i in range(4):
        (dog / f"{i:02d}{suffix}").write_bytes(b"\xef\xbb\xbfa {token} {class_noun},\r\n view {%d} \n" % i)
    subject = load_subject(config(dog, captions="sidecar"))
    assert [item.caption for item in subject.images] == [f"a sks dog, view {{{i}}}" for i in range(4)]
    assert subject.notes == ("4 of 4 images captioned",) and subject.ignored == ()


def test_metadata_lines_are_captions(dog):
    rows = [{"file_name": f"{i:02d}.png", "text": f"sks number {i}", "extra": 1} for i in (3, 1, 0, 2)]
    (dog / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    subject = load_subject(config(dog, captions="sidecar"))
    assert [item.caption for item in subject.images] == [f"sks number {i}" for i in range(4)]


def test_partial_sidecars_are_an_error(dog):
    (dog / "00.txt").write_text("a sks dog")
    with pytest.raises(DataError, match=r"1 of 4 images are captioned: 01.png, 02.png, 03.png have no caption"):
        load_subject(config(dog, captions="sidecar"))


def test_no_sidecars_are_an_error(dog):
    with pytest.raises(DataError, match="0 of 4 images are captioned"):
        load_subject(config(dog, captions="sidecar"))


def test_unused_sidecars_are_told(dog):
    (dog / "00.txt").write_text("a sks dog")
    notes = load_subject(config(dog)).notes
    assert notes[0] == "1 caption files are not used (00.txt): set captions: sidecar to use them"


def test_captions_without_the_token_are_told(dog):
    for i in range(4):
        (dog / f"{i:02d}.txt").write_text("a brown dog" if i else "a sks dog")
    assert "3 of 4 captions do not contain the token 'sks'" in load_subject(config(dog, captions="sidecar")).notes


def test_every_fault_of_captions_is_reported(dog):
    (dog / "00.txt").write_text("  \n")
    (dog / "01.txt").write_bytes(b"\xff\xfe\x00")
    (dog / "02.txt").write_text("one")
    (dog / "02.caption").write_text("two")
    (dog / "metadata.jsonl").write_text(
        'not json\n[1]\n{"file_name": "../03.png", "text": "x"}\n{"file_name": "03.png", "caption": "x"}\n'
    )
    with pytest.raises(DataError) as error:
        load_subject(config(dog, captions="sidecar"))
    for part in [
        "00.txt: is empty",
        "01.txt: is not UTF-8",
        "02.png: has both 02.txt and 02.caption",
        "metadata.jsonl:1: not JSON",
        "metadata.jsonl:2: not a JSON object",
        "metadata.jsonl:3: '../03.png' is not a picture",
        'metadata.jsonl:4: needs a "text"',
        "keys found: file_name, caption",
        "and in 00.txt",
    ]:
        assert part in str(error.value)


# --- digests and the Hub ---------------------------------------------------------------------------------------------


def test_digest_follows_content_and_not_names(dog, tmp_path):
    first, same = load_subject(config(dog)), load_subject(config(write_pictures(tmp_path / "other"), name="other"))
    assert first.digest == same.digest and first.images_digest == same.images_digest
    worded = load_subject(config(dog, captions="the {token} {class_noun}"))
    assert worded.digest != first.digest and worded.images_digest == first.images_digest
    assert load_subject(config(write_pictures(tmp_path / "more", count=5))).images_digest != first.images_digest


def test_hub_data_set_is_opened_with_its_revision(dog, monkeypatch):
    opened = []

    def rows(dataset, caption=None):
        opened.append(dataset)
        items = [CaptionedImage(path, caption or "a {token} toy", path.name) for path in sorted(dog.iterdir())]
        return type("Rows", (list,), {"notes": ("4 of 4 images captioned",)})(items)

    monkeypatch.setattr(subjects, "load_captioned", rows)
    monkeypatch.setattr(subjects, "load_uncaptioned", rows)
    templated = load_subject(config("hf:diffusers/dog-example@abc123"))
    worded = load_subject(config("hf:diffusers/dog-example", captions="sidecar"))
    assert (opened[0].path, opened[0].revision, opened[1].revision) == ("diffusers/dog-example", "abc123", None)
    assert templated.images[0].caption == "a sks dog" and worded.images[0].caption == "a sks toy"
    assert worded.notes == ("4 of 4 images captioned",)
