"""An evaluation from its checks to scores.json: real photos are measured first, then what is missing is drawn."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxbooth.diffusion.sample import SAMPLERS
from jaxbooth.errors import ConfigError, JaxboothError
from jaxbooth.evaluate_pictures import Painter, draw_subject, missing_pictures
from jaxbooth.evaluate_plan import (
    RECORD,
    Evaluated,
    Settings,
    check_record,
    class_drawings,
    subject_drawings,
)
from jaxbooth.evaluate_sources import SourceToEvaluate, open_source
from jaxbooth.evaluation.image_rows import embed
from jaxbooth.evaluation.metrics import Measure, Summary, summarise_all
from jaxbooth.evaluation.prompt_sets import DREAMBOOTH, is_whole_benchmark, load_prompt_set, texts_for_scoring
from jaxbooth.evaluation.published import ROWS, calibration
from jaxbooth.evaluation.scoring import Encoders, Files, as_json, measure, real_measures
from jaxbooth.run_folder import check_writable

log = logging.getLogger(__name__)

SCORES = "scores.json"
Subjects = Mapping[str, Mapping[str, Measure]]


@dataclass(frozen=True)
class Evaluation:
    """One source's, checked: where it goes and how pictures are drawn."""

    source: SourceToEvaluate
    settings: Settings
    out: Path

    def check(self) -> dict[str, Any]:
        """Raises ConfigError unless its pictures can be drawn here; returns what OUT/drawn.json is to hold."""
        if self.settings.sampler not in SAMPLERS:
            raise ConfigError(f"--sampler {self.settings.sampler} is not known. Samplers: {', '.join(SAMPLERS)}")
        check_writable(self.out, "--out")
        return check_record(self.source.subjects, self.settings, self.out)

    @property
    def missing(self) -> int:
        """Pictures that are to be drawn."""
        return sum(missing_pictures(subject, self.settings, self.out) for subject in self.source.subjects)

    @property
    def pictures(self) -> int:
        """Pictures in all, those that are there included."""
        per_class = self.settings.class_images * (2 if self.settings.draws_base else 1)
        return sum(
            len(subject.prompts(self.settings.prompts)) * self.settings.images_per_prompt + per_class
            for subject in self.source.subjects
        )

    def seconds_per_picture(self) -> float:
        """Measured with the first subject's model; nothing is written."""
        subject = self.source.subjects[0]
        painter = Painter(subject.load(), self.settings, subject.resolution)
        return painter.seconds_per_picture(subject_drawings(subject, self.settings, self.out))


def open_all(
    sources: Sequence[Path], prompts: str | None, out: Path | None, options: Mapping[str, Any]
) -> list[Evaluation]:
    """Reads and checks everything that is to be evaluated; loads no weights, writes nothing.

    Args:
        sources: Runs, fleets' folders, folders of runs.
        prompts: A prompt set's name or a file; default: `pocket` for sources on the pocket base, else `dreambooth`.
        out: Where the only source's evaluation goes; default: SOURCE/evaluation.
        options: Of `Settings`.

    Raises:
        JaxboothError: Every problem of every source, in one message.
    """
    found, problems = [], []
    for path in sources:
        try:
            source = open_source(path)
            name = prompts or ("pocket" if source.base == "pocket" else DREAMBOOTH)
            settings = Settings(load_prompt_set(name), **options)
            found.append(Evaluation(source, settings, out or source.default_out))
            found[-1].check()
        except JaxboothError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(dict.fromkeys(map(str, problems))))
    return found


