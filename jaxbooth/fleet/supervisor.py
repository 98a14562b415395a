"""Runs one pack in a process of its own and watches it: failures of JAX are aborts and hangs, not exceptions."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxbooth.fleet import private_files, warden
from jaxbooth.fleet.child_result import WATCHDOG, ChildResult, describe, kind_of
from jaxbooth.fleet.log_tail import read_tail

POLL_S = 0.1
HANG_GRACE_S = 10.0  # from SIGTERM to SIGKILL when it makes no progress
STARTING = "starting"  # what the step file begins with while the limit of the first step holds again
STOP_GRACE_S = 120.0  # the same when it was asked to stop: it may have to finish a step and save


def run_child(
    command: Sequence[str],
    *,
    log: Path,
    step_file: Path,
    env: Mapping[str, str] | None = None,
    startup_timeout_s: float,
    step_timeout_s: float,
    total_timeout_s: float | None = None,
    should_stop: Callable[[], bool] | None = None,
    stop_grace_s: float = STOP_GRACE_S,
) -> ChildResult:
    """Runs a command to its end; when this returns, or is left by an exception, nothing of it lives.

    SIGTERM and Ctrl-C reach the command as SIGTERM, if this is the main thread; a second Ctrl-C raises
    KeyboardInterrupt. If this process is killed, so is everything that the command has started.

    Args:
        command: Program and arguments.
        log: Standard output and error are added to it.
        step_file: The command changes its content or time with every step. While it begins with `STARTING`, another
            first step is waited for: the next pack may have class pictures to draw.
        env: The whole environment of the command; default: that of this process.
        startup_timeout_s: Longest time until the step file changes first; compilation is part of it.
        step_timeout_s: Longest time between two changes.
        total_timeout_s: Longest time in all.
        should_stop: Asked often; once true, the command is told to save and stop.
        stop_grace_s: Longest time for that.
    """
    env = dict(os.environ if env is None else env)
    started = time.monotonic()
    with _open_log(log) as output, _Requests(should_stop) as requests:
        start = os.fstat(output).st_size
        watch = _Watch(step_file, startup_timeout_s, step_timeout_s, total_timeout_s)
        with _guarded(command, output, env) as guard:
            reason, told = _until_end(guard, watch, requests, stop_grace_s)
        stopped = requests.stop()
        exit_code = guard.returncode if guard.returncode >= 0 else 128 - guard.returncode
    tail = read_tail(log, start, env)
    kind = kind_of(exit_code)
    if reason:
        exit_code, kind = WATCHDOG, "broken"
    elif (told and kind == "broken") or (stopped and kind == "infra"):
        # It did not get as far as saving, or another host that was told sooner was gone for it: nobody's fault.
        kind = "preempted"
    reason = reason or describe(exit_code, tail)
    return ChildResult(exit_code, kind, reason, tail, time.monotonic() - started, stopped)


def _until_end(
    guard: subprocess.Popen, watch: "_Watch", requests: "_Requests", stop_grace_s: float
) -> tuple[str, bool]:
    """Waits; returns why the child had to be ended, or nothing, and whether it was told to save and stop."""
    deadline, reason, told = math.inf, "", False
    while guard.poll() is None and time.monotonic() < deadline:
        if deadline == math.inf and (reason := watch.complaint()):
            guard.terminate()
            deadline = time.monotonic() + HANG_GRACE_S
        elif deadline == math.inf and requests.stop():
            guard.terminate()
            told, deadline = True, time.monotonic() + stop_grace_s
        time.sleep(POLL_S)
    return reason, told


class _Watch:
    """Watches the step file; an age is measured here, never by the file's own time."""

    def __init__(self, file: Path, startup_s: float, step_s: float, total_s: float | None):
        self._file, self._step_s, self._total_s = file, step_s, total_s
        self._startup_s, self._seen = startup_s, self._signature()
        self._limit_s, self._event = startup_s, "first step"
        self._began = self._changed = time.monotonic()

    def complaint(self) -> str:
        """Says which time limit is over, or nothing."""
        now, signature = time.monotonic(), self._signature()
        if signature not in (self._seen, None):
            self._seen, self._changed = signature, now
            starts = signature[1].startswith(STARTING.encode())
            self._limit_s, self._event = (self._startup_s, "first step") if starts else (self._step_s, "step")
        if now - self._changed > self._limit_s:
            return f"watchdog: no {self._event} for {self._limit_s:g} s"
        if self._total_s is not None and now - self._began > self._total_s:
            return f"watchdog: not done after {self._total_s:g} s"
        return ""

    def _signature(self) -> tuple[int, bytes] | None:
        try:
            return self._file.stat().st_mtime_ns, self._file.read_bytes()[:4096]
        except OSError:
            return None  # between two files, or the file system is away: no sign of life


class _Requests:
    """Remembers that this process was asked to stop, by a signal or by `should_stop`."""

    def __init__(self, should_stop: Callable[[], bool] | None):
        self.stopped = False
        self._should_stop = should_stop or (lambda: False)
        self._before: dict[int, object] = {}

    def stop(self) -> bool:
        """Says whether the child should stop."""
        self.stopped = self.stopped or self._should_stop()
        return self.stopped

    def __enter__(self) -> "_Requests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        second, self.stopped = self.stopped, True
        before = self._before[number]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)  # the driver's own
        elif second and number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def _open_log(log: Path) -> Iterator[int]:
    private_files.make_folder(log.parent)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield output
    finally:
        os.close(output)


@contextmanager
def _guarded(command: Sequence[str], output: int, env: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """The command under a warden in a session of its own; leaving the context ends them and all that they started."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", warden.__file__, *map(str, command)],
        stdin=subprocess.PIPE, stdout=output, stderr=output, env=env, start_new_session=True,
    )  # fmt: skip
    try:
        yield guard
    finally:
        guard.stdin.close()  # what the warden takes as the order to end everything
        with suppress(subprocess.TimeoutExpired):
            guard.wait(2 * warden.REAP_S)
        if guard.poll() is None:
            guard.kill()
            guard.wait()
        if guard.returncode < 0:  # it was killed itself: the command went with it, the command's children did not
            _kill_session(guard.pid)


def _kill_session(session: int) -> None:
    """Kills what is left of a session (Linux); its number is not given to others as long as it has members."""
    for _ in range(100):
        members = [pid for pid in _processes() if _session_of(pid) == session]
        for pid in members:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not members:
            return
        time.sleep(0.01)


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _session_of(pid: int) -> int | None:
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None  # gone
    return None if state in "ZX" else int(session)
