"""Model cards: for the hub, for readers, and with whatever users have typed."""

import re

import pytest
import yaml
from card_script import blocks
from trained_models import DIGEST, REX, TOM, trained

from jaxbooth.export.card import card
from jaxbooth.export.contents import Contents
from jaxbooth.export.formats import FORMATS, export
from jaxbooth.export.markdown import code, literal, plain
from jaxbooth.export.source import Base, Trained, licence_of
from jaxbooth.methods import CustomDiffusion, DreamBooth, LoRA, Perfusion, Pivotal, TextualInversion

QUERY = r"attn2\.to_q$"
ALL = [
    *((LoRA(rank=4, targets=QUERY), name) for name in ("peft-lora", "kohya-lora")),
    *((Pivotal(rank=4, targets=QUERY), name) for name in ("peft-lora", "kohya-lora")),
    *((TextualInversion(), name) for name in ("ti", "a1111-ti", "merged")),
    *((CustomDiffusion(), name) for name in ("custom-diffusion", "peft-lora", "kohya-lora")),
    (Perfusion(), "perfusion"),
    (DreamBooth(), "diffusers"),
]
CLIENTS = {
    "peft-lora": {"diffusers"},
    "kohya-lora": {"ComfyUI", "A1111, Forge", "kohya"},
    "ti": {"diffusers"},
    "a1111-ti": {"ComfyUI", "A1111, Forge", "kohya"},
    "custom-diffusion": {"diffusers"},
    "perfusion": {"jaxbooth"},
    "merged": {"diffusers", "kohya"},
    "diffusers": {"diffusers", "kohya"},
}
# Nothing of this may act: not in the front matter, not as HTML, not as the end of a block or of a string.
NASTY_TOKEN = '<script>`"\\|*_--{}'
NASTY_NOUN = "dog\n---\n```\nlicense: mit\n# big <b>"


def front_matter(text):
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("\n---\n")[0][4:])


@pytest.mark.parametrize(("method", "name"), ALL, ids=[f"{method.type}-{name}" for method, name in ALL])
def test_every_export_has_a_card_with_its_facts_and_its_clients(method, name, twin, tmp_path):
    folder = export(trained(twin("sd1"), method), name, tmp_path / "out")
    text = (folder / "README.md").read_text()
    for fact in ("`owner/tiny-diffusion`", DIGEST, "`<rex>`", "`dog`", "- steps: 123\n", f"`{method.type}`",
                 "adamw, learning rate 0.0001", "That of the base", FORMATS[name].what):  # fmt: skip
        assert fact in text, fact
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"README.md"}
    listed = set(re.findall(r"^- `([^`]+)`: ", text.split("\n## Files\n")[1].split("\n## ")[0], re.MULTILINE))
    assert {file.split("/")[0] for file in files} == {file.split("/")[0] for file in listed}
    assert CLIENTS[name] <= set(blocks(folder))


def test_front_matter_is_what_the_hub_expects(twin, tmp_path):
    text = (
        export(trained(twin("sdxl"), LoRA(rank=4, targets=QUERY)), "peft-lora", tmp_path / "a") / "README.md"
    ).read_text()
    assert front_matter(text) == {
        "base_model": "owner/tiny-diffusion",
        "instance_prompt": "a photo of a <rex> dog on the beach",
        "library_name": "diffusers",
        "license": "other",
        "license_name": "that-of-the-base",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "stable-diffusion-xl", "diffusers", "jaxbooth", "lora"],
    }


def test_licence_of_the_base_is_told_where_its_folder_states_it(twin, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\ntags:\n- x\n---\n# A model\n")
    assert licence_of(tmp_path) == "openrail++"
    source = trained(twin("sd1"), LoRA(rank=4, targets=QUERY), base=Base("owner/name", DIGEST, "c0ffee", "openrail++"))
    text = card(source, "x", Contents())
    assert front_matter(text)["license"] == "openrail++" and "license_name" not in front_matter(text)
    assert "`openrail++`, that of the base" in text and "commit `c0ffee`" in text
    for other in ("---\nlicense: other\n---\n", "# license: mit\n", "---\ntags: []\n---\nlicense: mit\n"):
        (tmp_path / "README.md").write_text(other)
        assert licence_of(tmp_path) is None
    assert licence_of(tmp_path / "nowhere") is None


def test_where_a_base_lies_on_disk_is_not_told(twin, tmp_path):
    base = Base(str(tmp_path / "secret" / "my-base"), DIGEST)
    text = (
        export(trained(twin("sd1"), TextualInversion(), base=base), "ti", tmp_path / "out") / "README.md"
    ).read_text()
    assert "secret" not in text and 'base = "path/to/my-base"' in text and "base_model" not in front_matter(text)


def test_nothing_that_users_type_is_markup_or_code(twin, tmp_path):
    subject = REX.model_copy(update={"token": NASTY_TOKEN, "class_noun": NASTY_NOUN})
    lora, perfusion = LoRA(rank=4, targets=QUERY), Perfusion()
    for method, name in ((lora, "peft-lora"), (lora, "kohya-lora"), (perfusion, "perfusion"), (perfusion, "merged")):
        source = trained(twin("sd1"), method, (subject, TOM), base=Base(str(tmp_path / "<i>*b*"), DIGEST))
        folder = export(source, name, tmp_path / name)
        text = (folder / "README.md").read_text()
        front = front_matter(text)
        assert front["license"] == "other" and NASTY_TOKEN in front["instance_prompt"]
        body = text.split("\n---\n", 1)[1]
        assert len(re.findall("^```", body, re.MULTILINE)) % 2 == 0
        assert not re.search(r"^(---|license|# big)", body, re.MULTILINE)
        outside = re.sub(r"^```.*?^```", "", body, flags=re.MULTILINE | re.DOTALL)
        outside = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", outside)
        assert not re.search(r"(?<!\\)<", outside)
        assert "\n# my-rex+tom: " in outside and r"\<i\>\*b\*" in outside
        for python in re.findall(r"```python\n(.*?)\n```", body, re.DOTALL):
            compile(python, "card", "exec")


@pytest.mark.parametrize("text", ["<rex>", "a`b", "``", "`", " x ", "", "a\nb", "*x*"])
def test_code_spans_show_what_they_are_given(text):
    span = code(text)
    fence = re.match("`+", span)[0]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence) and fence not in re.findall("`+", inside)
    shown = inside[1:-1] if inside.startswith(" ") and inside.endswith(" ") and inside.strip() else inside
    assert shown.strip() == text.replace("\n", " ").strip()


@pytest.mark.parametrize("text", ['"', "\\", "a\nb", "'\"'", "\u72ac", '"""', "\x00"])
def test_literals_are_python_for_the_same_string(text):
    assert eval(literal(text)) == text and "\n" not in literal(text)


def test_plain_text_has_no_markup():
    assert plain("my-rex a_b <i> *c*\n# d") == r"my-rex a\_b \<i\> \*c\* \# d"


def test_a_base_as_it_is_has_a_card_too(twin, tmp_path):
    source = Trained(None, twin("sd1"), Base("pocket", DIGEST, licence="apache-2.0"))
    text = (export(source, "diffusers", tmp_path / "out") / "README.md").read_text()
    assert front_matter(text)["license"] == "apache-2.0" and "# pocket" in text
    assert "steps" not in text and "token" not in text.split("## Files")[0]
