"""`jaxbooth fleet ...`: many subjects from one manifest."""

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from jaxbooth.cli_plan import Effort

log = logging.getLogger(__name__)
fleet_app = typer.Typer(no_args_is_help=True, help="Train many subjects from one manifest, each exactly once.")

ManifestPath = Annotated[
    Path,
    typer.Argument(
        metavar="MANIFEST",
        help="subjects.yaml, .jsonl, .csv, concepts_list.json, or a folder with one folder for each subject.",
    ),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="YAML file of a run; its first subject gives defaults.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
PackSize = Annotated[
    int | None,
    typer.Option(min=1, help="Most subjects in one program (16, whole models 1); `fleet plan` finds what fits."),
]
PacksPerProcess = Annotated[int, typer.Option(min=1, help="Packs that one process trains before a fresh one.")]
Root = Annotated[Path | None, typer.Option(help="Folder that no path of the manifest may lead out of.")]
Startup = Annotated[float, typer.Option(help="Seconds until a process's first step, compilation included.")]
StepTimeout = Annotated[float, typer.Option(help="Seconds between two steps before a process counts as stuck.")]

GIVEN_UP = 3  # all settled, some with FAILED.json
NO_ROOM = 3  # planned: no pack fits


@fleet_app.command()
def work(
    manifest: ManifestPath,
    config: ConfigOption,
    out: Out,
    overrides: Overrides = None,
    shard: Annotated[int, typer.Option(min=0, help="Which part of the subjects, from 0.")] = 0,
    num_shards: Annotated[int, typer.Option(min=1, help="Into how many parts they are divided.")] = 1,
    pack_size: PackSize = None,
    packs_per_process: PacksPerProcess = 4,
    root: Root = None,
    startup_timeout: Startup = 3600.0,
    step_timeout: StepTimeout = 600.0,
) -> None:
    """Train the subjects of a shard here, one pack after the other. To resume, run the same command again."""
    from jaxbooth import fleet_run

    fleet = fleet_run.open_fleet(manifest, config, overrides or [], root)
    limits = _limits(fleet, pack_size, packs_per_process, startup_timeout, step_timeout)
    _tell(fleet, fleet_run.work(fleet, out, limits, shard, num_shards), out)


@fleet_app.command()
def run(
    manifest: ManifestPath,
    config: ConfigOption,
    out: Out,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(help="Of a Ray cluster: HOST:PORT or auto; local = a Ray of its own.")
    ] = "local",
    pack_size: PackSize = None,
    packs_per_process: PacksPerProcess = 4,
    root: Root = None,
    startup_timeout: Startup = 3600.0,
    step_timeout: StepTimeout = 600.0,
) -> None:
    """Train all subjects on a Ray cluster (extra [fleet]). To resume, run the same command again."""
    from jaxbooth import fleet_run
    from jaxbooth.fleet.ray_engine import RayEngine

    fleet = fleet_run.open_fleet(manifest, config, overrides or [], root)
    limits = _limits(fleet, pack_size, packs_per_process, startup_timeout, step_timeout)
    with RayEngine(address) as engine:
        outcome = fleet_run.work(fleet, out, limits, engine=engine)
    _tell(fleet, outcome, out)


@fleet_app.command(hidden=True)
def pack(job: Annotated[Path, typer.Argument(help="Written by a driver.")]) -> None:
    """Train the packs of one job: what a driver starts."""
    from jaxbooth import distributed
    from jaxbooth.errors import JaxboothError
    from jaxbooth.fleet.child_result import BAD_DATA

    distributed.start()
    from jaxbooth.pack_run import Job, run_job

    try:
        run_job(Job.model_validate_json(job.read_text()))
    except JaxboothError as error:
        log.error("error: %s", error)
        raise typer.Exit(BAD_DATA) from None


