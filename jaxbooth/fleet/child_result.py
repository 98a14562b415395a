"""How a pack's process ended, and whose fault that was: the exit codes of a fleet."""

import signal
from dataclasses import dataclass
from typing import Literal

from jaxbooth.errors import PREEMPTED

Kind = Literal["done", "data", "broken", "infra", "preempted"]

BAD_USAGE, BAD_DATA = 64, 65  # sysexits.h: EX_USAGE, EX_DATAERR; running it again changes nothing
WATCHDOG = 70  # sysexits.h: EX_SOFTWARE; it was alive and got no further


@dataclass(frozen=True)
class ChildResult:
    """What the supervisor found when nothing of the child was left.

    Attributes:
        exit_code: 0-255 as a shell shows it, 128 + n if signal n killed it; 70 if the watchdog did.
        kind: See `kind_of`.
        reason: One line for a person; empty if it is done.
        log_tail: The end of what it printed, without secrets.
        seconds: From start to end.
        stopped: This supervisor was asked to stop: no other pack should be started.
    """

    exit_code: int
    kind: Kind
    reason: str
    log_tail: str
    seconds: float
    stopped: bool = False


def kind_of(exit_code: int) -> Kind:
    """Sorts an exit code.

    Returns:
        "done"; "data": bad configuration or data, never run again; "preempted": has saved, run again, not counted;
        "infra": killed by a signal, which aborts of JAX and of the driver are too; "broken": any other.
    """
    if exit_code == 0:
        return "done"
    if exit_code in (BAD_USAGE, BAD_DATA):
        return "data"
    if exit_code == PREEMPTED:
        return "preempted"
    return "infra" if exit_code < 0 or signal_of(exit_code) else "broken"


def signal_of(exit_code: int) -> str | None:
    """Returns the name of the signal that an exit code such as 137 stands for."""
    try:
        return signal.Signals(-exit_code if exit_code < 0 else exit_code - 128).name
    except ValueError:
        return None


def describe(exit_code: int, log_tail: str) -> str:
    """Says in a line why a process ended, with the last that it said: that is where Python names its exception."""
    if exit_code == 0:
        return ""
    name = signal_of(exit_code)
    said = next((line.strip() for line in reversed(log_tail.splitlines()) if line.strip()), "nothing")
    return f"{f'killed by {name}' if name else f'exit code {exit_code}'}; its log ends: {said}"