def evaluate(evaluation: Evaluation, encoders: Encoders, say: Callable[[str], None]) -> dict[str, Any]:
    """Draws, measures and writes OUT/scores.json; returns what is in it.

    Args:
        evaluation: Of one source.
        encoders: What it is measured with.
        say: Is told the calibration row before anything is drawn.

    Raises:
        JaxboothError: pictures that lie there are others, or a photo cannot be read.
    """
    record, (settings, out) = evaluation.check(), (evaluation.settings, evaluation.out)
    subjects = evaluation.source.subjects
    photos = {one.name: embed(encoders.images, [photo.source for photo in one.photos]) for one in subjects}
    real, self_pairs = ({name: real_measures(rows, twice) for name, rows in photos.items()} for twice in (False, True))
    calibrated = calibrate(real, self_pairs, {one.name: len(one.photos) for one in subjects}, say)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / RECORD, record)
    measures = {}
    for number, subject in enumerate(subjects, 1):
        drawn = draw_subject(subject, settings, out)
        log.info("%s (%d of %d): %d pictures drawn", subject.name, number, len(subjects), drawn)
        measures[subject.name] = measure(_files(subject, settings, out), photos[subject.name], encoders)
    scores = _scores(evaluation, encoders, measures, real, self_pairs, calibrated)
    _write(out / SCORES, scores)
    return scores


def calibrate(
    real: Subjects, self_pairs: Subjects, counts: Mapping[str, int], say: Callable[[str], None]
) -> bool | None:
    """Tells the real photos' row; whether it is the published one, None where it is not compared."""
    with_pairs = _macros(summarise_all(self_pairs))
    row, is_whole_set = _macros(summarise_all(real)), is_whole_benchmark(counts)
    lines, good = calibration(row, with_pairs, is_whole_set)
    for line in lines if row else ["real photos: one of each subject, so there are no pairs to compare"]:
        say(line)
    return good if is_whole_set else None


def _files(subject: Evaluated, settings: Settings, out: Path) -> Files:
    flat, per_prompt = subject_drawings(subject, settings, out), settings.images_per_prompt
    base = class_drawings(subject, settings, out / "class_base" / subject.name) if settings.draws_base else []
    return Files(
        pictures=[[one.file for one in flat[start : start + per_prompt]] for start in range(0, len(flat), per_prompt)],
        of_class=[one.file for one in class_drawings(subject, settings, out / "class" / subject.name)],
        of_class_base=[one.file for one in base],
        prompts=subject.prompts(settings.prompts),
        texts=texts_for_scoring(settings.prompts.of(subject.class_noun), subject.class_noun),
        side=subject.resolution,
    )


def _scores(
    evaluation: Evaluation, encoders: Encoders, measures: Subjects, real: Subjects, self_pairs: Subjects,
    calibrated: bool | None,
) -> dict[str, Any]:  # fmt: skip
    settings, subjects = evaluation.settings, evaluation.source.subjects
    real_summary = summarise_all(real)
    return {
        "protocol": {
            "prompt_set": settings.prompts.name,
            "images_per_prompt": settings.images_per_prompt,
            "class_images": settings.class_images,
            "sampler": settings.sampler,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "resolution": sorted({subject.resolution for subject in subjects}),
            "noise": "a function of (subject, prompt index, k)",
            "aggregation": "macro: mean over subjects of each subject's mean; pooled: mean over all pairs or pictures; "
            "interval: 95 %, bootstrap over subjects",
            "self_pairs": "excluded: no photo is compared with itself",
            "identifier_in_text": "dropped for clip_t, kept for clip_t_with_identifier",
            "lpips": "AlexNet, v0.1" if encoders.lpips_weights is not None else None,
        },
        "encoders": dict(encoders.names),
        "notes": [*evaluation.source.notes, *encoders.notes],
        "calibrated": calibrated,
        "real": _macros(real_summary),
        "real_pooled": {name: summary.pooled for name, summary in real_summary.items()},
        "real_with_self_pairs": _macros(summarise_all(self_pairs)),
        "published": ROWS,
        "scores": {name: as_json(summary) for name, summary in summarise_all(measures).items()},
        "subjects": {name: {key: one.value for key, one in found.items()} for name, found in measures.items()},
        "prompts": list(settings.prompts.of(subjects[0].class_noun)),
        "drawn_prompts": {subject.name: subject.prompts(settings.prompts) for subject in subjects},
    }


def _macros(summaries: Mapping[str, Summary]) -> dict[str, float]:
    return {name: summary.macro for name, summary in summaries.items()}


def _write(file: Path, values: Mapping[str, Any]) -> None:
    draft = file.with_name(f".{file.name}.writing")
    draft.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(file)
