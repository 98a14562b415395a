"""Starts `checkpoint_program.py` in process groups of its own and reaps them."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import checkpoint_program

import jaxbooth

DEADLINE_S = 300  # for a program that hangs; none takes a tenth of it


class Program:
    """One run of the program: its lines of output as they come, its errors in a file."""

    def __init__(self, errors: Path, *arguments, devices: int = 8):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(Path(jaxbooth.__file__).parents[1]),
        }
        self.errors = errors
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, checkpoint_program.__file__, *map(str, arguments)],
                stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        self._deadline = threading.Timer(DEADLINE_S, self.kill)
        self._deadline.start()

    def wait_for(self, line: str) -> None:
        """Reads output until a line."""
        for found in self.process.stdout:
            if found.strip() == line:
                return
        raise AssertionError(f"{line!r} never came: {self.errors.read_text()}")

    def finish(self) -> tuple[int, list[str]]:
        """Waits for the end and returns the exit code and the rest of the lines."""
        lines = self.process.stdout.read().splitlines()
        return self.process.wait(), lines

    def kill(self) -> None:
        """Kills the program and its children at once (SIGKILL)."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Leaves nothing behind."""
        self._deadline.cancel()
        self.kill()
        self.process.wait()
        self.process.stdout.close()


def free_port() -> int:
    """Returns a TCP port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def resumed_step(folder: Path, *arguments) -> int:
    """Runs the program again, in this process, for nothing but its check of the newest checkpoint, bit for bit."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = checkpoint_program.main([str(argument) for argument in (folder, "--until", 0, *arguments)])
    assert code == 0, output.getvalue()
    return int(output.getvalue().split()[1])
