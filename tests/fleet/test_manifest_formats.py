import json

import pytest
from PIL import Image

from jaxbooth.data.subjects import load_subject
from jaxbooth.errors import DataError
from jaxbooth.fleet.manifest import read_manifest


def write_pictures(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (24, 24), (i, 90, 200)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    for name in ["rex", "tom"]:
        write_pictures(tmp_path / name)
    return tmp_path


def write(folder, text, name):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(file, **options):
    """The lines of the problems, without the heading."""
    with pytest.raises(DataError) as error:
        read_manifest(file, **options)
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]


def test_json_lines_are_subjects(photos):
    text = (
        '{"name": "rex", "images": "rex", "class_noun": "dog", "steps": 3, "learning_rate": 1e-4}\r\n\r\n'
        '{"name": "tom", "images": "tom", "class_noun": "c\\u2028at", "token": null}\r\n'
    )
    rex, tom = read_manifest(write(photos, b"\xef\xbb\xbf" + text.encode(), "subjects.jsonl")).entries
    assert (rex.overrides.steps, rex.overrides.learning_rate, rex.place) == (3, 1e-4, "subjects.jsonl:1")
    assert (tom.subject.token, tom.place) == (None, "subjects.jsonl:3")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"name": "rex", ', "2: is not JSON (Expecting property name"),
        ('{"name": "tom"} {}', "2: is not JSON (something follows the object in column 16)"),
        ('["tom"]', "2: a subject is an object"),
        ("[" * 100_000, "2: is not JSON ("),
        (
            '{"name": "tom", "images": "tom", "class_noun": "cat", "token": "a", "token": "b"}',
            "2: 'token' stands twice",
        ),
        ('{"name": "tom", "images": "tom", "class_noun": "cat", "learning_rate": NaN}', "a finite number is needed"),
        (
            '{"name": "tom", "images": "tom", "class_noun": "cat", "learning_rate": Infinity}',
            "a finite number is needed",
        ),
        ('{"name": "tom", "images": "tom", "class_noun": "cat", "learning_rate": 1e999}', "a finite number is needed"),
        ('{"name": "tom", "images": "tom", "class_noun": "cat", "steps": "7"}', "2: steps: a whole number is needed"),
        (
            '{"name": "tom", "images": "tom", "class_noun": "cat", "steps": ' + "9" * 5000 + "}",
            "2: is not JSON (Exceeds",
        ),
        ('{"name": "t\\ud800", "images": "tom", "class_noun": "cat"}', "2: name: text of whole characters is needed"),
        ('{"name": "tom", "images": "t\\u0000", "class_noun": "cat"}', "2: images: 't\\x00' cannot be a path"),
    ],
)
def test_a_bad_json_line_is_told_with_its_number(photos, line, said):
    good = '{"name": "rex", "images": "rex", "class_noun": "dog"}\n'
    lines = refusal(write(photos, good + line + "\n", "subjects.jsonl"))
    assert len(lines) == 1 and lines[0].startswith("subjects.jsonl:2: ") and said in lines[0]


def test_a_table_of_a_spreadsheet_is_subjects(photos):
    text = (
        "name,images,class_noun,token,captions,min_images,steps,seed,learning_rate\r\n"
        'rex,rex,"dog",ohwx,"a photo of {token}, a {class_noun}",2,300,7,1e-4\r\n'
        ",,,,,,,,\r\n"
        "tom,tom,cat,null,,,,,\r\n"
    )
    rex, tom = read_manifest(write(photos, b"\xef\xbb\xbf" + text.encode(), "subjects.csv")).entries
    assert rex.subject.captions == "a photo of {token}, a {class_noun}" and rex.subject.min_images == 2
    assert rex.overrides.model_dump() == {"steps": 300, "seed": 7, "learning_rate": 1e-4}
    assert (tom.subject.token, tom.subject.captions, tom.place) == (None, None, "subjects.csv:4")


