"""Where the wall time of a run goes: what part of it trained, and what the rest was spent on.

Read off the host's clock alone: the device is waited for on this account only before a probe or a preview. The host
runs ahead of it, so seconds that it spends on the next batch while a step is computed count as data although nothing
was lost by them: the share of training is rather told too low than too high.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

COMPILE, DATA, CHECKPOINT, OTHER = "compile", "data", "checkpoint", "other"
PARTS = ("startup", COMPILE, DATA, CHECKPOINT, OTHER)
PROBE, PREVIEW = "probe", "preview"  # parts that only runs have that do such a thing


class Goodput:
    """Adds up a run's seconds by what they went to; what has no name of its own is training.

    startup      until the loop begins: loading, encoding pictures, drawing class pictures
    compile      the first step's call, which traces and compiles
    data         making batches and handing them to the device
    checkpoint   restoring and saving
    other        writing metrics and progress
    probe        the loss of fixed rows (training/probe.py)
    preview      pictures drawn between steps

    Looks of early stopping count as training: whoever waits for one waits for the steps before it, too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._began = clock, clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def training_begins(self) -> None:
        """Everything so far that has no name was the start."""
        self._seconds["startup"] += self._clock() - self._began - sum(self._seconds.values())

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Counts what is done inside; parts do not nest."""
        began = self._clock()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + self._clock() - began

    @property
    def aside(self) -> float:
        """Seconds of probes and previews so far: between steps, and no part of any."""
        return sum(self._seconds.get(part, 0.0) for part in (PROBE, PREVIEW))

    def values(self) -> dict[str, float]:
        """Seconds since the run's process began, as metrics; `time/goodput` is the share in which steps were taken."""
        total = self._clock() - self._began
        training = total - sum(self._seconds.values())
        named = {f"time/{part}_s": seconds for part, seconds in self._seconds.items()}
        return named | {"time/total_s": total, "time/goodput": training / total if total else 0.0}
