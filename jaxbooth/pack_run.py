"""A pack in its own process: many subjects learn side by side over one base, each is committed by itself."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any

import jax
from PIL import Image
from pydantic import BaseModel

from jaxbooth import families
from jaxbooth.config import Config, validate
from jaxbooth.data.new_tokens import check_new_tokens, subject_text
from jaxbooth.data.prompts import render_all
from jaxbooth.data.subjects import Subject, SubjectConfig, load_subject
from jaxbooth.errors import JaxboothError
from jaxbooth.export.formats import export, own_formats
from jaxbooth.fleet import private_files
from jaxbooth.fleet.attempts import lock
from jaxbooth.fleet.manifest import Overrides
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, prepare
from jaxbooth.previews import PHOTOS_SHOWN
from jaxbooth.report.contact_sheet import Row, contact_sheet
from jaxbooth.run import fit, make_stream
from jaxbooth.run_folder import versions
from jaxbooth.sharding import MeshConfig
from jaxbooth.trained import TrainedRun, load_base
from jaxbooth.training.loop import BrokeDown
from jaxbooth.training.pack import Terms
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.hub import commit_of, resolve

log = logging.getLogger(__name__)


class Member(BaseModel, frozen=True):
    """A subject of a pack."""

    subject: SubjectConfig
    overrides: Overrides
    key: str  # content key: what its result is kept under

    @property
    def seed(self) -> int:
        """As given, else a function of the content: other photos are other randomness."""
        return self.overrides.seed if self.overrides.seed is not None else int(self.key[:15], 16)


class PackOfMembers(BaseModel, frozen=True):
    """Members, the size of the program that they are trained in, and where the pack keeps its checkpoints."""

    members: tuple[Member, ...]
    size: int
    folder: Path


class Job(BaseModel, frozen=True):
    """What one process does: packs of one configuration, one after the other."""

    config: dict[str, Any]  # resolved, without subjects
    out: Path
    packs: tuple[PackOfMembers, ...]
    step_file: Path  # changes with every step; beside it, `pack` tells which pack is at work


def run_job(job: Job) -> None:
    """Trains every pack; results are written while the next one trains.

    Raises:
        Preempted: the process was asked to stop; what had been trained is saved.
    """
    base, store, at_work = _Base(job.config), OutputStore(job.out), job.step_file.with_name("pack")
    with ThreadPoolExecutor(1) as writer:
        writing: list[tuple[int, Future]] = []
        for number, pack in enumerate(job.packs):
            at_work.write_text(str(number))
            with _own_folder(pack.folder) as folder:
                results = _run_pack(job, pack, folder, base, writer)
            writing += [(number, result) for result in (*results, writer.submit(_forget, store, folder, results))]
        for number, result in writing:
            at_work.write_text(str(number))  # the one to blame, if writing went wrong
            result.result()


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """The pack's folder, or one beside it if another process is at work there: they must not share checkpoints."""
    private_files.make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield folder if lock(descriptor) else folder.with_name(f"{folder.name}-{os.getpid()}")
    finally:
        os.close(descriptor)


def _forget(store: OutputStore, folder: Path, results: list[Future]) -> None:
    """Checkpoints have done their service when every result is written."""
    if all(result.exception() is None for result in results) and jax.process_index() == 0:
        store.remove(folder)


@dataclass(frozen=True)
class _Base:
    """What all packs share, loaded once."""

    values: dict[str, Any]

    @cached_property
    def config(self) -> Config:
        return _config(self.values, ())

    @cached_property
    def folder(self) -> Path:
        return resolve(self.config.base.path, self.config.base.revision)

    @cached_property
    def digest(self) -> str:
        return base_digest(self.folder)

    @cached_property
    def family(self) -> families.ModelFamily:
        return families.from_diffusers(self.folder)

    def model(self, prepared: Prepared) -> StableDiffusion:
        if "sd" not in self.__dict__:
            self.__dict__["sd"] = load_base(prepared.config, self.folder, prepared.mesh)
        return self.__dict__["sd"]


def _config(values: dict[str, Any], subjects: Sequence[SubjectConfig]) -> Config:
    """The configuration of some subjects; without any, that of one who stands for them."""
    placeholder = {"name": "subject", "images": ".", "class_noun": "thing", "token": "<subject>"}
    given = [subject.model_dump() for subject in subjects] or [placeholder]
    return validate({**values, "subjects": given}, "the fleet's configuration")


def _run_pack(job: Job, pack: PackOfMembers, folder: Path, base: _Base, writer: ThreadPoolExecutor) -> list[Future]:
    """Trains a pack and draws its previews; returns what is being written."""
    store = OutputStore(job.out)
    missing = [member for member in pack.members if not store.is_done(member.subject.name, member.key, verify=False)]
    members, subjects = _loaded(missing, base, StrikeBook(store))
    if not members:
        return []
    prepared = prepare_pack(job.config, members, subjects, pack.size, folder)
    # For `fleet purge`, which must find everything that was made of a subject.
    private_files.write_json(folder / "members.json", {"names": [member.subject.name for member in members]})
    sd = base.model(prepared)
    prepared.run.claim(prepared.config, {"base": base.digest, "commit": commit_of(base.folder), "versions": versions()})
    try:
        trained = fit(prepared, sd, make_stream(prepared, sd, base.digest), base.digest, job.step_file)
    except BrokeDown as broken:
        for member in members:
            _broke_down(store, member, broken.steps[member.subject.name])
        return []
    # On the host from here on: the device is the next pack's.
    trained = replace(trained, state=jax.device_get(trained.state))
    drawn = []
    for index, member in enumerate(members):
        if (end := int(trained.state.ended[index])) < 0:
            _broke_down(store, member, -end)
            continue
        job.step_file.write_text(f"drawing {member.subject.name}\n")
        drawn.append((index, member, draw_previews(trained, index)))
    if jax.process_index() != 0:
        return []
    return [writer.submit(write_result, store, trained, *one) for one in drawn]


