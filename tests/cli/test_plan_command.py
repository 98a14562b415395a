"""`jaxbooth plan`, from the command line to its lines and its JSON."""

import json
import shutil

import pytest
import yaml

from jaxbooth import plan as planning
from jaxbooth import plan_recipe
from jaxbooth.planning.plan import Memory, StepPlan

KEYS = {
    "topology", "devices", "fits", "arguments_bytes", "temporaries_bytes", "hbm_bytes", "flops", "bytes_accessed",
    "roofline_seconds", "bound_by", "collectives",
}  # fmt: skip
GIB = 2**30


@pytest.fixture
def run(tmp_path, small_base):
    """A run on a base of which nothing but config files is there, and without photos."""
    only_configs = shutil.ignore_patterns("*.safetensors", "tokenizer*", "vocab*", "merges*")
    shutil.copytree(small_base, tmp_path / "base", ignore=only_configs)
    subject = {"name": "toy", "images": "nowhere", "class_noun": "bear", "token": "sks"}
    values = {
        "base": {"path": str(tmp_path / "base")}, "method": {"type": "lora", "rank": 2}, "subjects": [subject],
        "train": {"steps": 600, "batch_size": 4},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "run.yaml"


@pytest.fixture
def compiler_says(monkeypatch):
    """Steps of up to `room` rows fit; 0.1 s at the least for 8 rows. Gives the numbers of rows that were asked for."""

    def say(room: int) -> list[int]:
        asked = []

        def plan(recipe, subjects, mesh, memory_bytes, compiler_options):
            asked.append(recipe.rows)
            facts = (subjects, mesh.size, dict(mesh.shape), "TPU v5 lite")
            needed = 16 * GIB * recipe.rows // max(room, 1)
            if recipe.rows > room:
                return StepPlan(*facts, False, needed, 16 * GIB, compile_seconds=1.0)
            work = {"flops": 1e12, "bytes_accessed": 200e9, "hbm_traffic_bytes": 819 * 10**8, "collectives": {}}
            memory = Memory(GIB, 0, 0, GIB, 0)
            return StepPlan(*facts, True, needed, 16 * GIB, memory, **work, compile_seconds=1.0)

        monkeypatch.setattr(planning, "plan_step", plan)
        return asked

    return say


def test_quick_needs_config_files_alone_and_its_json_says_all(run, call):
    code, out, err = call("plan", run, "--topology", "v5e:2x2", "--topology", "v4:2x2x1", "--quick", "--json")
    assert code == 0, err
    small, other = json.loads(out)
    assert small.keys() >= KEYS
    assert (small["topology"], small["devices"], small["chips"], small["method"]) == ("v5e:2x2", 4, 4, "quick")
    assert small["fits"] and small["arguments_bytes"] == sum(small["sizes_bytes"].values())
    assert small["hbm_bytes"] == int(15.75 * GIB) and other["hbm_bytes"] == int(30.75 * GIB)
    assert small["collectives"]["all-reduce"]["bytes"] >= small["sizes_bytes"]["adapter"]
    assert small["bound_by"] in ("flops", "bytes") and 0 < small["model_flops_utilisation"] < 1
    assert small["minutes"] == pytest.approx(small["roofline_seconds"] * 600 / 60) and small["minutes_by"] == "bound"
    assert small["chip_hours"] == pytest.approx(4 * small["minutes"] / 60)
    assert "roofline_seconds" in small["estimates"] and small["effort"] is None
    assert other["flops"] == small["flops"] and other["roofline_seconds"] < small["roofline_seconds"]


def test_gradients_that_are_summed_in_bfloat16_are_half_the_bytes(run, call):
    options = ("mesh.data=4", "--topology", "v5e:2x2", "--quick", "--json")
    found = [json.loads(call("plan", run, *more, *options)[1])[0] for more in ([], ["train.reduce_dtype=bfloat16"])]
    exact, rounded = (each["collectives"]["all-reduce"]["bytes"] for each in found)
    assert 0 <= rounded - exact / 2 <= 64  # the metrics stay


def test_its_lines_tell_estimates_bounds_and_measurements_apart(run, call):
    code, out, err = call("plan", run, "--topology", "v5e:2x2", "--quick", "--step-seconds", "0.5")
    assert code == 0, err
    for text in (
        "8 rows a step (4 instance + 4 prior), 600 steps",
        "v5e:2x2, 4 x TPU v5 lite, 15.75 GiB each (peaks: https://",
        "mesh: subject 1 x data 4 x fsdp 1",
        "answered by the trace alone (--quick): state sizes are exact",
        "verdict: fits, ",
        "read and written (an estimate)",
        "run: 5 minutes, 0.333 chip-hours (by the 0.5 s a step that you gave)",
        "not counted: loading",
    ):
        assert text in out, out
    assert "topology  fits" not in out  # a table is for several
    out = call("plan", run, "--topology", "v5e:2x2", "--topology", "v5e:2x4", "--quick")[1]
    assert "run: at least " in out and "(a bound, not a measurement)" in out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["topology", "v5e:2x2", "v5e:2x4"]


def test_what_does_not_fit_is_a_verdict_and_exit_code_1(run, call):
    code, out, err = call("plan", run, "--topology", "v5e:2x2", "--quick", "--memory-gib", "0.0001")
    assert code == 1, err
    assert "verdict: does not fit, 0.0" in out and "base.remat=layers" in out and "Traceback" not in err


def test_an_estimate_that_is_close_says_so(run, call):
    found = json.loads(call("plan", run, "--topology", "v5e:2x2", "--quick", "--json")[1])[0]
    room = (found["needed_bytes"] + 0.5 * found["temporaries_bytes"]) / GIB
    code, out, _ = call("plan", run, "--topology", "v5e:2x2", "--quick", "--memory-gib", room)
    assert code == 0 and "(an estimate, and too close to trust: ask the compiler)" in out


def test_the_largest_batch_is_looked_for_among_sizes_that_divide(run, call, compiler_says, caplog):
    caplog.set_level("INFO")
    asked = compiler_says(room=50)
    code, out, err = call("plan", run, "--largest")
    assert code == 0, err
    assert asked == [8, 16, 48, 64]  # two rows for each picture, eight devices
    assert "largest: train.batch_size=24: fits, 15.36 GiB of 16.00, at least 0.1 s, 60 images a second and chip" in out
    assert "(tried: 4 fits, 8 fits, 24 fits, 32 does not)" in out
    told = [line for line in caplog.messages if " GiB of 16.00" in line]  # each before the next is asked for
    verdicts = ("4: fits, 2.56", "8: fits, 5.12", "24: fits, 15.36", "32: does not fit, needs 20.48")
    assert told == [f"this machine: train.batch_size={verdict} GiB of 16.00" for verdict in verdicts]
    looked = caplog.messages.index("this machine: looking at train.batch_size=24")
    assert told[1] in caplog.messages[:looked]
    assert "answered by the compiler (full effort, 1 s)" in out
    assert "200 GB read and written, 81.9 GB through HBM" in out
    found = json.loads(call("plan", run, "--largest", "--json")[1])[0]
    assert found["hbm_traffic_bytes"] == found["tried_batch_sizes"]["24"]["hbm_traffic_bytes"] == 819 * 10**8
    compiler_says(room=0)
    code, out, _ = call("plan", run, "--largest", "--json", "--effort", "low")
    found = json.loads(out)[0]
    assert code == 1 and found["largest_batch_size"] is None and not found["tried_batch_sizes"]["4"]["fits"]
    assert found["effort"] == "low" and found["temporaries_bytes"] is None and found["arguments_bytes"] > 0


def test_all_problems_are_told_at_once(run, call):
    topologies = ("--topology", "v9:2x2", "--topology", "v5e-8", "--topology", "v5e:2x4")
    code, out, err = call("plan", run, "train.batch_size=3", *topologies, "--quick")
    assert code == 2 and out == "" and "Traceback" not in err
    for text in ('chip "v9" is none of', 'topology "v5e-8" cannot be used', "v5e:2x4: the batch does not fit the mesh"):
        assert text in err, err
    code, _, err = call("plan", run, "train.stepz=3", "--topology", "v9:2x2", "--quick")
    assert code == 2 and "stepz" in err and 'chip "v9"' in err
    code, _, err = call("plan", run, "mesh.fsdp=3", "data.resolution=61", "--topology", "v5e:2x4", "--quick")
    assert code == 2 and "there are 8 devices" in err and "multiples of" in err


def test_several_subjects_are_a_fleet_unless_they_share_a_model(run, call):
    second = 'subjects=[{name: a, images: x, class_noun: dog}, {name: b, images: y, class_noun: cat, token: "olis"}]'
    code, _, err = call("plan", run, second, "--topology", "v5e:2x2", "--quick")
    assert code == 2 and "jaxbooth fleet plan" in err
    assert call("plan", run, second, "train.joint=true", "--topology", "v5e:2x2", "--quick")[0] == 0


def test_of_a_hub_repository_config_files_alone_are_asked_for(run, call, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(repository, revision=None, allow_patterns=None):
        asked.append((repository, revision, allow_patterns))
        if repository == "who/knows":
            raise OSError("404")
        return str(tmp_path / "base")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    flags = ("--topology", "v5e:2x2", "--quick")
    assert call("plan", run, "base.path=some/base", "base.revision=abc", *flags)[0] == 0
    assert asked == [("some/base", "abc", plan_recipe.CONFIGS)]
    code, _, err = call("plan", run, "base.path=who/knows", *flags)
    assert code == 2 and "the hub gave no config files (404)" in err and "sd15, sd21, sdxl" in err


def test_without_the_compiler_the_extra_is_named(run, call, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    code, _, err = call("plan", run, "--topology", "v5e:2x2")
    assert code == 2 and "pip install 'jaxbooth[plan]'" in err
