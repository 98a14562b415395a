"""`jaxbooth bench`: how fast a training step is here."""

from pathlib import Path
from typing import Annotated

import typer

FAILED = 1  # some row has no figures, and memory was not the reason

Bases = Annotated[
    list[str], typer.Option(help="sd15, sd21, sdxl, pocket or a folder; of each the sizes alone are read.")
]
Several = "Give it again, or several with commas between them."


def bench(
    base: Bases = ["pocket"],  # noqa: B006 (typer's way)
    method: Annotated[list[str], typer.Option(help=f"dreambooth or lora (rank 16). {Several}")] = ["dreambooth"],  # noqa: B006
    batch: Annotated[list[str], typer.Option(help=f"Subject rows; as many class rows. {Several}")] = ["4"],  # noqa: B006
    resolution: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the base's own.")] = None,
    dtype: Annotated[str, typer.Option(help="Compute dtype: float32 or bfloat16.")] = "float32",
    remat: Annotated[str, typer.Option(help="What is computed again: none, transformers or layers.")] = "none",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 3,
    vs: Annotated[str | None, typer.Option(help="diffusers: PyTorch's step beside ours, and the ratio.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each program, in turns.")] = 1,
    loop: Annotated[
        bool, typer.Option("--loop", help="The training loop too, and what it costs over a bare jitted step.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Time the training step on this machine, with random weights; each figure in a process of its own."""
    from jaxbooth.bench import OUT_OF_MEMORY
    from jaxbooth.bench.table import table, write_report
    from jaxbooth.bench.turns import cases_of, check_rival, measure_all
    from jaxbooth.run_folder import check_writable

    if json is not None:
        check_writable(json.parent, "--json")
    check_rival(vs)
    cases = cases_of(_split(base), _split(method), _split(batch), resolution, dtype, remat, steps, warmup)

    def told(rows) -> None:
        if json is not None:
            write_report(json, rows, vs)
        print("\n".join(table(rows[-1:]).splitlines()[0 if len(rows) == 1 else 1 :]), flush=True)

    rows = measure_all(cases, vs, rounds, loop, told)
    if len(rows) > 1:
        print(f"\n{table(rows)}")
    if any(figure.problem not in (None, OUT_OF_MEMORY) for row in rows for figure in row.figures):
        raise typer.Exit(FAILED)


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