def _broke_down(store: OutputStore, member: Member, step: int) -> None:
    """Never written as a success, and not tried again: the same keys give the same numbers."""
    reason = f"training broke down: loss or gradient is not finite at step {step}. Lower its learning_rate."
    StrikeBook(store).fail(member.subject.name, member.key, reason)


def _loaded(members: Sequence[Member], base: _Base, strikes: StrikeBook) -> tuple[list[Member], list[Subject]]:
    """Members whose pictures and words are good, and their pictures; the others are given up, and say why."""
    method, good, subjects = base.config.method, [], []
    for member in members:
        try:
            subject = load_subject(member.subject, Path(), method.caption_templates, base.config.data.mask)
            check_new_tokens(base.family, method, [member.subject])
            if method.vectors_per_token:
                subject_text(base.family, method, [member.subject])
        except JaxboothError as error:
            strikes.fail(member.subject.name, member.key, str(error))
            continue
        good.append(member)
        subjects.append(subject)
    return good, subjects


def prepare_pack(
    values: dict[str, Any], members: Sequence[Member], subjects: Sequence[Subject], size: int, folder: Path
) -> Prepared:
    """A pack as a run of its own in `folder`; places behind its members repeat the first one, and stand still."""
    spare = size - len(members)
    configs = [member.subject for member in members]
    configs += [members[0].subject.model_copy(update={"name": f"padding.{i}"}) for i in range(spare)]
    config = _config({**values, "run_dir": str(folder)}, configs)
    terms = tuple(_terms(config, member) for member in members)
    terms += (Terms(terms[0].seed, 0),) * spare
    mesh = config.mesh
    if mesh == MeshConfig():
        mesh = MeshConfig(subject=gcd(size, jax.device_count()))
    config = config.model_copy(update={"mesh": mesh})
    return prepare(config, subjects=[*subjects, *[subjects[0]] * spare], terms=terms)


def _terms(config: Config, member: Member) -> Terms:
    steps, rate = member.overrides.steps or config.train.steps, member.overrides.learning_rate
    return Terms(member.seed, steps, learning_rate=1.0 if rate is None else rate / config.optimizer.learning_rate)


def draw_previews(trained: TrainedRun, index: int) -> tuple[list[str], list[Image.Image]]:
    """The configuration's prompts for one subject, and its pictures."""
    prepared = trained.prepared
    sample, subject = prepared.config.sample, prepared.config.subjects[index]
    noun = subject.class_noun if prepared.config.method.class_noun_in_prompts else ""
    prompts = list(render_all(sample.prompts, subject.token, noun))
    if not prompts:
        return [], []
    images = trained.to_sample(index=index).generate(
        prompts, seed=sample.seed, num_steps=sample.num_steps, guidance_scale=sample.guidance_scale,
        sampler=sample.sampler, negative_prompt=sample.negative_prompt, height=prepared.resolution,
        width=prepared.resolution, batch_size=sample.batch_size,
    )  # fmt: skip
    return prompts, [Image.fromarray((image * 255).round().astype("uint8")) for image in images]


def write_result(
    store: OutputStore, trained: TrainedRun, index: int, member: Member, drawn: tuple[list[str], list[Image.Image]]
) -> bool:
    """Commits one subject: its files for other programs with their cards, preview, losses. The first commit wins."""
    prepared, (prompts, images) = trained.prepared, drawn
    config, subject = prepared.config, prepared.subjects[index]
    with store.attempt(member.subject.name, member.key) as attempt:
        source = trained.source(index=index)
        for name in own_formats(config.method) or ("merged",):
            export(source, name, attempt.path / name)
        if images:
            photos = subject.images[:PHOTOS_SHOWN]
            rows = [Row("photos", [photo.load() for photo in photos], [""] * len(photos)), Row("", images, prompts)]
            contact_sheet(rows, attempt.path / "preview.png")
        losses = _losses(prepared, member.subject.name, prepared.terms[index].steps)
        (attempt.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
        return store.commit(attempt, _facts(trained, index, member, losses))


def _losses(prepared: Prepared, name: str, steps: int) -> list[dict[str, Any]]:
    """A subject's own part of the pack's metrics."""
    lines = [json.loads(line) for line in (prepared.run.path / "metrics.jsonl").read_text().splitlines()]
    key = f"subject/{name}/loss" if prepared.learning > 1 else "loss/total"
    return [
        {"step": line["step"], "loss": line[key], "time/step_s": line["time/step_s"]}
        for line in lines
        if key in line and line["step"] <= steps
    ]


def _facts(trained: TrainedRun, index: int, member: Member, losses: list[dict[str, Any]]) -> dict[str, Any]:
    prepared = trained.prepared
    terms, subject = prepared.terms[index], member.subject
    return {
        "token": subject.token,
        "class_noun": subject.class_noun,
        "method": prepared.config.method.type,
        "base": trained.base_digest,
        "steps": int(trained.state.ended[index]) or terms.steps,
        "seed": terms.seed,
        "learning_rate": terms.learning_rate * prepared.config.optimizer.learning_rate,
        "loss": losses[-1]["loss"] if losses else None,
        "pack_size": len(prepared.terms),
        "images": len(prepared.subjects[index].images),
        "versions": versions(),
    }
