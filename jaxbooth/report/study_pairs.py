"""Which pictures of several runs a person can be asked to choose between: same subject, same prompt, two methods."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.report.run_files import AFTER, RunFiles, class_text
from jaxbooth.report.sources import Source

PHOTOS_SHOWN = 6
Pictures = dict[tuple[str, int], Path]  # by prompt without identifier, and by its n-th use


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt by two methods.

    Attributes:
        subject: The subject's name.
        prompt: Without the identifier, which would tell the method, and which means nothing to a person.
        methods: What the two are called in the table; never on the page.
        pictures: Their files.
        photos: The subject's.
    """

    subject: str
    prompt: str
    methods: tuple[str, str]
    pictures: tuple[Path, Path]
    photos: tuple[Path, ...]


def find_pairs(sources: list[Source]) -> tuple[list[str], list[Pair]]:
    """Names of the methods in the sources' order, and all pairs of their pictures after training.

    Raises:
        ConfigError: Every run that has no pictures or no photos, and runs that have nothing in common.
    """
    labelled = [(run, label) for source, label in zip(sources, _labels(sources), strict=True) for run in source.runs]
    problems = [problem for run, _ in labelled for problem in _problems(run)]
    problems += [f"{source.path} is a fleet: its results keep no pictures of prompts" for source in sources
                 if not source.runs]  # fmt: skip
    if len(sources) < 2:
        problems.append("a study compares two runs or more: jaxbooth study RUN_A RUN_B OUT")
    if problems:
        raise ConfigError(list_problems("no study was made:", problems))
    pairs = []
    for (left, left_label), (right, right_label) in combinations(labelled, 2):
        if _subject(left) != _subject(right) or left_label == right_label:
            continue
        ours, theirs = next(
            (both for both in zip(_sources(left), _sources(right), strict=True) if both[0].keys() & both[1].keys()),
            ({}, {}),
        )
        for prompt, number in ours.keys() & theirs.keys():
            files = ours[prompt, number], theirs[prompt, number]
            photos = (left.photos or right.photos)[:PHOTOS_SHOWN]
            pairs.append(Pair(_subject(left)[0], prompt, (left_label, right_label), files, photos))
    if not pairs:
        subjects = ", ".join(f"{run.name} {_subject(run)[0]}" for run, _ in labelled)
        raise ConfigError(
            "no study was made: no two of these runs drew the same subject with the same prompt. Subjects: "
            f"{subjects}. Train them with the same subjects and sample.prompts."
        )
    pairs.sort(key=lambda pair: (pair.subject, pair.prompt, pair.methods, pair.pictures))
    return list(dict.fromkeys(label for _, label in labelled)), pairs


def _problems(run: RunFiles) -> list[str]:
    problems = []
    if not run.subject:
        problems.append(f"{run.path} has no subject: it learned captioned pictures")
    if not any(_sources(run)):
        problems.append(f"{run.path} has no pictures of the trained model (samples/{AFTER}): let it finish")
    if run.subject and not run.photos:
        told = f" ({'; '.join(run.notes)})" if run.notes else ""
        problems.append(f"{run.path}: the subject's photos are needed to compare with, and are not there{told}")
    return problems


def _subject(run: RunFiles) -> tuple[str, str]:
    return str(run.subject.get("name")), str(run.subject.get("class_noun"))


def _sources(run: RunFiles) -> tuple[Pictures, Pictures]:
    """The evaluation's pictures, which all methods draw from the same noise, and those that the run drew itself."""
    return _evaluated(run), _sampled(run)


def _evaluated(run: RunFiles) -> Pictures:
    prompts = (run.scores or {}).get("prompts")
    folder = run.evaluation / "pictures" / _subject(run)[0]
    if not isinstance(prompts, list):
        return {}
    found = {}
    for index, template in enumerate(prompts):
        prompt = class_text(str(template), run.subject)
        for file in folder.glob(f"{index}_*.png"):
            number = file.stem.removeprefix(f"{index}_")
            if number.isdecimal():
                found[prompt, int(number)] = file
    return found


def _sampled(run: RunFiles) -> Pictures:
    seen: Counter[str] = Counter()
    found = {}
    last = [stage for stage in run.stages if stage.name == AFTER]
    for index, template in enumerate(run.prompts):
        prompt = class_text(template, run.subject)
        if last and (file := last[0].picture(index)).is_file():
            found[prompt, seen[prompt]] = file
        seen[prompt] += 1
    return found


def _labels(sources: list[Source]) -> list[str]:
    """The methods' types, or the sources' names where one subject has been learned twice by a type."""
    uses = Counter((_subject(run), run.method) for source in sources for run in source.runs)
    several = any(len({run.method for run in source.runs}) > 1 for source in sources)
    if several or max(uses.values(), default=1) > 1:
        return [source.name for source in sources]
    return [source.method for source in sources]