def test_an_empty_cell_takes_the_default(photos):
    file = write(photos, "name,images,class_noun,token\nrex,rex,,\n", "subjects.csv")
    subject = read_manifest(file, defaults={"class_noun": "dog"}).entries[0].subject
    assert (subject.class_noun, subject.token) == ("dog", "sks")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name;images;class_noun\n", ["1: 'name;images", "1: the heading has one column"]),
        ("name,images,class_noun,name\nrex,rex,dog,x\n", ["1: column 'name' stands twice"]),
        ("name,images,class_noun,\nrex,rex,dog,x\ntom,tom,cat,\n", ["2: 'x' stands under no heading"]),
        ("name,images,class_noun\nrex,rex,dog,x\ntom,tom\n", ["2: 4 cells, the heading has 3", "3: 2 cells, the hea"]),
        ("name,images,class_noun,step\nrex,rex,dog,1\ntom,tom,cat,2\n", ["1: 'step' is not a field. Did you mean"]),
        ('name,images,class_noun\nrex,"r\ne\nx",dog\ntom,no,cat\n', ["2: images: ", "5: images: "]),
        ('name,images,class_noun\nrex,"rex"x,dog\n', ["2: is not CSV from here on"]),
        ('name,images,class_noun\nrex,"rex,dog\n', ["2: is not CSV from here on"]),
        (
            "name,images,class_noun,steps\nrex,rex,dog,ten\n",
            ["2: steps: a whole number is needed, found the text 'ten'"],
        ),
        ("name,images,class_noun,steps\nrex,rex,dog,1_0\n", ["2: steps: a whole number is needed"]),
        ("name,images,class_noun,steps\nrex,rex,dog,1.5\n", ["2: steps: a whole number is needed"]),
        ("name,images,class_noun,learning_rate\nrex,rex,dog,nan\n", ["2: learning_rate: a number is needed"]),
        ("name,images,class_noun,learning_rate\nrex,rex,dog,1e999\n", ["2: learning_rate: a finite number is needed"]),
        ("name,images,class_noun\n", [": there are no subjects in it"]),
        ("name,images\nrex,rex\n", ["2: class_noun is missing"]),
    ],
)
def test_a_bad_table_is_told_with_its_lines(photos, text, said):
    lines = refusal(write(photos, text, "subjects.csv"))
    assert len(lines) == len(said)
    for line, words in zip(lines, said, strict=True):
        assert line.startswith("subjects.csv") and words in line


CONCEPT = {"instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog", "instance_data_dir": "rex"}


def concepts(folder, *changes):
    text = json.dumps([{**CONCEPT, **change} for change in changes], indent=4)
    return write(folder, text, "concepts_list.json")


def test_a_list_of_concepts_is_subjects_whose_captions_are_the_instance_prompts(photos):
    file = concepts(
        photos,
        {"class_data_dir": "../reg/dog", "num_class_images": 100},
        {"instance_prompt": "photo of {ukj}, the Siamese cat.", "class_prompt": "a picture of a Siamese cat",
         "instance_data_dir": "./tom/", "steps": 7},
    )  # fmt: skip
    manifest = read_manifest(file)
    rex, tom = manifest.entries
    assert (rex.subject.name, rex.subject.class_noun, rex.subject.token) == ("rex", "dog", "zwx")
    assert (tom.subject.name, tom.subject.class_noun, tom.overrides.steps) == ("tom", "Siamese cat", 7)
    assert load_subject(rex.subject).images[0].caption == "photo of zwx dog"
    assert load_subject(tom.subject).images[0].caption == "photo of {ukj}, the Siamese cat."
    assert [entry.place for entry in manifest.entries] == ["concepts_list.json:2", "concepts_list.json:9"]
    assert [note.split(" is not used")[0] for note in manifest.notes] == ["class_data_dir", "num_class_images"]


def test_an_instance_prompt_of_the_token_alone_is_a_caption_too(photos):
    subject = read_manifest(concepts(photos, {"instance_prompt": "zwx"})).entries[0].subject
    assert load_subject(subject).images[0].caption == "zwx"


def test_a_concepts_own_fields_win(photos):
    change = {"instance_prompt": "photo of john smith dog", "token": "john smith", "name": "js", "class_noun": "pup"}
    subject = read_manifest(concepts(photos, change)).entries[0].subject
    assert (subject.name, subject.token, subject.class_noun) == ("js", "john smith", "pup")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"instance_prompt": "photo of john smith dog"},
            "which word of 'photo of john smith dog' is the token? The cl",
        ),
        ({"instance_prompt": "a photo of the dog"}, "The class prompt has them all: add"),
        ({"instance_data_dir": "no"}, "instance_data_dir: "),
        ({"instance_data_dir": "../../../data/alvan"}, "instance_data_dir: '../../../data/alvan' leads out of"),
        ({"instance_data_dir": None}, "instance_data_dir: text is needed, found nothing"),
        ({"instance_prompt": None}, "instance_prompt is missing"),
        ({"class_prompt": 7}, "class_prompt: text is needed"),
        ({"class_prompt": None}, "class_prompt is missing"),
        ({"save_guidance": 7}, "'save_guidance' is not a field."),
        ({"class_data_dirr": "x"}, "'class_data_dirr' is not a field. Did you mean \"class_data_dir\"?"),
        ({"name": "a b"}, "name: 'a b' is no name (letters"),
    ],
)
def test_a_bad_concept_is_told_in_the_words_of_its_file(photos, change, said):
    lines = refusal(concepts(photos, change))
    assert len(lines) == 1 and lines[0].startswith(f"concepts_list.json:2: {said}") or said in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "concepts_list.json:1: a list of concepts is needed"),
        ("", "concepts_list.json:1: a list of concepts is needed"),
        ("[]", "concepts_list.json: there are no subjects in it"),
        ("[\n\n7]", "concepts_list.json:3: a concept is an object"),
        ("[\n7,]", "concepts_list.json:2: is not JSON from here on"),
        ("[\n7", "concepts_list.json:2: is not JSON from here on"),
        ("[7\n7]", "concepts_list.json:2: is not JSON from here on (a comma or the end"),
        ("[7] 8", "concepts_list.json:1: is not JSON from here on"),
        ("[" * 100_000, "concepts_list.json:1: is not JSON from here on"),
        ('[{"a": 1,\n"a": 2}]', "concepts_list.json:1: 'a' stands twice"),
    ],
)
def test_what_is_no_list_of_concepts_is_refused(photos, text, said):
    assert any(line.startswith(said) for line in refusal(write(photos, text, "concepts_list.json")))


