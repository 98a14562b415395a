"""`jaxbooth report` and `jaxbooth study`: pages for people, made from files alone."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

REPORT_FORM = "jaxbooth report RUN... OUT.html"
STUDY_FORM = "jaxbooth study RUN_A RUN_B... OUT"


class MakesByDefault(TyperGroup):
    """`study A B OUT` is `study make A B OUT`."""

    def parse_args(self, ctx, args):
        """Puts the left-out word in."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


study_app = typer.Typer(
    cls=MakesByDefault,
    no_args_is_help=True,
    help=f"Ask people which method is better, blind. {STUDY_FORM} makes the page, `study tally` counts the votes.",
)


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN... OUT.html", help="Runs or fleets, then the page.")],
    max_mb: Annotated[float, typer.Option(min=0.2, help="Megabytes that the page may have.")] = 2.0,
    photos: Annotated[bool, typer.Option(help="Show the subject's photos; the page then holds them.")] = True,
) -> None:
    """Write one self-contained page about runs: what was done, curves, pictures, scores, cost, failures."""
    from jaxbooth.errors import ConfigError
    from jaxbooth.report.report import write_report

    if len(paths) < 2:
        raise ConfigError(f"report takes a run or more, then the page: {REPORT_FORM}")
    for note in write_report(paths[:-1], paths[-1], max_mb, photos):
        typer.echo(f"note: {note}", err=True)
    print(paths[-1])


@study_app.command()
def make(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B... OUT", help="Runs, then a new folder.")],
    questions: Annotated[int | None, typer.Option(min=1, help="Most questions for one person; default: all.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="subject or prompt; default: both.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the lots that are drawn; default: a fresh one.")] = None,
    max_mb: Annotated[float, typer.Option(min=0.2, help="Megabytes that the page may have.")] = 50.0,
) -> None:
    """Write a blind side-by-side page, OUT/index.html, and its key, OUT/key.json (the word `make` may be left out)."""
    from jaxbooth.errors import ConfigError
    from jaxbooth.report.study import KEY, KINDS, PAGE, make_study

    if unknown := [name for name in kind or () if name not in KINDS]:
        raise ConfigError(f"--kind {', '.join(unknown)} is not known: {' or '.join(KINDS)}")
    if len(paths) < 3:
        raise ConfigError(f"study takes two runs or more, then a new folder: {STUDY_FORM}")
    key = make_study(paths[:-1], paths[-1], questions, tuple(dict.fromkeys(kind or KINDS)), seed, max_mb)
    said = f"{len(key['questions'])} questions, {' against '.join(key['methods'])}"
    print(said + (f", dealt out to {key['parts']} people or more" if key["parts"] > 1 else ""))
    print(f"page to hand out: {paths[-1] / PAGE}\nkey to keep: {paths[-1] / KEY}")


@study_app.command()
def tally(
    votes: Annotated[list[Path], typer.Argument(metavar="VOTES...", help="Files that people saved from the page.")],
    key: Annotated[Path, typer.Option(help="OUT/key.json of the study.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
) -> None:
    """Count votes: the form of the DreamBooth paper's Table 2, majority of each question, 95 % intervals."""
    from jaxbooth.errors import ConfigError
    from jaxbooth.report.html_page import replace_file
    from jaxbooth.report.study_tally import TALLY_FORMAT, tally, tally_text, tally_values

    if json_file is not None and json_file.exists() and TALLY_FORMAT not in json_file.read_text(errors="replace")[:200]:
        raise ConfigError(f"{json_file} is there and is no tally: choose another name")
    results, ballots = tally(votes, key)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(json_file, json.dumps(tally_values(results, ballots, key), indent=1) + "\n")
    print(tally_text(results, ballots))
