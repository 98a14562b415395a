"""Packs in a process of their own: many subjects learn side by side over one base, each is committed by itself."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from pydantic import BaseModel

from jaxbooth import families
from jaxbooth.config import Config, validate
from jaxbooth.data.held_out import check_held_out
from jaxbooth.data.new_tokens import check_new_tokens, subject_text
from jaxbooth.data.subjects import Subject, SubjectConfig, load_subject
from jaxbooth.errors import JaxboothError
from jaxbooth.fleet import private_files
from jaxbooth.fleet.attempts import lock
from jaxbooth.fleet.manifest import Overrides
from jaxbooth.fleet.pack_folders import note_members, noted_pack, pack_folder
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook
from jaxbooth.fleet.supervisor import STARTING
from jaxbooth.pack_results import draw_previews, write_result
from jaxbooth.pipeline import StableDiffusion
from jaxbooth.prepare import Prepared, held_out, prepare
from jaxbooth.run import CompiledSteps, fit, make_stream
from jaxbooth.run_folder import RunFolder, versions
from jaxbooth.sharding import MeshConfig, pack_layout
from jaxbooth.trained import load_base
from jaxbooth.training.loop import BrokeDown
from jaxbooth.training.pack import Terms
from jaxbooth.training.processes import from_process_zero
from jaxbooth.training.state import TrainState
from jaxbooth.weights.digest import base_digest
from jaxbooth.weights.hub import commit_of, resolve

log = logging.getLogger(__name__)


class Member(BaseModel, frozen=True):
    """A subject of a pack."""

    subject: SubjectConfig
    overrides: Overrides
    key: str  # content key: what its result is kept under

    @property
    def name(self) -> str:
        """The subject's."""
        return self.subject.name

    @property
    def seed(self) -> int:
        """As given, else a function of the content: other photos are other randomness."""
        return self.overrides.seed if self.overrides.seed is not None else int(self.key[:15], 16)


class PackOfMembers(BaseModel, frozen=True):
    """Members, the size of the program that they are trained in, and the folder of the pack that is gone on with."""

    members: tuple[Member, ...]
    size: int
    begun: Path | None = None


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
    base, at_work = _Base(job.config), job.step_file.with_name("pack")
    with ThreadPoolExecutor(1) as writer:
        writing: list[tuple[int, Future]] = []
        for number, pack in enumerate(job.packs):
            _replace(at_work, str(number))
            job.step_file.write_text(f"{STARTING} pack {number}\n")
            writing += [(number, result) for result in _run_pack(job, pack, base, writer)]
        for place, (number, result) in enumerate(writing):
            _replace(at_work, str(number))  # the one to blame, if writing went wrong
            result.result()
            job.step_file.write_text(f"written {place}\n")


def _replace(file: Path, text: str) -> None:
    """As a whole: whoever is killed meanwhile must not leave an empty file, which would blame the first pack."""
    draft = file.with_name(f".{file.name}")
    draft.write_text(text)
    draft.replace(file)


@dataclass(frozen=True)
class _Base:
    """What all packs share: the base, loaded once, and the compiled steps."""

    values: dict[str, Any]
    steps: CompiledSteps = field(default_factory=CompiledSteps)

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

    @property
    def record(self) -> dict[str, Any]:
        return {"base": self.digest, "commit": commit_of(self.folder), "versions": versions()}

    def layout(self, size: int) -> tuple[int, MeshConfig]:
        """Places of a pack's program, and its mesh."""
        config, train = self.config, self.config.train
        rows = train.batch_size * (2 if config.prior.loss_weight > 0 else 1) // train.gradient_accumulation_steps
        return pack_layout(size, jax.device_count(), rows, None if config.mesh == MeshConfig() else config.mesh)

    def model(self, prepared: Prepared) -> StableDiffusion:
        # A method that changes the base itself takes it with it.
        if "sd" not in self.__dict__ or not prepared.config.method.has_adapter:
            self.__dict__["sd"] = load_base(prepared.config, self.folder, prepared.mesh)
        return self.__dict__["sd"]


def _config(values: dict[str, Any], subjects: Sequence[SubjectConfig]) -> Config:
    """The configuration of some subjects; without any, that of one who stands for them."""
    placeholder = {"name": "subject", "images": ".", "class_noun": "thing", "token": "<subject>"}
    given = [subject.model_dump() for subject in subjects] or [placeholder]
    return validate({**values, "subjects": given}, "the fleet's configuration")


def _run_pack(job: Job, pack: PackOfMembers, base: _Base, writer: ThreadPoolExecutor) -> list[Future]:
    """Trains a pack and draws its previews; returns what is being written."""
    store, layout = OutputStore(job.out), base.layout(pack.size)
    wanted = from_process_zero(
        lambda: [one.key for one in pack.members if not store.is_done(one.name, one.key, verify=False)]
    )
    members, subjects, folder = _chosen(store, pack, wanted, layout[0], base)
    if not members:
        return []
    with _own_folder(folder) as own:
        if jax.process_index() == 0:
            note_members(own, [member.model_dump(mode="json") for member in members], layout[0])
        prepared = prepare_pack(job.config, members, subjects, layout, RunFolder(own), base.record)
        results = _train(job, prepared, base, [member if member.key in wanted else None for member in members], writer)
    return [*results, writer.submit(_forget, store, own, results)]