def test_each_folder_is_a_subject(tmp_path):
    for name in ["tom", "rex", ".cache", "__MACOSX"]:
        write_pictures(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    write(tmp_path / "tom", "class_noun: cat\ntoken: ohwx\nlearning_rate: 1e-4\n", "subject.yaml")
    manifest = read_manifest(tmp_path, defaults={"class_noun": "dog"})
    rex, tom = manifest.entries
    assert (rex.subject.name, rex.subject.class_noun, rex.place) == ("rex", "dog", "rex")
    assert (tom.subject.name, tom.subject.class_noun, tom.subject.token) == ("tom", "cat", "ohwx")
    assert tom.overrides.learning_rate == 1e-4 and tom.subject.images == str((tmp_path / "tom").resolve())
    assert manifest.notes == (f"{tmp_path.name}: ignored: .cache, __MACOSX, notes.txt",)


def test_kohyas_folders_say_token_and_class_words(tmp_path):
    for name in ["20_sks dog", "10_ohwx golden  retriever"]:
        write_pictures(tmp_path / name)
    manifest = read_manifest(tmp_path, defaults={"class_noun": "thing", "token": "x"})
    retriever, dog = (entry.subject for entry in manifest.entries)
    assert (dog.name, dog.token, dog.class_noun) == ("sks_dog", "sks", "dog")
    assert (retriever.name, retriever.token) == ("ohwx_golden_retriever", "ohwx")
    assert load_subject(retriever).instance_prompt == "a ohwx golden retriever"
    assert manifest.notes == (
        "kohya's repeats are not used, every picture is drawn equally often: 10_ohwx golden  retriever, 20_sks dog",
    )


def test_a_folder_that_may_be_kohyas_or_a_plain_name_must_say_its_token(tmp_path):
    write_pictures(tmp_path / "001_alice")
    assert refusal(tmp_path, defaults={"class_noun": "person"})[0].startswith("001_alice: '001_alice' may be kohya's")
    entry = read_manifest(tmp_path, defaults={"class_noun": "person", "token": "sks"}).entries[0]
    assert (entry.subject.name, entry.subject.token) == ("001_alice", "sks")


def test_every_problem_of_the_folders_is_told_in_their_order(tmp_path):
    for name in ["a", "b", "c d", "e", "f"]:
        write_pictures(tmp_path / name)
    write(tmp_path / "b", "class_noun: cat\nimages: elsewhere\nsteps: -1\n", "subject.yaml")
    write(tmp_path / "c d", "class_noun: cat\n", "subject.yml")
    write(tmp_path / "e", "- cat\n", "subject.yaml")
    (tmp_path / "f" / "subject.yaml").symlink_to("/etc/passwd")
    said = [
        "a: class_noun is missing: write `class_noun: dog` into a/subject.yaml, or give a default for all",
        "b/subject.yaml:2: images: is this folder, leave it out",
        "b/subject.yaml:3: steps: must be 1 or more",
        "c d: name: 'c d' is no name (letters",
        "e: class_noun is missing",
        "e/subject.yaml:1: a mapping (key: value) is needed",
        "f: f/subject.yaml: is a link that leads out of",
        "f: class_noun is missing",
        "f/subject.yaml: is a link: put the file itself here",
    ]
    lines = refusal(tmp_path)
    assert len(lines) == len(said) and all(any(line.startswith(words) for line in lines) for words in said)
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "there are no subjects in it"),
        (["00.png"], "holds pictures but no folders"),
        (["subjects.csv"], "holds subjects.csv too: give that file to use it"),
    ],
)
def test_a_folder_that_is_no_manifest_is_refused(tmp_path, names, said):
    for name in names:
        (tmp_path / name).touch()
    assert said in refusal(tmp_path)[0]