@fleet_app.command()
def status(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    verify: Annotated[bool, typer.Option(help="Read every result and compare its digests.")] = False,
    failed: Annotated[bool, typer.Option(help="Print every subject that was given up, with its reason.")] = False,
) -> None:
    """How far a fleet is; writes OUT/index.html and OUT/summary.json anew."""
    from jaxbooth import fleet_run

    states = fleet_run.status(out, verify)
    count = Counter(state.state for state in states)
    print(", ".join(f"{count[state]} {state}" for state in ("done", "running", "missing", "failed")))
    for state in states:
        if state.state == "failed" and failed:
            print(f"{state.name}: {state.detail}")
    fleet_run.write_report(out)


@fleet_app.command()
def retry(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all that failed.")] = None,
) -> None:
    """Forget failures, so that the next run tries again."""
    from jaxbooth import fleet_run
    from jaxbooth.fleet.store import OutputStore
    from jaxbooth.fleet.upkeep import retry as forget

    names = names or [state.name for state in fleet_run.status(out) if state.state == "failed"]
    for name in forget(OutputStore(out), names):
        print(name)


@fleet_app.command()
def purge(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    force: Annotated[bool, typer.Option(help="Also while a worker is at it.")] = False,
) -> None:
    """Remove everything that was made of these subjects."""
    from jaxbooth import fleet_run

    for name in fleet_run.purge(out, names, force):
        print(name)


def _limits(fleet, pack_size: int | None, packs_per_process: int, startup: float, step: float):
    from jaxbooth.fleet.driver import Limits
    from jaxbooth.fleet_run import pack_sizes

    for note in fleet.manifest.notes:
        log.info("%s", note)
    pack_size = pack_size or (16 if fleet.config.method.has_adapter else 1)
    timeouts = {"startup_timeout_s": startup, "step_timeout_s": step}
    return Limits(pack_sizes(fleet.config, pack_size), packs_per_process, timeouts)


def _tell(fleet, outcome, out: Path) -> None:
    from jaxbooth.errors import PREEMPTED

    print(f"{outcome.done} of {len(fleet.candidates)} subjects done: {out / 'index.html'}")
    for name in outcome.failed[:20]:
        print(f"given up: {name} (jaxbooth fleet status {out} --failed)")
    if outcome.stopped:
        raise typer.Exit(PREEMPTED)
    if outcome.failed:
        raise typer.Exit(GIVEN_UP)


@fleet_app.command()
def plan(
    manifest: ManifestPath,
    config: ConfigOption,
    overrides: Overrides = None,
    topology: Annotated[
        str | None,
        typer.Option(help="TPU slice to plan for, e.g. v5e:2x4; needs libtpu, no TPU. Default: the devices at hand."),
    ] = None,
    pack_size: Annotated[
        int | None, typer.Option(min=1, help="The only size to look at; default: the largest that fits is looked for.")
    ] = None,
    step_seconds: Annotated[
        float | None, typer.Option(min=0, help="Measured seconds of a full pack's step; default: a bound.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Of the whole machine.")] = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0, help="What a step may take of each device; default: all there is.")
    ] = None,
    compile: Annotated[
        bool, typer.Option(help="Ask the compiler, which takes minutes; else --pack-size is taken on trust.")
    ] = True,
    effort: Annotated[
        Effort, typer.Option(help="The compiler's; low: sooner, with other temporaries and bytes than training has.")
    ] = Effort.full,
    root: Root = None,
) -> None:
    """Say what fits and how long it takes, before a machine is rented; reads no weights and trains nothing."""
    from jaxbooth.fleet_plan import plan_fleet, read_fleet
    from jaxbooth.fleet_plan_text import describe_plan
    from jaxbooth.planning.effort import OPTIONS
    from jaxbooth.planning.machine import this_machine

    subjects, settings = read_fleet(manifest, config, overrides or [], root)
    for note in subjects.notes:
        log.info("%s", note)
    machine = this_machine(topology, memory_gib, settings.mesh)
    found = plan_fleet(
        subjects, settings, machine, pack_size=pack_size, ask_compiler=compile, step_seconds=step_seconds,
        price_per_hour=price_per_hour, compiler_options=OPTIONS[effort.value],
    )  # fmt: skip
    print("\n".join(describe_plan(found)))
    if found.size is None:
        raise typer.Exit(NO_ROOM)
