import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from jaxbooth.fleet import supervisor
from jaxbooth.fleet.child_result import kind_of
from jaxbooth.fleet.supervisor import run_child


@pytest.fixture
def run(tmp_path):
    """`run(program)` runs Python code; its first argument is the step file, its second a folder."""

    def run(program: str, **options):
        options = {"startup_timeout_s": 30, "step_timeout_s": 30} | options
        return run_child(
            [sys.executable, "-S", "-c", program, tmp_path / "step", tmp_path],
            log=tmp_path / "logs" / "child.log", step_file=tmp_path / "step", **options,
        )  # fmt: skip

    return run


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(happened, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_pids(folder: Path, number: int) -> list[int]:
    """Waits for files NAME.pid and returns what is in them."""
    wait_until(lambda: len([file for file in folder.glob("*.pid") if file.read_text()]) == number)
    return [int(file.read_text()) for file in folder.glob("*.pid")]


STEPS = """
import pathlib, sys, time
step, folder = map(pathlib.Path, sys.argv[1:])
def walk(steps, pause):
    for number in range(steps):
        step.write_text(str(number))
        time.sleep(pause)
"""

# A command with a worker, a worker in a session of its own, and one whose parent is dead.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
step, folder = map(pathlib.Path, sys.argv[1:])
def note(name):
    (folder / f".{name}").write_text(str(os.getpid()))
    (folder / f".{name}").rename(folder / f"{name}.pid")
def child(name, then=lambda: None):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        then()
        note(name)
        time.sleep(100)
child("worker")
child("daemon", os.setsid)
child("orphan", lambda: os.fork() and os._exit(0))
note("command")
"""


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, "done"), (64, "data"), (65, "data"), (75, "preempted"), (1, "broken"), (2, "broken"), (70, "broken"),
     (127, "broken"), (255, "broken"), (134, "infra"), (137, "infra"), (139, "infra"), (143, "infra"), (-6, "infra"),
     (-9, "infra"), (-11, "infra")],
)  # fmt: skip
def test_exit_codes_are_sorted(code, kind):
    assert kind_of(code) == kind


def test_a_good_end(run):
    result = run("print('hello')")
    assert (result.exit_code, result.kind, result.reason, result.log_tail) == (0, "done", "", "hello")
    assert 0 < result.seconds < 5 and not result.stopped


@pytest.mark.parametrize(
    ("program", "code", "kind", "reason"),
    [
        ("raise ValueError('no such noun')", 1, "broken", "exit code 1; its log ends: ValueError: no such noun"),
        ("import sys; sys.exit(65)", 65, "data", "exit code 65; its log ends: nothing"),
        ("import os; os.abort()", 134, "infra", "killed by SIGABRT; its log ends: nothing"),
        ("import os; os.kill(os.getpid(), 11)", 139, "infra", "killed by SIGSEGV; its log ends: nothing"),
        (
            "import os; print('x', flush=True); os.kill(os.getpid(), 9)",
            137,
            "infra",
            "killed by SIGKILL; its log ends: x",
        ),
    ],
)
def test_a_bad_end_is_told_with_its_reason(run, program, code, kind, reason):
    result = run(program)
    assert (result.exit_code, result.kind, result.reason) == (code, kind, reason)


def test_a_command_that_there_is_not_is_told(tmp_path):
    result = run_child(
        ["/nowhere"], log=tmp_path / "log", step_file=tmp_path / "step", startup_timeout_s=9, step_timeout_s=9
    )
    assert (result.exit_code, result.kind) == (127, "broken") and "/nowhere cannot be run" in result.reason


def test_the_environment_is_the_one_given(run):
    result = run("import os; print(sorted(os.environ))", env={"ONLY": "this", "LC_CTYPE": "C.UTF-8"})
    assert result.log_tail == "['LC_CTYPE', 'ONLY']"


def test_steps_keep_it_alive_beyond_both_timeouts(run):
    result = run(STEPS + "walk(12, 0.2)", startup_timeout_s=2, step_timeout_s=2)
    assert result.kind == "done" and result.seconds > 2.3


@pytest.mark.parametrize(
    ("program", "timeouts", "reason"),
    [
        ("time.sleep(60)", (0.5, 0.1, 20), "watchdog: no first step for 0.5 s"),
        ("walk(3, 0.2); time.sleep(60)", (20, 0.5, 20), "watchdog: no step for 0.5 s"),
        ("walk(2, 0.3); step.unlink(); time.sleep(60)", (20, 0.5, 20), "watchdog: no step for 0.5 s"),
        ("walk(1000, 0.1)", (20, 5, 1), "watchdog: not done after 1 s"),
    ],
)
def test_the_watchdog_ends_what_makes_no_progress(run, program, timeouts, reason):
    names = ("startup_timeout_s", "step_timeout_s", "total_timeout_s")
    result = run(STEPS + program, **dict(zip(names, timeouts, strict=True)))
    assert (result.exit_code, result.kind, result.reason) == (70, "broken", reason)


def test_compiling_may_take_longer_than_a_step(run):
    result = run(STEPS + "time.sleep(0.6); walk(2, 0.1)", startup_timeout_s=20, step_timeout_s=0.4)
    assert result.kind == "done"


def test_the_next_pack_may_take_as_long_to_start_as_the_first(run):
    program = STEPS + "walk(2, 0.1); step.write_text('starting pack 1'); time.sleep({pause}); walk(2, 0.1)"
    slow = run(program.format(pause=1), startup_timeout_s=20, step_timeout_s=0.6)
    assert slow.kind == "done"
    stuck = run(program.format(pause=60), startup_timeout_s=1, step_timeout_s=0.6)
    assert (stuck.kind, stuck.reason) == ("broken", "watchdog: no first step for 1 s")


def test_a_step_file_from_before_is_no_step_of_this_run(run, tmp_path):
    (tmp_path / "step").write_text("7")
    result = run("import time; time.sleep(60)", startup_timeout_s=0.3, step_timeout_s=0.1)
    assert result.reason == "watchdog: no first step for 0.3 s"


def test_the_step_files_time_may_jump(run):
    program = STEPS + "import os\nfor number in range(6): walk(1, 0.1); os.utime(step, (number % 2 * 4e9,) * 2)"
    assert run(program, step_timeout_s=1).kind == "done"


@pytest.mark.parametrize(
    "blocked", ["signal.signal(signal.SIGTERM, signal.SIG_IGN)", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_what_does_not_heed_sigterm_is_killed(run, monkeypatch, blocked):
    monkeypatch.setattr(supervisor, "HANG_GRACE_S", 0.3)
    result = run(f"import os, signal, time; {blocked}; time.sleep(60)", startup_timeout_s=0.5)
    assert (result.exit_code, result.kind) == (70, "broken") and result.seconds < 5


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "time.sleep(60)"], ids=["done", "killed", "hangs"])
def test_nothing_of_its_family_is_left(run, tmp_path, monkeypatch, end):
    monkeypatch.setattr(supervisor, "HANG_GRACE_S", 0.1)
    born = "while len(list(folder.glob('*.pid'))) < 4: time.sleep(0.01)\nstep.write_text('0')\n"
    run(FAMILY + born + end, step_timeout_s=0.3)
    assert not any(lives(pid) for pid in read_pids(tmp_path, 4))


def test_the_log_is_private_and_keeps_earlier_runs_whose_lines_are_not_in_the_tail(run, tmp_path):
    run("print('first')")
    result = run("import sys; print('second'); print('error', file=sys.stderr)")
    assert sorted(result.log_tail.splitlines()) == ["error", "second"]
    assert len((tmp_path / "logs" / "child.log").read_text().splitlines()) == 3
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "logs" / "child.log").stat().st_mode & 0o777 == 0o600


def test_the_tail_has_forty_lines_none_very_long_and_the_last_state_of_a_progress_bar(run):
    result = run(
        r"for i in range(100): print(i)"
        "\n"
        r"print('x' * 10**5); print('1%\r50%\r100%'); print(b'\xff'.decode('latin'))"
    )
    lines = result.log_tail.splitlines()
    assert len(lines) == 40 and lines[-2] == "100%" and len(lines[-3]) < 600


def test_a_progress_bar_that_never_ended_its_line_leaves_its_last_state(run):
    result = run(r"for i in range(100_000): print(f'step {i}', end='\r')")
    assert result.log_tail == "step 99999"


def test_secrets_are_taken_out_of_the_tail_and_the_reason(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "outer-secret")
    secrets = {
        "HF_TOKEN": "hf_abc",
        "hf_token_2": "hf_abcdef",
        "DB_PASSWORD": "hunter2",
        "MY_SECRET": "line one\nline two",
    }
    env = os.environ | secrets | {"TOKENIZERS_PARALLELISM": "false", "KEYLESS": "1"}
    program = (
        "import os\nfor name in {!r}: print(os.environ[name])\nprint('false 1')\nraise OSError(os.environ['HF_TOKEN'])"
    )
    result = run(program.format([*secrets, "WANDB_API_KEY"]), env=env)
    for secret in ("outer-secret", "hf_abc", "hunter2", "line one", "line two"):
        assert secret not in result.log_tail + result.reason
    assert "false 1" in result.log_tail and result.reason.endswith("OSError: [HF_TOKEN]")
    assert "[hf_token_2]" in result.log_tail.splitlines()


SAVES_ON_REQUEST = (
    STEPS
    + """
import os, signal
def save(*_):
    step.write_text("saving")
    time.sleep(0.3)
    (folder / "saved").write_text("")
    os._exit(75)
signal.signal(signal.SIGTERM, save)
walk(1000, 0.02)
"""
)


def test_a_driver_that_should_stop_lets_the_child_save(run, tmp_path):
    result = run(SAVES_ON_REQUEST, should_stop=(tmp_path / "step").exists)
    assert (result.exit_code, result.kind, result.stopped) == (75, "preempted", True)
    assert (tmp_path / "saved").exists()


NEEDS_A_WORKER_TO_SAVE = (
    STEPS
    + """
import os, signal, subprocess
worker = subprocess.Popen(["sleep", "100"])
def save(*_):
    time.sleep(0.3)
    os._exit(75 if worker.poll() is None else 1)
signal.signal(signal.SIGTERM, save)
walk(1000, 0.02)
"""
)


def test_its_workers_live_while_it_saves(run, tmp_path):
    assert run(NEEDS_A_WORKER_TO_SAVE, should_stop=(tmp_path / "step").exists).exit_code == 75


@pytest.mark.parametrize("program", [SAVES_ON_REQUEST.replace("0.3", "60"), STEPS + "walk(1000, 0.02)"])
def test_what_could_not_save_in_time_is_preempted_too(run, tmp_path, program):
    result = run(program, should_stop=(tmp_path / "step").exists, stop_grace_s=0.3)
    assert result.kind == "preempted" and result.stopped and result.exit_code in (137, 143)


def test_what_went_because_another_host_was_told_sooner_is_preempted_too(run, tmp_path):
    """JAX ends a process (134) when another of its job has gone, here before its own supervisor has looked."""
    result = run(STEPS + "import os; walk(1, 0); os._exit(134)", should_stop=lambda: False)
    assert (result.kind, result.stopped) == ("infra", False)
    program = STEPS + "import os; walk(1, 0); (folder / 'asked').touch(); os._exit(134)"
    result = run(program, should_stop=(tmp_path / "asked").exists)
    assert (result.kind, result.stopped, result.exit_code in (134, 143)) == ("preempted", True, True)


def test_a_failure_of_its_own_stays_one_when_the_request_came_too_late(run, tmp_path):
    result = run(STEPS + "walk(1, 0); sys.exit(1)", should_stop=lambda: False)
    assert (result.kind, result.stopped) == ("broken", False)


def test_it_works_in_many_threads_at_once(tmp_path):
    def one(number: int):
        folder = tmp_path / str(number)
        folder.mkdir()
        return run_child(
            [sys.executable, "-S", "-c", STEPS + f"walk(3, 0.05); sys.exit({number})", folder / "step", folder],
            log=folder / "log", step_file=folder / "step", startup_timeout_s=30, step_timeout_s=30,
        ).exit_code  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == list(range(8))
    assert threading.active_count() < 5


def test_a_supervisor_leaves_the_signal_handlers_and_file_descriptors_as_they_were(run):
    def state():
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], len(
            os.listdir("/proc/self/fd")
        )

    before = state()
    run("pass")
    assert state() == before
    assert subprocess.run(["true"]).returncode == 0
