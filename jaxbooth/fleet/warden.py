"""Runs one command so that nothing of it outlives the supervisor: `python -I -S warden.py COMMAND...`.

A process of its own between the supervisor and the command, because
  * the kernel kills a child with its parent (PR_SET_PDEATHSIG), but not the child's children: worker pools would stay;
  * that must be asked for between fork and exec, where Python code is safe in a process without threads only, and the
    supervisor's process may have some (Ray's has many).

The command leads a process group. Its end, or the end of standard input (the supervisor closes it or dies, by SIGKILL
too), ends the whole group and whatever else descends from it. SIGTERM goes to the command alone: it may need its
workers to save. Exit code: the command's, or 128 + n after signal n. Imports nothing but the standard library.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
REAP_S = 10.0


def main(command: list[str]) -> int:
    """Runs the command to its end or to that of standard input, and returns an exit code."""
    awake = _wake_on_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become our children, and so can be found
    terminate = []
    signal.signal(signal.SIGTERM, lambda *_: terminate.append(True))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_parent)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error}", file=sys.stderr, flush=True)
        return 127
    child, status = process.pid, None  # the object is kept: its end would collect the exit code
    while status is None:
        if terminate:
            terminate.clear()
            os.kill(child, signal.SIGTERM)
        readable, _, _ = select.select([0, awake], [], [])
        if 0 in readable:
            break
        os.read(awake, 4096)
        status = _reap().get(child)
    status = _end_all(child, status)
    return 128 + signal.SIGKILL if status is None else _exit_code(status)


def _wake_on_signals() -> int:
    """A pipe that can be read from when a signal has arrived."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGCHLD, signal.SIGINT):  # handled, not ignored: the command would inherit that
        signal.signal(number, lambda *_: None)
    return reader


def _reap() -> dict[int, int]:
    """Wait statuses of the children that have ended; raises ChildProcessError when there are no children."""
    ended = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if ended:
                return ended
            raise
        if pid == 0:
            return ended
        ended[pid] = status


def _end_all(child: int, status: int | None) -> int | None:
    """Kills the group and every other descendant until none is left; returns the status of the command."""
    deadline = time.monotonic() + REAP_S  # a process that hangs in the kernel cannot be waited for
    while time.monotonic() < deadline:
        with suppress(OSError):  # nobody is left in it
            os.killpg(child, signal.SIGKILL)
        for pid in _children():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            status = _reap().get(child, status)
        except ChildProcessError:
            break
        time.sleep(0.005)
    return status


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []  # not Linux: the group alone


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
