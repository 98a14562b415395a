"""`jaxbooth plan`: what a run needs, before a machine is rented."""

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)

DOES_NOT_FIT = 1


class Effort(StrEnum):
    """The compiler's."""

    full = "full"
    low = "low"


def plan(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file; its base.path may be a folder with config files alone, "
                             "or sd15, sd21, sdxl.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    topology: Annotated[
        list[str] | None,
        typer.Option(help="TPU slice, e.g. v5e:2x4; give it again for a table. Default: the devices at hand."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only trace and count, in seconds; else the compiler is asked, for minutes "
                           "(extra [plan]; no TPU is needed).")
    ] = False,
    largest: Annotated[
        bool, typer.Option("--largest", help="Look for the largest train.batch_size that fits: some more answers.")
    ] = False,
    effort: Annotated[
        Effort, typer.Option(help="The compiler's; low: sooner, with other temporaries and bytes than training has.")
    ] = Effort.full,
    step_seconds: Annotated[
        float | None, typer.Option(min=1e-9, help="Measured seconds of a step; default: a bound.")
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0, help="What a step may take of each device; default: all there is.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list with an object for each topology.")] = False,
) -> None:  # fmt: skip
    """Say what `train CONFIG` needs and how fast it can be; reads no weights and trains nothing.

    Exit code: 0 if it fits everywhere, 1 if it does not fit somewhere, 2 if the input cannot be used.
    """
    from jaxbooth import plan as planning
    from jaxbooth import plan_text

    wishes = planning.Wishes(quick, largest, effort.value, memory_gib, step_seconds)
    plans = planning.plan_run(config, overrides or [], topology or [], wishes, lambda line: log.info("%s", line))
    if as_json:
        print(json.dumps([plan_text.as_json(one) for one in plans], indent=1))
    else:
        print("\n".join(plan_text.describe_plans(plans)))
    if not all(one.step.fits for one in plans):
        raise typer.Exit(DOES_NOT_FIT)
