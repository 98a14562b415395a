import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from PIL import Image

from jaxbooth.data.subjects import load_subject
from jaxbooth.errors import DataError
from jaxbooth.fleet import manifest_yaml
from jaxbooth.fleet.manifest import read_manifest

REX = "- {name: rex, images: rex, class_noun: dog}\n"


def write_pictures(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (24, 24), (i, 90, 200)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder with the pictures of three subjects, where the manifests of these tests lie too."""
    for name in ["rex", "tom", "vase"]:
        write_pictures(tmp_path / name)
    return tmp_path


def write(folder, text, name="subjects.yaml"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(file, **options):
    """The lines of the problems, without the heading."""
    with pytest.raises(DataError) as error:
        read_manifest(file, **options)
    heading, *lines = str(error.value).splitlines()
    assert heading.startswith(f"{file}: ") and heading.endswith("nothing was started:")
    return [line.removeprefix("  - ") for line in lines]


def test_a_list_of_subjects_becomes_entries_with_overrides_and_places(photos):
    text = """
# two subjects
- name: rex
  images: rex
  class_noun: dog
  learning_rate: 1e-4
  steps: 300
- {name: Tom, images: ./tom/, class_noun: cat, token: null, captions: "photo of a {class_noun}", min_images: 2, seed: 7}
"""
    rex, tom = read_manifest(write(photos, text)).entries
    assert rex.subject.images == str((photos / "rex").resolve()) and rex.place == "subjects.yaml:3"
    assert (rex.subject.name, rex.subject.token, rex.subject.min_images) == ("rex", "sks", 3)
    assert rex.overrides.model_dump() == {"steps": 300, "seed": None, "learning_rate": 1e-4}
    assert tom.place == "subjects.yaml:8" and tom.overrides.seed == 7 and tom.subject.token is None
    assert {image.caption for image in load_subject(tom.subject).images} == {"photo of a cat"}


def test_every_problem_of_the_manifest_is_told_at_once_in_its_order(photos):
    text = """\
- name: rex
  images: rexx
  class_noun: dog
  colour: red
- name: tom
  images: tom
  steps: 0
- name: tom
  images: vase
  class_noun: 7
  learning_rat: 1e-4
- images: ../else
  name: a/b
  class_noun: vase
"""
    lines = refusal(write(photos, text))
    assert lines[0].startswith(f"subjects.yaml:2: images: {photos.resolve()}/rexx: no such folder. Did you mean")
    assert lines[1].startswith("subjects.yaml:4: 'colour' is not a field.") and "Fields: name, images," in lines[1]
    assert lines[2] == "subjects.yaml:5: class_noun is missing: give it here or as a default"
    assert lines[3] == "subjects.yaml:7: steps: must be 1 or more, found the number 0"
    assert lines[4] == "subjects.yaml:8: name: 'tom' is taken by subjects.yaml:5, give each subject a name of its own"
    assert lines[5] == "subjects.yaml:10: class_noun: text is needed, found the number 7 (put it in quotes)"
    assert lines[6].startswith("subjects.yaml:11: 'learning_rat' is not a field. Did you mean \"learning_rate\"?")
    assert lines[7].startswith("subjects.yaml:12: images: '../else' leads out of")
    assert lines[8].startswith("subjects.yaml:13: name: 'a/b' is no name (letters")
    assert len(lines) == 9


def test_thousands_of_problems_are_counted_and_not_all_printed(photos):
    lines = refusal(write(photos, "- {name: x, images: nowhere, class_noun: dog}\n" * 1000))
    assert len(lines) == 51 and lines[-1] == "... and 1,949 more."


def test_a_message_has_one_line_for_each_problem_whatever_names_hold(photos):
    lines = refusal(write(photos, '- {name: "a\\nb\\e[31m", images: "c\\nd\\e[31m", class_noun: dog}\n'))
    assert len(lines) == 2 and not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_line_ends_of_windows_are_accepted(photos, mark, line_end):
    text = f"- name: rex{line_end}  images: rex{line_end}  class_noun: dog{line_end}  step: 1{line_end}"
    assert refusal(write(photos, mark + text.encode()))[0].startswith("subjects.yaml:4: 'step' is not a field")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- &a {name: rex, images: rex, class_noun: dog}\n- *a\n", "2: aliases (*a) are not allowed"),
        ("- {name: &n rex, images: *n, class_noun: dog}", "1: aliases (*n) are not allowed"),
        ("- {name: rex, images: rex, class_noun: !!python/name:os.system ''}", "1: tags (tag:yaml.org,2002:python/n"),
        ("- !!map\n  name: rex\n  images: rex\n  class_noun: dog", "1: tags (tag:yaml.org,2002:map) are not allowed"),
        ("- name: rex\n  images: rex\n  class_noun: dog\n  name: tom", "4: 'name' stands twice, first in line 1"),
        (REX + "- name: tom\n  images: tom\n  class_noun: cat\n  learning_rate: .nan", "5: learning_rate: a finite"),
        ("- {name: rex, images: rex, class_noun: dog, learning_rate: -.inf}", "1: learning_rate: a finite number"),
        ("- {name: rex, images: rex, class_noun: dog, learning_rate: 1e999}", "1: learning_rate: a finite number"),
        ("- {name: rex, images: rex, class_noun: dog, learning_rate: nan}", "1: learning_rate: a number is needed"),
        ("- {name: rex, images: rex, class_noun: dog, learning_rate: 0}", "1: learning_rate: must be greater than 0"),
        ("- {name: rex, images: rex, class_noun: dog, steps: true}", "1: steps: a whole number is needed, found True"),
        ("- {name: rex, images: rex, class_noun: dog, steps: 10.5}", "1: steps: a whole number is needed"),
        ("- {name: rex, images: rex, class_noun: dog, steps: '10'}", "1: steps: a whole number is needed, found the t"),
        ("- {name: rex, images: rex, class_noun: dog, seed: -1}", "1: seed: must be 0 or more"),
        ("- {name: rex, images: [rex, tom], class_noun: dog}", "1: images: text is needed, found a list"),
        ("- {name: rex, images: {a: b}, class_noun: dog}", "1: images: text is needed, found a mapping"),
        ("- {name: rex, images: , class_noun: dog}", "1: images: text is needed, found nothing"),
        ("- {name: rex, images: '', class_noun: dog}", "1: images: is blank"),
        ("- {name: rex, images: rex, class_noun: ' '}", "1: class_noun: is blank"),
        ("- {name: no, images: rex, class_noun: dog}", "1: name: text is needed, found False (put it in quotes)"),
        ("- {name: 2024-13-45, images: rex, class_noun: dog}", "1: '2024-13-45' cannot be read"),
        (f"- {{name: 0x{'f' * 9000}, images: rex, class_noun: dog}}", "cannot be read (too long)"),
        ("- {name: rex, images: rex, class_noun: dog, captions: 'a {tokn} dog'}", "1: captions: {tokn} is not a pla"),
        ("- {name: rex, images: rex, class_noun: dog, captions: Sidecar}", "1: captions: 'Sidecar' is neither"),
        ("- {name: rex, images: rex, class_noun: dog, <<: {token: x}}", "1: '<<' is not a field"),
        ("- {name: rex, images: rex, class_noun: dog, ? [a] : b}", "1: a key must be a name"),
        ("- {name: index.html, images: rex, class_noun: dog}", "1: name: 'index.html' is a file of the fleet itself"),
        (REX + "- {name: Rex, images: tom, class_noun: cat}", "2: name: 'Rex' differs only in case from 'rex' of"),
        (REX + "- rex", "2: a subject is a mapping"),
        (REX + "---\n" + REX, "2: only one document"),
        (REX + "- {name: [", "is not YAML from here on"),
        (REX + "\tx", "2: is not YAML from here on"),
        (REX + "- {name: \0}", "2: '\\x00' is not allowed in YAML"),
        (REX.encode() + b"- {name: \xff}", "2: is not UTF-8 text"),
        ("- " + "[" * 1_000_000, "1: is not YAML from here on (nested too deeply)"),
        ("rex", "1: a list of subjects is needed"),
        ("dogs: []", "1: 'dogs' is not a part of a manifest. Parts: root, defaults, subjects."),
        ("subjects: rex", "1: subjects: a list is needed"),
        ("root: 7\nsubjects: []", "1: root: the path of a folder is needed"),
        ("root: nowhere\nsubjects: []", "1: root: "),
        ("defaults: 7\nsubjects: []", "1: defaults: a mapping"),
        ("defaults:\n  steps: 7\nsubjects: []", "2: defaults: 'steps' is not a field."),
        ("defaults:\n  min_images: x\nsubjects:\n" + REX, "2: min_images: a whole number is needed, found"),
        ("defaults:\n  class_noun: ''\nsubjects: [{name: rex, images: rex}]", "2: class_noun: is blank"),
        ("", ": there are no subjects in it"),
        ("# nothing\n", ": there are no subjects in it"),
        ("[]", ": there are no subjects in it"),
        ("subjects: []", ": there are no subjects in it"),
        ("defaults: {token: x}", ": there are no subjects in it"),
    ],
)  # fmt: skip
def test_yaml_that_means_something_else_than_it_seems_to_is_refused_with_its_line(photos, text, said):
    lines = refusal(write(photos, text))
    assert len(lines) == 1 and lines[0].startswith("subjects.yaml") and said in lines[0]


def test_no_code_of_a_tag_is_run_and_no_alias_is_unpacked(photos):
    bomb = "- &a0 [x]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    canary = f"- !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{photos}/canary']]\n"
    lines = refusal(write(photos, bomb + canary))
    assert len(lines) == 51 and not (photos / "canary").exists()


def test_the_yaml_reader_in_pure_python_says_the_same(photos, monkeypatch):
    text = (
        REX
        + "- {name: tom, images: tom, class_noun: &a cat, learning_rate: 1e-4, token: *a, steps: .nan, x: !!str y}\n"
    )
    told = refusal(write(photos, text))

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = manifest_yaml._Loader.yaml_implicit_resolvers

    monkeypatch.setattr(manifest_yaml, "_Loader", Loader)
    assert refusal(photos / "subjects.yaml") == told and len(told) == 4


def test_defaults_fill_what_a_subject_leaves_out_and_the_manifests_go_first(photos):
    text = """
defaults: {class_noun: dog, token: ohwx}
subjects:
  - {name: rex, images: rex}
  - {name: tom, images: tom, class_noun: cat, token: null}
"""
    outside = {"class_noun": "thing", "captions": "a photo of {token} {class_noun}", "min_images": 2}
    rex, tom = (entry.subject for entry in read_manifest(write(photos, text), defaults=outside).entries)
    assert (rex.class_noun, rex.token, rex.captions, rex.min_images) == ("dog", "ohwx", outside["captions"], 2)
    assert (tom.class_noun, tom.token) == ("cat", None)


def test_broken_defaults_are_told_once_and_not_for_each_subject(photos):
    file = write(photos, "- {name: rex, images: rex}\n- {name: tom, images: tom}\n")
    lines = refusal(file, defaults={"class_noun": "", "steps": 3})
    assert [line.split(":")[0] for line in lines] == ["defaults", "defaults"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("subjects.toml", "x", "subjects.toml: is of no known format. A manifest is subjects.yaml,"),
        ("subjects", "x", "subjects: is of no known format"),
        ("missing.yaml", None, "missing.yaml: there is no such file or folder. A manifest is"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_formats(tmp_path, name, text, said):
    if text is not None:
        write(tmp_path, text, name)
    assert refusal(tmp_path / name)[0].startswith(said)


def test_a_manifest_that_is_too_large_or_no_regular_file_is_refused(photos):
    os.mkfifo(photos / "pipe.yaml")
    assert refusal(photos / "pipe.yaml") == ["pipe.yaml: is not a regular file"]
    with (photos / "subjects.yaml").open("wb") as file:
        file.truncate(257 * 2**20)  # sparse
    assert "is larger than 268,435,456 bytes" in refusal(photos / "subjects.yaml")[0]


def test_two_subjects_of_one_folder_are_noted_and_its_pictures_checked_once(photos):
    file = write(photos, REX + "- {name: rex2, images: ./rex, class_noun: puppy}\n")
    assert read_manifest(file).notes == (
        f"{(photos / 'rex').resolve()} is the folder of rex (subjects.yaml:1), rex2 (subjects.yaml:2)",
    )
    (photos / "rex" / "00.png").write_bytes(b"")
    assert refusal(file) == ["subjects.yaml:1: rex/00.png: the file is empty. Pictures may be JPEG, PNG, WebP or BMP"]


def test_two_thousand_subjects_are_read_and_checked_in_seconds(tmp_path):
    picture = (write_pictures(tmp_path / "one", 1) / "00.png").read_bytes()
    for number in range(2000):
        folder = tmp_path / f"subject-{number}"
        folder.mkdir()
        for i in range(5):
            (folder / f"{i}.png").write_bytes(picture)
    rows = [{"name": f"s{i}", "images": f"subject-{i}", "class_noun": "dog", "steps": 10} for i in range(2000)]
    file = write(tmp_path, yaml.dump(rows, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    start = time.perf_counter()
    entries = read_manifest(file).entries
    assert len(entries) == 2000 and entries[-1].place == "subjects.yaml:7997"
    assert time.perf_counter() - start < 20  # 1 s where it was written


def test_reading_a_manifest_needs_no_jax(photos):
    file = write(photos, json.dumps({"name": "rex", "images": "rex", "class_noun": "dog"}), "subjects.jsonl")
    code = (
        "import sys, pathlib; from jaxbooth.fleet.manifest import read_manifest; import jaxbooth.report.gallery; "
        f"read_manifest(pathlib.Path({str(file)!r})); sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
