"""Where a run's numbers go: metrics.jsonl always, TensorBoard if installed, and the terminal."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0  # between lines when the output is no terminal


class MetricsWriter:
    """Appends one JSON object for each logged step; mirrors numbers to TensorBoard when tensorboardX is there."""

    def __init__(self, folder: Path, *, enabled: bool = True):
        self.file, self.enabled, self.board = folder / "metrics.jsonl", enabled, None
        if not enabled:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Forgets what was logged after `step`: those steps are about to be taken again."""
        if not self.enabled or not self.file.exists():
            return
        kept = [line for line in self.file.read_text().splitlines() if _step_of(line) <= step]
        self.file.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, values: dict) -> None:
        """One line: the step and its values."""
        if not self.enabled:
            return
        with self.file.open("a") as handle:
            handle.write(json.dumps({"step": step, **values, **peak_memory()}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(name, value, step)

    def images(self, step: int, files: Sequence[Path]) -> None:
        """Mirrors pictures that were written at a step to TensorBoard, under the names of their files."""
        for file in files if self.board is not None else ():
            self.board.add_image(f"samples/{file.stem}", np.asarray(Image.open(file)), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self.board is not None:
            self.board.close()


def peak_memory() -> dict[str, int]:
    """The most bytes that one of this process's devices has held so far; nothing where they do not tell (CPU)."""
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return {"memory/peak_bytes": max(held)} if any(held) else {}


def _step_of(line: str) -> float:
    """The step of a line; a line cut off by a crash counts as never written."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


class ProgressLine:
    """A bar on a terminal, a plain line every few seconds elsewhere: step, loss, it/s, time left."""

    def __init__(self, start: int, steps: int, *, enabled: bool = True):
        self.start, self.steps, self.enabled = start, steps, enabled
        self.began = self.said = time.monotonic()
        self.bar = None
        if enabled and sys.stdout.isatty():
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self.bar = Progress(*columns, TimeRemainingColumn())
            self.task = self.bar.add_task("training", total=steps, completed=start, note="")
            self.bar.start()

    def update(self, step: int, loss: float | None) -> None:
        """Called after each step; `loss` as far as it is known."""
        if not self.enabled:
            return
        now = time.monotonic()
        if step == self.start + 1:
            self.began = now  # the first step compiles and tells nothing of the others
        said = [f"loss {loss:.4f}"] if loss is not None else []
        speed = (step - self.start - 1) / max(now - self.began, 1e-9)
        said += [f"{speed:.2f} it/s"] if speed else []
        if self.bar is not None:
            self.bar.update(self.task, completed=step, note="  ".join(said))
        elif now - self.said >= PLAIN_SECONDS or step == self.steps:
            self.said = now
            said += [f"{(self.steps - step) / speed:.0f} s left"] if speed else []
            print("  ".join([f"step {step}/{self.steps}", *said]), flush=True)

    def close(self) -> None:
        """Gives the terminal back."""
        if self.bar is not None:
            self.bar.stop()
