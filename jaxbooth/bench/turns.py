"""Measurements one after the other, each in a process of its own, jaxbooth and its rival in turns."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import get_args

from jaxbooth.bench import OUT_OF_MEMORY
from jaxbooth.bench.case import Case, Figure, Program, Row, check_resolution, reference_problem
from jaxbooth.errors import ConfigError, JaxboothError, list_problems
from jaxbooth.types import Remat

RIVAL_PACKAGES = ("torch", "diffusers", "peft")
METHODS, DTYPES = ("dreambooth", "lora"), ("float32", "bfloat16")
VIRTUAL_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")
Measure = Callable[[Case, Program], Figure]


def cases_of(
    bases: Sequence[str], methods: Sequence[str], batches: Sequence[str], resolution: int | None, dtype: str,
    remat: str, steps: int, warmup: int,
) -> list[Case]:  # fmt: skip
    """The table {bases} x {methods} x {batches}.

    Args:
        resolution: Pixels; None: what each base was made for.

    Raises:
        ConfigError: Something of it cannot be measured; all problems are listed.
    """
    problems = [f"--method {name}: {' or '.join(METHODS)}" for name in methods if name not in METHODS]
    problems += [f"--batch {text}: a whole number above 0" for text in batches if not re.fullmatch("[1-9][0-9]*", text)]
    problems += [] if dtype in DTYPES else [f"--dtype {dtype}: {' or '.join(DTYPES)}"]
    problems += [] if remat in (policies := get_args(Remat)) else [f"--remat {remat}: {' or '.join(policies)}"]
    sides = {}
    for base in bases:
        try:
            sides[base] = check_resolution(base, resolution)
        except JaxboothError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(list_problems("this cannot be measured:", problems))
    return [
        Case(
            base=base, method=method, batch=int(batch), resolution=sides[base],
            dtype=dtype, remat=remat, steps=steps, warmup=warmup,
        )
        for base, method, batch in product(bases, methods, batches)
    ]  # fmt: skip


def check_rival(rival: str | None) -> None:
    """Raises ConfigError unless the other program is known and installed."""
    if rival is None:
        return
    if rival != "diffusers":
        raise ConfigError(f"--vs {rival}: only diffusers is known")
    missing = [name for name in RIVAL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--vs diffusers: {', '.join(missing)} cannot be found here. Install: pip install {' '.join(missing)}"
        )


def order(rounds: int, rival: str | None, loop: bool) -> list[Program]:
    """Who is measured when: A B, B A, A B, ..., so that a machine that grows slower is slower for both."""
    programs = ["jaxbooth", *([rival] if rival else []), *(["loop"] if loop else [])]
    return [program for number in range(rounds) for program in (programs if number % 2 == 0 else programs[::-1])]


def measure_all(
    cases: Sequence[Case],
    rival: str | None,
    rounds: int,
    loop: bool,
    told: Callable[[list[Row]], None],
    measure: Measure | None = None,
) -> list[Row]:
    """Measures every case.

    Args:
        rival: Whom to compare with.
        rounds: Processes of each program and case.
        loop: Whether the training loop is measured, too.
        told: Gets all rows after each case, so that a table that is broken off is not lost.
        measure: How one figure comes about; default: in a process of its own.
    """
    rows: list[Row] = []
    for case in cases:
        row = Row(case=case)
        rows.append(row)
        for program in order(rounds, rival, loop):
            if (known := row.of(program)) is None or known.problem is None:  # another process would fail as well
                row.figures.append((measure or in_own_process)(case, program))
        told(rows)
    return rows


def in_own_process(case: Case, program: Program) -> Figure:
    """One figure; where there is none, it says why."""
    given = reference_problem(case) if program == "diffusers" else case.model_dump()
    environment = dict(os.environ)
    # A share of the host's threads each would make ours slow.
    environment["XLA_FLAGS"] = VIRTUAL_DEVICES.sub("", environment.get("XLA_FLAGS", ""))
    done = subprocess.run(
        [sys.executable, "-m", "jaxbooth.bench", program],
        input=json.dumps(given), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode == 0:
        return Figure(**json.loads(done.stdout.splitlines()[-1]))
    if done.returncode == -signal.SIGKILL:  # by a kernel that is short of memory
        return Figure(program=program, problem=OUT_OF_MEMORY)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return Figure(program=program, problem=lines[-1] if lines else f"exit code {done.returncode}")
