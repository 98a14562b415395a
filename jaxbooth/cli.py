"""The `jaxbooth` command."""

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from jaxbooth.cli_bench import bench
from jaxbooth.cli_evaluate import evaluate
from jaxbooth.cli_fleet import fleet_app
from jaxbooth.cli_plan import plan
from jaxbooth.cli_report import report, study_app

log = logging.getLogger(__name__)
app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
config_app = typer.Typer(no_args_is_help=True, help="Look at configurations.")
app.add_typer(config_app, name="config")
app.add_typer(fleet_app, name="fleet")
app.add_typer(study_app, name="study")
app.command()(bench)
app.command()(evaluate)
app.command()(plan)
app.command()(report)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.steps=100 subjects.0.images=photos/dog")
]
Best = Annotated[
    bool, typer.Option("--best", help="Of a run with train.probe: its checkpoint of the lowest probe, not the last.")
]

EXIT_BAD_INPUT = 2


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done; train and write nothing.")
    ] = False,
) -> None:
    """Teach a base model a subject. To resume, run the same command again."""
    from jaxbooth import distributed
    from jaxbooth.config import load

    loaded = load(config, overrides or [])
    distributed.start()
    from jaxbooth.prepare import prepare
    from jaxbooth.summary import announce, describe

    prepared = prepare(loaded)
    if dry_run:
        print(describe(prepared))
        return
    from jaxbooth.run import train_run

    for line in announce(prepared):
        log.info("%s", line)
    train_run(prepared)
    run = prepared.run
    if (sheet := run.path / "contact_sheet.png").is_file():
        print(f"pictures: {sheet}")
    if loaded.export:
        print(f"adapter: {run.adapter}" if loaded.method.has_adapter else f"pipeline: {run.pipeline}")


@app.command()
def sample(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, a pipeline folder, a hub id, or pocket.")
    ],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    num: Annotated[int, typer.Option(min=1, help="Pictures.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance; 1 = off.")] = 7.5,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Picture i is drawn from fold_in(seed, i).")] = 0,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    sampler: Annotated[str, typer.Option(help="ddim, euler, dpmpp_2m or euler_ancestral.")] = "ddim",
    strength: Annotated[float, typer.Option(help="Of an adapter: 0 = the base, 1 = as trained.")] = 1.0,
    best: Best = False,
) -> None:
    """Draw pictures; none that is there is overwritten."""
    from jaxbooth.previews import next_files, write_images
    from jaxbooth.run_folder import check_writable
    from jaxbooth.trained import load_any

    check_writable(out, "--out")
    sd = load_any(source, strength, best)
    files = next_files(out, num)
    images = sd.generate(
        [prompt] * num, seed=seed, num_steps=steps, guidance_scale=guidance, negative_prompt=negative, sampler=sampler
    )
    write_images(images, files)
    print("\n".join(map(str, files)))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or pocket.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    format: Annotated[
        str,
        typer.Option(
            help="diffusers (a whole pipeline), merged, peft-lora, kohya-lora, ti, a1111-ti, custom-diffusion or "
            "perfusion, as far as the run's method has it."
        ),
    ] = "diffusers",
    strength: Annotated[float, typer.Option(help="Of an adapter: 0 = the base, 1 = as trained.")] = 1.0,
    dtype: Annotated[
        str | None, typer.Option(help="float16, float32 or bfloat16; default: a pipeline's own, an adapter's float32.")
    ] = None,
    best: Best = False,
) -> None:
    """Write what was trained in the files of other programs, with a model card."""
    from jaxbooth.trained import export_run

    print(export_run(run, out, format, strength, dtype, best))


@app.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN RUN... OUT", help="Two runs or more, then a new folder.")],
    how: Annotated[
        str | None, typer.Option(help="sum, constrained, least-squares or gating; default: what suits the method.")
    ] = None,
    strength: Annotated[list[float] | None, typer.Option(help="Of each run, in their order; give it again.")] = None,
) -> None:
    """Put several learned subjects into one model: "my dog and my cat"."""
    from jaxbooth.errors import MethodError
    from jaxbooth.merge import merge_runs

    if len(paths) < 3:
        raise MethodError("merge takes two runs or more, then a new folder: jaxbooth merge RUN_A RUN_B OUT")
    print(merge_runs(paths[:-1], paths[-1], how, strength))


@app.command()
def prior(config: ConfigPath, overrides: Overrides = None) -> None:
    """Draw the prior (class) pictures of a configuration; only missing ones are drawn."""
    from jaxbooth import distributed
    from jaxbooth.config import load

    loaded = load(config, overrides or [])
    distributed.start()
    from jaxbooth.run import draw_prior

    print("\n".join(str(path) for path in draw_prior(loaded)))


@config_app.command()
def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved configuration."""
    from jaxbooth.config import dump, load

    print(dump(load(config, overrides or [])), end="")


@config_app.command()
def schema() -> None:
    """Print the JSON schema, for editors."""
    from jaxbooth.config import Config

    print(json.dumps(Config.model_json_schema(), indent=1))


def main() -> None:
    """Entry point: input errors print without a traceback, exit code 2; a preempted run exits with 75."""
    os.umask(0o077)  # photos of people and what is learned of them are the user's own
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "httpx", "orbax", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    code = _run()
    sys.stdout.flush()
    if code and _is_distributed():
        # A normal exit would wait for the other hosts in JAX's shutdown barrier.
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    from jaxbooth.errors import PREEMPTED, JaxboothError, Preempted

    try:
        code = app(standalone_mode=False)  # of `typer.Exit`, which does not come as an exception here
    except JaxboothError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Preempted as note:
        print(note, file=sys.stderr)
        return PREEMPTED
    except typer.Abort:
        return 1
    except Exception as error:
        return _other(error)
    return code if isinstance(code, int) else 0


def _other(error: Exception) -> int:
    if hasattr(error, "format_message"):  # usage errors of the command line
        print(f"error: {error.format_message()}", file=sys.stderr)
        return EXIT_BAD_INPUT
    traceback.print_exc()
    return 1


def _is_distributed() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
