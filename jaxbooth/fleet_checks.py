"""What of a manifest does not go with a configuration: told before anything is computed."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from jaxbooth import families
from jaxbooth.config import Config
from jaxbooth.data.new_tokens import check_new_tokens, subject_text
from jaxbooth.errors import ConfigError, MethodError, list_problems
from jaxbooth.fleet.manifest import Entry
from jaxbooth.run_folder import planned_over_all_steps

MAX_PRINTED = 50  # problems; whoever has thousands has one mistake a thousand times


def check_method(config: Config) -> None:
    """Raises a JaxboothError unless subjects are learned each for itself."""
    if config.train.joint:
        raise ConfigError("train.joint: a fleet learns each subject for itself; use `jaxbooth train` for a joint model")
    if not config.method.needs_subject:
        raise MethodError(f"method {config.method.type} learns from a data set, not from subjects")


def check_entries(config: Config, entries: Sequence[Entry], base: Path) -> None:
    """Checks every subject's overrides, and its words where the method learns new ones.

    Raises:
        ConfigError: lists all problems with their places.
    """
    problems = _override_problems(config, entries)
    if config.method.vectors_per_token:
        problems += _word_problems(config, entries, base)
    if problems:
        more = f"... and {len(problems) - MAX_PRINTED:,} more." if len(problems) > MAX_PRINTED else ""
        raise ConfigError(
            list_problems("the manifest does not go with the configuration:", problems[:MAX_PRINTED], more)
        )


def _override_problems(config: Config, entries: Sequence[Entry]) -> list[str]:
    """An override must not bend what is planned over all steps."""
    planned, problems = planned_over_all_steps(config), []
    for entry in entries:
        if entry.overrides.steps is not None and planned is not None:
            problems.append(f"{entry.place}: steps of its own would change {planned} planned over all steps")
        if entry.overrides.learning_rate is not None and config.optimizer.type == "prodigy":
            problems.append(f"{entry.place}: prodigy finds the learning rate itself")
    return problems


def _word_problems(config: Config, entries: Sequence[Entry], base: Path) -> list[str]:
    """Tokens that the vocabulary knows already, class nouns that nothing can start from."""
    family, method = families.from_diffusers(base), config.method

    def said_of(check: Callable, **words) -> str:
        subject = entries[0].subject.model_copy(update=words)
        try:
            check(family, method, [subject])
        except ConfigError as error:
            # Without the heading, and without a place that is not the manifest's.
            return str(error).rpartition("\n")[2].removeprefix("  - ").removeprefix("subjects.0.")
        return ""

    of_token = cache(lambda token: said_of(check_new_tokens, token=token))
    of_noun = cache(lambda noun: said_of(subject_text, class_noun=noun))
    found = [(entry.place, of_token(entry.subject.token), of_noun(entry.subject.class_noun)) for entry in entries]
    return [f"{place}: {said}" for place, *both in found for said in both if said]
