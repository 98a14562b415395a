"""Real packs on a tiny random base, trained in this process."""

import json
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import compiler
import jax
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache
from small_fleets import write_manifest, write_pictures

from jaxbooth import pipeline
from jaxbooth.config import validate
from jaxbooth.fleet_run import open_fleet
from jaxbooth.pack_run import Job, run_job
from jaxbooth.prepare import prepare
from jaxbooth.run import train_run

SAMPLER = {"sampler": "euler_ancestral", "num_steps": 1, "guidance_scale": 1.0}
NO_PICTURES = {"prior": {"loss_weight": 0}, "sample": {"prompts": [], "class_prompts": []}}


def write_fleet(folder: Path, base: Path, subjects: dict[str, dict], **parts) -> None:
    """Photos of each subject (by its place), a manifest with what each says of itself, and a configuration."""
    for number, name in enumerate(subjects):
        if not (folder / "photos" / name).exists():
            write_pictures(folder / "photos" / name, number, size=16)
    write_manifest(folder / "subjects.yaml", list(subjects), **subjects)
    values = {
        "base": {"path": str(base)},
        "method": {"type": "lora", "rank": 2, "targets": "attn"},
        "subjects": [{"name": "any", "images": "any", "class_noun": "dog", "token": "sks"}],
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-6},  # above rounding errors
        "train": {"steps": 4, "log_every_steps": 1},
        "prior": {"num_images": 2} | SAMPLER,
        "sample": {"prompts": ["a {token} {class_noun}"], "class_prompts": []} | SAMPLER,
        "checkpoint": {"save_every_steps": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values | parts))


def fleet_of(folder: Path):
    return open_fleet(folder / "subjects.yaml", folder / "config.yaml")


def job_of(folder: Path, *packs: list[str], size: int = 4, out: str = "out", begun: Path | None = None) -> Job:
    """A job of packs of these subjects, as the driver would write it."""
    fleet = fleet_of(folder)
    values = [
        {"members": [fleet.members[fleet.keys[name]] for name in pack], "size": size, "begun": begun} for pack in packs
    ]
    (folder / "job").mkdir(exist_ok=True)
    job = {"config": fleet.values, "out": str(folder / out), "packs": values, "step_file": str(folder / "job" / "step")}
    return Job.model_validate_json(json.dumps(job, default=str))


def run(folder: Path, *packs: list[str], **options) -> None:
    run_job(job_of(folder, *packs, **options))


def solo_losses(folder: Path, name: str, seed: int) -> list[float]:
    """The losses of `jaxbooth train` on one subject."""
    fleet = fleet_of(folder)
    (entry,) = (entry for entry in fleet.manifest.entries if entry.subject.name == name)
    config = validate({**fleet.values, "subjects": [entry.subject.model_dump()]}, "solo")
    train, optimizer = config.train.model_copy(update={"seed": seed}), config.optimizer
    if entry.overrides.steps:
        train = train.model_copy(update={"steps": entry.overrides.steps})
    if entry.overrides.learning_rate:
        optimizer = optimizer.model_copy(update={"learning_rate": entry.overrides.learning_rate})
    run_dir = str(folder / f"solo-{name}")
    changes = {"train": train, "optimizer": optimizer, "run_dir": run_dir, "export": False}
    train_run(prepare(config.model_copy(update=changes)))
    lines = read_lines(Path(run_dir) / "metrics.jsonl")
    return [line["loss/total"] for line in lines if line["step"] > 0]  # a probe has looked at step 0 already


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@contextmanager
def one_quick_device(cache: Path):
    """One device, programs compiled as fast as can be; class pictures and moments in a cache that is given."""
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: one)
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(jax, "jit", partial(jax.jit, compiler_options=compiler.options()))
        patch.setenv("JAXBOOTH_CACHE", str(cache))
        with compiled_once(cache / "compiled"):
            yield


@contextmanager
def compiled_once(folder: Path):
    """What one job has compiled, those after it read from a folder."""
    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        _configure(wanted)
        yield
    finally:
        _configure(before)


def _configure(values: dict) -> None:
    compilation_cache.reset_cache()
    for name, value in values.items():
        jax.config.update(name, value)


@contextmanager
def drawings():
    """Yields a list that grows by the prompts of every call that draws."""
    calls, draw = [], pipeline.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipeline, "generate", lambda sd, prompts, **how: calls.append(prompts) or draw(sd, prompts, **how)
        )
        yield calls


@contextmanager
def programs():
    """Yields a list that grows by the name of every function that JAX compiles, from a cache or not."""
    names = []

    def listen(event: str, seconds: float, **facts) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(facts["fun_name"].removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
