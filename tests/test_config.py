import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.config import Config, dump, load, validate
from jaxbooth.errors import ConfigError
from jaxbooth.methods import DreamBooth, Finetune
from jaxbooth.strict_yaml import parse_value, read_yaml

CONFIGS = Path(__file__).parents[1] / "configs"
MINIMAL = """
base: {path: pocket}
method: {type: dreambooth}
subjects:
  - {name: rex, images: photos, class_noun: dog}
"""


@pytest.fixture
def file(tmp_path):
    """Writes a configuration."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def minimal(file):
    return file(MINIMAL)


def message(path, *overrides):
    with pytest.raises(ConfigError) as error:
        load(path, overrides)
    return str(error.value)


# ---- what is shipped


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_load_and_survive_a_round_trip(path, file):
    config = load(path)
    assert config.run_dir == f"runs/{path.stem}"
    assert load(file(dump(config))) == config


def test_shipped_configs_have_the_promised_names():
    for name in ("demo.yaml", "pocket/dreambooth.yaml", "dreambooth/sd15.yaml", "dreambooth/sd21.yaml"):
        assert (CONFIGS / name).is_file()


def test_keys_that_others_rely_on_are_there(minimal):
    overrides = """
    base.path=pocket base.dtype=bfloat16 base.revision=main method.type=dreambooth subjects.0.name=a
    subjects.0.images=b subjects.0.class_noun=c subjects.0.token=d subjects.0.captions=sidecar prior.num_images=1
    prior.loss_weight=0 optimizer.type=adamw optimizer.learning_rate=1 train.steps=2 train.batch_size=3 train.seed=4
    checkpoint.save_every_steps=5 mesh.subject=1 mesh.data=2 mesh.fsdp=4 run_dir=here
    """
    config = load(minimal, overrides.split())
    assert (config.subjects[0].name, config.subjects[0].images, config.train.seed) == ("a", "b", 4)
    assert config.mesh.sizes(8) == (1, 2, 4) and config.run_dir == "here"


# ---- unknown and missing names


@pytest.mark.parametrize(
    ("override", "name", "near"),
    [
        ("trian.steps=3", "trian", "train"),
        ("optimizer.learning_rat=1e-4", "optimizer.learning_rat", "learning_rate"),
        ("base.pth=x", "base.pth", "path"),
        ("subjects.0.class_nun=cat", "subjects.0.class_nun", "class_noun"),
        ("subjects.0.img=x", "subjects.0.img", "images"),
        ("method.train_text_encoder_2=true", "method.train_text_encoder_2", "train_text_encoder"),
        ("mesh.fdsp=8", "mesh.fdsp", "fsdp"),
        ("checkpoint.save_steps=8", "checkpoint.save_steps", "save_every_steps"),
        ("prior.num_image=8", "prior.num_image", "num_images"),
        ("data.random_flips=true", "data.random_flips", "random_flip"),
        ("sample.prompt=x", "sample.prompt", "prompts"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_valid_one(minimal, override, name, near):
    text = message(minimal, override)
    assert f"{name} is not a field of" in text and f'Did you mean "{near}"?' in text


def test_unknown_key_that_is_near_to_nothing_gets_the_list(minimal):
    text = message(minimal, "train.zzz=3")
    assert "train.zzz is not a field of Train." in text and "Did you mean" not in text and "batch_size" in text


def test_unknown_method_is_named_with_the_nearest_one(minimal):
    assert 'Did you mean "dreambooth"?' in message(minimal, "method.type=dreamboth")
    assert "finetune" in message(minimal, "method.type=3")
    assert "method.type is missing" in message(minimal, "method={}")


def test_missing_values_are_named(file):
    assert "base is missing" in message(file("method: {type: dreambooth}"))
    assert "base.path is missing" in message(file(MINIMAL.replace("path: pocket", "dtype: float32")))
    text = message(file(MINIMAL.replace("name: rex, images: photos, ", "")))
    assert "subjects.0.name is missing" in text and "subjects.0.images is missing" in text


def test_all_problems_come_at_once(file):
    text = message(
        file("""
        base: {path: pocket, dtype: float16}
        method: {type: dreambooth}
        subjects:
          - {name: rex, images: photos}
          - {name: "../up", images: photos, class_noun: dog, captions: "a {tokn} dog"}
        train: {steps: 0, batch_size: many}
        optimiser: {learning_rate: 1e-4}
        """)
    )
    for part in (
        "base.dtype", "subjects.0.class_noun is missing", "subjects.1.name", "{tokn}", 'Did you mean "token"',
        "train.steps", "train.batch_size", 'Did you mean "optimizer"?',
    ):  # fmt: skip
        assert part in text, text
    assert "config.yaml cannot be used" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("subjects={}", "subjects: a list is needed"),
        ("train=3", "train: a mapping (key: value) is needed"),
        ("method=dreambooth", "method: a mapping (key: value) is needed"),
        ("train.steps=x", "train.steps: "),
        ("optimizer.learning_rate=-1", "greater than 0 (given: -1)"),
        ("train.seed=1e30", "train.seed"),
        ("sample.seed=9223372036854775808", "sample.seed"),
        ("run_dir=3", "run_dir: input should be a valid string (given: 3)"),
    ],
)
def test_wrong_kind_of_value_is_said_in_the_words_of_the_file(minimal, override, expected):
    assert expected in message(minimal, override)


def test_parts_must_fit_each_other(minimal):
    assert "needs subjects" in message(minimal, "subjects=[]")
    assert "dataset is for finetune" in message(minimal, "dataset.path=x")
    text = message(minimal, "method.type=finetune", "optimizer.lr_warmup_steps=800")
    assert "needs dataset" in text and "remove subjects" in text and "lr_warmup_steps 800" in text
    twice = "subjects=[{name: a, images: x, class_noun: c}, {name: a, images: y, class_noun: c}]"
    assert "two subjects are named a" in message(minimal, twice)


def test_method_is_chosen_by_its_type(minimal):
    config = load(minimal, ["method.train_text_encoder=true"])
    assert config.method == DreamBooth(train_text_encoder=True)
    config = load(minimal, ["method.type=finetune", "subjects=[]", "dataset.path=x"])
    assert config.method == Finetune() and config.dataset.path == "x"


def test_configuration_cannot_be_changed_and_is_hashable(minimal):
    config = load(minimal)
    with pytest.raises(ValueError):
        config.train.steps = 3
    assert hash(config) == hash(load(minimal))


# ---- overrides


def test_overrides_reach_nested_values_lists_and_absent_sections(minimal):
    config = load(
        minimal,
        ["subjects.0.images=photos/my dog", "train.steps=7", "optimizer.learning_rate=1e-4", "sample.prompts=[a, b]"],
    )
    assert config.subjects[0].images == "photos/my dog" and config.subjects[0].name == "rex"
    assert config.train.steps == 7 and config.optimizer.learning_rate == 1e-4
    assert config.sample.prompts == ("a", "b")
    assert load(minimal, ["sample.prompts=[a, b]", "sample.prompts.1=c"]).sample.prompts == ("a", "c")
    assert load(minimal, ["train=null", "train.steps=9"]).train.steps == 9


def test_later_override_wins_and_values_may_hold_equals_signs(minimal):
    config = load(minimal, ["train.steps=1", "train.steps=2", "run_dir=runs/a=b"])
    assert config.train.steps == 2 and config.run_dir == "runs/a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("", "KEY=VALUE"),
        ("subjects.1.name=x", "has 1 items"),
        ("subjects.first.name=x", "no first"),
        ("subjects.-1.name=x", "no -1"),
        ("subjects.².name=x", "no ²"),
        ("subjects.5=x", "no 5"),
        ("base.path.deeper=x", "base.path is a single value"),
        ("base.path.deeper.still=x", "nothing below deeper"),
        ("train.steps=[1", "cannot be read as a value"),
        ("train.steps=*a", "aliases"),
        ("train.steps=.inf", "no number"),
        ("optimizer.learning_rate=.nan", "no number"),
    ],
)
def test_bad_overrides_say_what_is_wrong(minimal, override, expected):
    assert expected in message(minimal, override)


def test_override_of_an_item_of_a_missing_list_says_that_a_list_is_needed(file):
    text = message(file("base: {path: pocket}\nmethod: {type: dreambooth}"), "subjects.0.images=photos")
    assert "subjects: a list is needed" in text


# ---- YAML


def test_exponents_without_dot_are_numbers(file):
    config = load(file(MINIMAL + "optimizer: {learning_rate: 1e-4, epsilon: 1E-6, weight_decay: 2.e-2}"))
    assert (config.optimizer.learning_rate, config.optimizer.epsilon, config.optimizer.weight_decay) == (
        1e-4,
        1e-6,
        0.02,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {steps: 1}\ntrain: {steps: 2}\n", ':7: "train" stands twice'),
        ("train: {steps: 1, steps: 2}\n", ':6: "steps" stands twice'),
        ("data: &anchor {}\nprior: *anchor\n", ":7: aliases"),
        ("train: !!python/object/apply:os.system [ls]\n", ":6: tags"),
        ("train: !!binary aGVsbG8=\n", ":6: tags"),
        ("train: !mine {}\n", ":6: tags"),
        ("train: {<<: {steps: 3}}\n", ":6:"),
        ("? [a, b]\n: c\n", ":6: a key must be a name"),
        ("3: c\n", "3: keys should be strings"),
        ("train: {steps: 1\n", ":7:"),
        ("train:\n\t- 3\n", ":7:"),
        ("optimizer: {learning_rate: .inf}\n", ":6: .inf is no number"),
        ("--- \n{}\n", ":6:"),
    ],
)
def test_yaml_s_traps_are_refused_with_their_line(file, text, expected):
    path = file(MINIMAL + text)
    found = message(path)
    assert expected in found and str(path) in found


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "list"), ("", "NoneType"), ("just text", "str"), ("3", "int")])
def test_file_that_is_no_mapping_is_refused(file, text, kind):
    assert f"found {kind}" in message(file(text))


def test_byte_order_mark_is_skipped_and_other_bytes_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(path).subjects[0].name == "rex"
    path.write_bytes(b"\xff\xfe" + MINIMAL.encode("utf-16-le"))
    assert "utf-8" in message(path)
    path.write_bytes(b"a: b\x00c")
    assert "config.yaml" in message(path)


def test_missing_and_huge_files_are_refused(tmp_path):
    assert "no such configuration file" in message(tmp_path / "nothing.yaml")
    assert "no such configuration file" in message(tmp_path)
    (tmp_path / "big.yaml").write_text("#" * 1_000_001)
    assert "larger than" in message(tmp_path / "big.yaml")


# ---- round trip

TRAPS = st.sampled_from(
    ["1e-4", "1e5", ".5e3", "1_000", "0x1f", "010", "12:30", "yes", "No", "null", "~", "", "2024-01-01", ".inf", ".nan"]
    + [
        "=",
        "<<",
        "- a",
        "# a",
        "a: b",
        "é 日本 🐕",
        "a\nb",
        " a ",
        "'",
        '"',
        "{token}",
        "*a",
        "&a",
        "!!x",
        "\ufeff",
    ]
)
TEXTS = TRAPS | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@settings(max_examples=40, deadline=None)
@given(TEXTS.filter(bool), TEXTS, st.lists(TEXTS, max_size=3), st.floats(1e-12, 1e3), st.integers(0, 2**63 - 1))
def test_dumped_configuration_loads_to_an_equal_one(tmp_path_factory, run_dir, negative, prompts, rate, seed):
    config = Config.model_validate(
        {
            "base": {"path": "pocket"},
            "method": {"type": "dreambooth", "train_text_encoder": True},
            "subjects": [{"name": "1e5", "images": run_dir, "class_noun": "0x1f", "token": "1e4"}],
            "sample": {"prompts": prompts, "negative_prompt": negative},
            "optimizer": {"learning_rate": rate},
            "train": {"seed": seed},
            "run_dir": run_dir,
        }
    )
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert load(file) == config


def test_values_of_the_command_line_are_read_as_in_a_file():
    for text, value in {"1e-4": 1e-4, "3": 3, "true": True, "null": None, "[a, 1]": ["a", 1], "a b": "a b"}.items():
        assert parse_value(text) == value


def test_default_run_folder_is_named_after_the_file(tmp_path):
    (tmp_path / "my.experiment.yaml").write_text(MINIMAL)
    assert load(tmp_path / "my.experiment.yaml").run_dir == "runs/my.experiment"
    assert validate(yaml.safe_load(MINIMAL), "elsewhere/rex.yaml").run_dir == "runs/rex"


# ---- for editors


def test_schema_names_and_describes_every_key():
    schema = Config.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False and set(schema["required"]) == {"base", "method"}
    undescribed = [
        f"{name}.{key}"
        for name, part in schema["$defs"].items()
        for key, value in part["properties"].items()
        if "description" not in value and key != "type"
    ]
    assert undescribed == []


def test_read_yaml_gives_plain_values(file):
    assert read_yaml(file("a: [1, 2.5, x]\nb: {c: null}")) == {"a": [1, 2.5, "x"], "b": {"c": None}}