def _train(
    job: Job, prepared: Prepared, base: _Base, members: Sequence[Member | None], writer: ThreadPoolExecutor
) -> list[Future]:
    """Trains; then draws each member that is wanted, and has it written while the next is drawn."""
    sd, store, results = base.model(prepared), OutputStore(job.out), []
    stream = make_stream(prepared, sd, base.digest)
    try:
        trained = fit(prepared, sd, stream, base.digest, job.step_file, base.steps)
    except BrokeDown as broken:
        for member in filter(None, members):
            _broke_down(store, member, broken.steps[member.name])
        return []
    # On the host from here on: the device is the next pack's.
    trained = replace(trained, state=_on_host(trained.state))
    for index, member in ((index, member) for index, member in enumerate(members) if member is not None):
        if (end := int(trained.state.ended[index])) < 0:
            _broke_down(store, member, -end)
            continue
        job.step_file.write_text(f"drawing {member.name}\n")
        drawn = draw_previews(trained, index)
        if jax.process_index() == 0:
            results.append(writer.submit(write_result, store, trained, index, member.key, drawn))
    return results


def _on_host(state: TrainState) -> TrainState:
    return jax.device_get(state) if jax.process_count() == 1 else multihost_utils.process_allgather(state, tiled=True)


def _broke_down(store: OutputStore, member: Member, step: int) -> None:
    """Never written as a success, and not tried again: the same keys give the same numbers."""
    reason = f"training broke down: loss or gradient is not finite at step {step}. Lower its learning_rate."
    StrikeBook(store).fail(member.name, member.key, reason)


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """The pack's folder, or one beside it if another program is at work there: they must not share checkpoints."""
    private_files.make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)  # held by the process that leads
    beside = folder.with_name(f"{folder.name}-{os.getpid()}")
    try:
        yield Path(from_process_zero(lambda: str(folder if lock(descriptor) else beside)))
    finally:
        os.close(descriptor)


def _forget(store: OutputStore, folder: Path, results: list[Future]) -> None:
    """Checkpoints have done their service when every result is written."""
    if all(result.exception() is None for result in results) and jax.process_index() == 0:
        store.remove(folder)


def _chosen(
    store: OutputStore, pack: PackOfMembers, wanted: Sequence[str], size: int, base: _Base
) -> tuple[list[Member], list[Subject], Path]:
    """Who trains, with their pictures, and in which folder.

    A pack that was begun is gone on with as a whole, its checkpoints are of all its members; if one of them cannot be
    loaded any more, those that are wanted begin anew.
    """
    noted, noted_size = noted_pack(pack.begun) if pack.begun else ([], size)
    noted = [Member.model_validate(member) for member in noted]
    everyone = {member.key: member for member in (*noted, *pack.members)}
    kept = [everyone[key] for key in sorted(everyone if wanted else ())]  # in one order, whoever formed the pack
    members, subjects = _loaded(kept, wanted, base, StrikeBook(store))
    if noted and noted_size == size and {member.key for member in noted} == {member.key for member in members}:
        return members, subjects, pack.begun
    rest = [(member, subject) for member, subject in zip(members, subjects, strict=True) if member.key in wanted]
    members, subjects = [member for member, _ in rest], [subject for _, subject in rest]
    return members, subjects, pack_folder(store, [member.key for member in members], size)


def _loaded(
    members: Sequence[Member], wanted: Sequence[str], base: _Base, strikes: StrikeBook
) -> tuple[list[Member], list[Subject]]:
    """Members whose pictures and words are good, and their pictures; wanted ones without are given up, and say why."""
    method, good, subjects = base.config.method, [], []
    for member in members:
        try:
            subject = load_subject(member.subject, Path(), method.caption_templates, base.config.data.mask)
            check_held_out(subject.name, subject.images, held_out(base.config))
            check_new_tokens(base.family, method, [member.subject])
            if method.vectors_per_token:
                subject_text(base.family, method, [member.subject])
        except JaxboothError as error:
            if member.key in wanted:
                strikes.fail(member.name, member.key, str(error))
            continue
        good.append(member)
        subjects.append(subject)
    return good, subjects


def prepare_pack(
    values: dict[str, Any], members: Sequence[Member], subjects: Sequence[Subject], layout: tuple[int, MeshConfig],
    run: RunFolder, record: dict[str, Any],
) -> Prepared:  # fmt: skip
    """A pack as a run of its own; places behind its members repeat the first one, and stand still."""
    spare, taken = layout[0] - len(members), {member.name for member in members}
    names = islice((name for name in map("padding.{}".format, count()) if name not in taken), spare)
    configs = [member.subject for member in members]
    configs += [members[0].subject.model_copy(update={"name": name}) for name in names]
    config = _config({**values, "run_dir": str(run.path)}, configs).model_copy(update={"mesh": layout[1]})
    terms = tuple(_terms(config, member) for member in members)
    terms += (Terms(terms[0].seed, 0),) * spare
    # Before it is compared: the members' keys say that it is the same, wherever photos and base lie now.
    from_process_zero(lambda: run.claim(config, record))
    return prepare(config, subjects=[*subjects, *[subjects[0]] * spare], terms=terms)


def _terms(config: Config, member: Member) -> Terms:
    steps, rate = member.overrides.steps or config.train.steps, member.overrides.learning_rate
    return Terms(member.seed, steps, learning_rate=1.0 if rate is None else rate / config.optimizer.learning_rate)
