"""`jaxbooth bench`, on the sizes of a tiny base; nothing here is said of speed."""

import json
import math
import signal
import subprocess
import sys

import compiler
import jax
import numpy as np
import pytest

from jaxbooth.bench import OUT_OF_MEMORY, loop, ours, turns
from jaxbooth.bench.case import Case, Figure, Overhead, Row, family_of, reference_problem
from jaxbooth.bench.table import report, table
from jaxbooth.errors import ConfigError
from jaxbooth.families import tiny_files
from jaxbooth.planning.chips import chip_of
from jaxbooth.planning.step import abstract_model
from jaxbooth.sharding import MeshConfig, make_mesh
from jaxbooth.training.state import abstract_state


def write_sizes(folder, kind="sd1"):
    """A folder of config files, without weights: one level, with attention in the middle alone."""
    index, configs = tiny_files(kind)
    (folder / "model_index.json").write_text(index)
    for part, text in configs.items():
        (folder / part).mkdir()
        small = {"block_out_channels": [32], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
        small |= {"attention_head_dim": [2]} | ({"transformer_layers_per_block": [1]} if kind == "sdxl" else {})
        changed = json.dumps(json.loads(text) | (small if part == "unet" else {}))
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(changed)
    for part in ("tokenizer", "tokenizer_2"):
        (folder / part).mkdir()
        for name in ("vocab.json", "merges.txt"):  # must be there; nobody reads them
            (folder / part / name).touch()
    return folder


def tiny(folder, method="dreambooth", **options) -> Case:
    defaults = {"batch": 1, "resolution": 16, "dtype": "float32", "remat": "none", "steps": 2, "warmup": 1}
    return Case(base=str(folder), method=method, **defaults | options)


def test_one_command_makes_the_table_of_everything_that_is_asked_for():
    cases = turns.cases_of(["sd15", "sdxl"], ["dreambooth", "lora"], ["1", "8"], None, "bfloat16", "layers", 5, 2)
    assert [(case.base, case.method, case.batch, case.resolution) for case in cases] == [
        ("sd15", "dreambooth", 1, 512), ("sd15", "dreambooth", 8, 512), ("sd15", "lora", 1, 512),
        ("sd15", "lora", 8, 512), ("sdxl", "dreambooth", 1, 1024), ("sdxl", "dreambooth", 8, 1024),
        ("sdxl", "lora", 1, 1024), ("sdxl", "lora", 8, 1024),
    ]  # fmt: skip
    assert all(case.remat == "layers" and case.dtype == "bfloat16" and case.rows == 2 * case.batch for case in cases)
    assert [family_of(base).resolution for base in ("sd21", "pocket")] == [768, 64]


def test_everything_that_cannot_be_measured_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        turns.cases_of(["pocket", "no/such/base"], ["lora", "ti"], ["0", "x"], 60, "int8", "all", 1, 1)
    said = str(error.value)
    for part in ("--method ti", "--batch 0", "--batch x", "--dtype int8", "--remat all", "60x60", "no/such/base"):
        assert part in said


def test_a_rival_that_is_not_there_is_named_with_what_to_install(monkeypatch):
    turns.check_rival(None)
    with pytest.raises(ConfigError, match="only diffusers"):
        turns.check_rival("kohya")
    monkeypatch.setattr(turns.importlib.util, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(ConfigError, match="pip install peft"):
        turns.check_rival("diffusers")


def test_programs_take_turns_and_the_order_is_turned_round():
    assert turns.order(3, "diffusers", False) == ["jaxbooth", "diffusers", "diffusers", "jaxbooth"] + [
        "jaxbooth",
        "diffusers",
    ]
    assert turns.order(1, None, True) == ["jaxbooth", "loop"]


def figure(program="jaxbooth", seconds=(1.0, 2.0, 9.0), **options) -> Figure:
    return Figure(program=program, seconds=seconds, **{"device": "cpu"} | options)


def test_figures_are_medians_over_all_processes_and_what_follows_from_them():
    h100 = chip_of("NVIDIA H100 80GB HBM3")
    one = figure(model_flops=h100.flops / 2, peak_bytes=5, compile_seconds=30.0, device=h100.kinds[0])
    other = figure(seconds=(2.0, 2.0), peak_bytes=7, compile_seconds=1.0, device=h100.kinds[0])
    row = Row(case=tiny("sd15", batch=3), figures=[one, figure("diffusers", (4.0,), device=h100.kinds[0]), other])
    ours = row.of("jaxbooth")
    assert (ours.median, ours.images_per_second, ours.peak_bytes, ours.compile_seconds) == (2.0, 3.0, 7, 30.0)
    assert ours.flops_per_second == h100.flops / 4 and ours.mfu == 0.25
    assert row.ratio == 2.0  # above 1: ours is faster
    theirs = row.of("diffusers")
    assert theirs.flops_per_second == h100.flops / 8 and theirs.mfu == 0.125
    on_cpu = Row(case=row.case, figures=[one, figure("diffusers", (4.0,))])
    assert on_cpu.of("diffusers").mfu is None  # nobody knows what a CPU can do
    assert on_cpu.ratio is None  # a CPU beside a GPU says nothing
    assert row.of("loop") is None and row.overhead is None


def test_the_loop_is_compared_with_its_neighbours_in_time():
    # One bare, step, one, loop, one, ...: the machine's speed changes all the time.
    beside = {"bare_seconds": (1, 1, 3, 8, 12, 2, 2), "step_seconds": (1.0, 5.5, 7.0)}
    row = Row(case=tiny("sd15"), figures=[figure("loop", (2.04, 10.1, 2.1), **beside)])
    loop, step = row.overhead
    assert loop == pytest.approx((0.02, 0.01, 0.05)) and step == pytest.approx((0.0, 0.0, 0.0))
    assert "+2.0% (+1.0% to +5.0%) over a bare step, its program +0.0%" in table([row])
    assert row.as_json()["loop_overhead"]["high"] == loop.high


def test_the_interval_of_an_overhead_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [Overhead.of(1.01 + 0.1 * rng.standard_t(2, size=40)) for _ in range(1000)]
    assert 0.93 < np.mean([one.low <= 0.01 <= one.high for one in found]) < 0.98


def test_what_finds_no_room_is_a_row_that_says_so_and_is_not_tried_again(capsys):
    measured = []

    def measure(case, program):
        measured.append((case.batch, program))
        if program == "jaxbooth" and case.batch == 8:
            return Figure(program=program, problem=OUT_OF_MEMORY)
        return figure(program)

    cases, told = [tiny("sd15", batch=batch) for batch in (1, 8)], []
    rows = turns.measure_all(cases, "diffusers", 2, False, lambda rows: told.append(len(rows)), measure)
    assert told == [1, 2] and measured.count((8, "jaxbooth")) == 1 and measured.count((8, "diffusers")) == 2
    lines = table(rows).splitlines()
    assert len(lines) == 5 and OUT_OF_MEMORY in lines[3] and rows[1].ratio is None and rows[0].ratio == 1.0
    found = json.loads(json.dumps(report(rows, "diffusers")))
    assert found["rows"][1]["jaxbooth"]["problem"] == OUT_OF_MEMORY and found["versions"]["jax"]


@pytest.mark.parametrize(
    ("code", "stderr", "problem"),
    [
        (-signal.SIGKILL, "", OUT_OF_MEMORY),
        (1, "Traceback\nValueError: odd\n\n", "ValueError: odd"),
        (3, "", "exit code 3"),
    ],
)
def test_a_process_that_fails_leaves_a_reason(code, stderr, problem, tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(turns.subprocess, "run", lambda *arguments, **options: done)
    assert turns.in_own_process(tiny(write_sizes(tmp_path)), "diffusers").problem == problem


@pytest.mark.parametrize(
    ("kind", "method", "dtype"),
    [("sd1", "dreambooth", "float32"), ("sdxl", "lora", "bfloat16"), ("sd2", "dreambooth", "bfloat16")],
)
def test_pytorch_takes_the_step_of_every_family(kind, method, dtype, tmp_path):
    import torch

    from jaxbooth.evaluation.torch_step import measure

    threads = torch.get_num_threads()
    case = tiny(write_sizes(tmp_path, kind), method, dtype=dtype, remat="layers" if method == "lora" else "none")
    found = Figure(**measure(reference_problem(case) | {"threads": 1}))
    torch.set_num_threads(threads)
    assert len(found.seconds) == 2 and math.isfinite(found.loss) and found.device == "cpu"


@pytest.mark.parametrize(
    ("base", "method", "count"),
    [
        ("sd15", "lora", 3_188_736),  # 12.8 MB, as diffusers' own files of rank 16
        ("sdxl", "dreambooth", 2_567_463_684),
    ],
)
def test_both_train_as_many_numbers_of_a_published_base(base, method, count):
    import torch

    from jaxbooth.evaluation.torch_step import Problem, random_unet

    case = turns.cases_of([base], [method], ["1"], None, "float32", "none", 1, 1)[0]
    theirs = random_unet(Problem(**reference_problem(case)), torch.device("meta"))
    assert sum(one.numel() for one in theirs.parameters() if one.requires_grad) == count
    recipe = ours.recipe_of(case)
    adapter = abstract_state(
        recipe.method, abstract_model(recipe), 1, recipe.optimizer, make_mesh(MeshConfig(), jax.devices()[:1])
    )[1].adapter
    assert sum(leaf.size for leaf in adapter.values()) == count


def test_our_step_is_built_from_sizes_alone_and_counted(tmp_path):
    case = tiny(write_sizes(tmp_path), remat="layers")
    found = ours.measure(case, compiler.options())
    assert len(found.seconds) == 2 and math.isfinite(found.loss) and found.compile_seconds > 0
    without = ours.recipe_of(tiny(tmp_path))
    assert found.model_flops == ours.model_flops(without) > 0  # what is computed again is no work of the model's


def test_each_block_of_the_loop_and_of_its_step_lies_between_two_bare_ones(tmp_path):
    found = loop.measure_loop(tiny(write_sizes(tmp_path), "lora", steps=20), compiler.options())
    assert len(found.seconds) == len(found.step_seconds) == 2 and len(found.bare_seconds) == 5
    assert all(second > 0 for second in found.seconds)


@pytest.mark.slow
def test_the_command_measures_both_and_writes_what_it_found(tmp_path):
    base, file = tmp_path / "base", tmp_path / "out" / "figures.json"
    base.mkdir()
    options = {"--base": write_sizes(base), "--method": "dreambooth,lora", "--batch": 1, "--steps": 2, "--warmup": 1}
    options |= {"--vs": "diffusers", "--json": file}
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "jaxbooth", "bench", *words], check=True, capture_output=True, text=True
    )
    rows = json.loads(file.read_text())["rows"]
    assert [row["case"]["method"] for row in rows] == ["dreambooth", "lora"] and "ratio" in done.stdout
    for row in rows:
        assert row["ratio"] > 0 and row["jaxbooth"]["model_flops"] > 0
        for program in ("jaxbooth", "diffusers"):
            assert row[program]["problem"] is None and row[program]["peak_bytes"] > 2**20
            assert len(row[program]["processes"][0]["seconds"]) == 2


@pytest.mark.slow
def test_the_loop_costs_at_most_three_percent_over_a_bare_jitted_step():
    case = Case(
        base="pocket", method="dreambooth", batch=4, resolution=64, dtype="float32", remat="none", steps=400, warmup=1
    )
    row = Row(case=case, figures=[turns.in_own_process(case, "loop")])
    print("loop {}, its program {} over a bare step".format(*row.overhead))
    assert row.overhead[0].median <= 0.03
