"""What becomes of a pack when its supervisor gets a signal, or is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_supervisor import FAMILY, SAVES_ON_REQUEST, STEPS, lives, read_pids, wait_until

import jaxbooth

SUPERVISOR = """
import sys
from pathlib import Path
from jaxbooth.fleet.supervisor import run_child
folder = Path(sys.argv[1])
program = (folder / "program.py").read_text()
result = run_child([sys.executable, "-S", "-c", program, folder / "step", folder], log=folder / "log",
                   step_file=folder / "step", startup_timeout_s=60, step_timeout_s=60)
print(result.exit_code, result.kind, result.stopped)
"""


@pytest.fixture
def supervise(tmp_path):
    """`supervise(program)` starts a process that supervises Python code; killed at the end with all below it."""
    started = []

    def supervise(program: str, prelude: str = "") -> subprocess.Popen:
        (tmp_path / "program.py").write_text(program)
        environment = os.environ | {"PYTHONPATH": str(Path(jaxbooth.__file__).parents[1])}
        arguments = [sys.executable, "-c", prelude + SUPERVISOR, str(tmp_path)]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield supervise
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on_and_the_child_saves(supervise, tmp_path, number):
    supervised = supervise(SAVES_ON_REQUEST)
    wait_until((tmp_path / "step").exists)
    supervised.send_signal(number)
    said, _ = supervised.communicate(timeout=20)
    assert said == "75 preempted True\n" and (tmp_path / "saved").exists()


def test_a_second_sigterm_does_not_cut_the_save_short(supervise, tmp_path):
    supervised = supervise(SAVES_ON_REQUEST)
    wait_until((tmp_path / "step").exists)
    supervised.send_signal(signal.SIGTERM)
    wait_until(lambda: (tmp_path / "step").read_text() == "saving")
    supervised.send_signal(signal.SIGTERM)
    said, _ = supervised.communicate(timeout=20)
    assert said == "75 preempted True\n" and (tmp_path / "saved").exists()


def test_a_second_ctrl_c_ends_everything_at_once(supervise, tmp_path):
    supervised = supervise(
        FAMILY + "signal.signal(signal.SIGTERM, lambda *_: step.write_text('heard'))\nwhile 1: time.sleep(1)"
    )
    pids = read_pids(tmp_path, 4)
    supervised.send_signal(signal.SIGINT)
    wait_until((tmp_path / "step").exists)
    supervised.send_signal(signal.SIGINT)
    assert supervised.wait(20) == -signal.SIGINT
    assert not any(lives(pid) for pid in pids)


def test_the_drivers_own_handler_hears_the_signal_too(supervise, tmp_path):
    prelude = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True))\n"
    supervised = supervise(SAVES_ON_REQUEST, prelude)
    wait_until((tmp_path / "step").exists)
    supervised.send_signal(signal.SIGTERM)
    assert supervised.communicate(timeout=20)[0] == "heard\n75 preempted True\n"


def test_when_the_supervisor_is_killed_nothing_of_the_pack_lives_on(supervise, tmp_path):
    supervised = supervise(FAMILY + "time.sleep(100)")
    pids = read_pids(tmp_path, 4)
    assert all(lives(pid) for pid in pids)
    supervised.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids), 5)


def warden_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_when_the_warden_is_killed_the_pack_goes_with_it_and_that_is_infra(supervise, tmp_path):
    # The daemon left the session: without the warden nobody can tell that it belongs here.
    supervised = supervise(FAMILY.replace('child("daemon", os.setsid)', "") + "time.sleep(100)")
    pids = read_pids(tmp_path, 3)
    os.kill(warden_of(int((tmp_path / "command.pid").read_text())), signal.SIGKILL)
    assert supervised.communicate(timeout=20)[0] == "137 infra False\n"
    assert not any(lives(pid) for pid in pids)


def test_the_command_goes_too_when_neither_supervisor_nor_warden_can_do_anything_for_it(supervise, tmp_path):
    supervised = supervise(STEPS + "import os; (folder / 'x.pid').write_text(str(os.getpid())); time.sleep(100)")
    (pid,) = read_pids(tmp_path, 1)
    warden = warden_of(pid)
    os.kill(warden, signal.SIGSTOP)
    supervised.kill()
    os.kill(warden, signal.SIGKILL)
    wait_until(lambda: not lives(pid), 5)


def test_when_the_command_is_killed_from_outside_its_workers_go_too(supervise, tmp_path):
    supervised = supervise(FAMILY + "time.sleep(100)")
    pids = read_pids(tmp_path, 4)
    os.kill(int((tmp_path / "command.pid").read_text()), signal.SIGKILL)
    assert supervised.communicate(timeout=20)[0] == "137 infra False\n"
    assert not any(lives(pid) for pid in pids)
