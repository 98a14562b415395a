import os
import signal
import threading

import pytest
from program_runner import resumed_step

from jaxbooth.errors import PREEMPTED
from jaxbooth.training.checkpoint_folder import CheckpointFolder
from jaxbooth.training.preemption import Preemption


def test_nothing_is_reached_without_a_signal():
    with Preemption() as preemption:
        assert not any(preemption.reached(step) for step in range(3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered(number):
    with Preemption() as preemption:
        os.kill(os.getpid(), number)
        assert preemption.reached(5) and preemption.reached(6)


def test_a_second_sigterm_changes_nothing():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)


def test_a_second_ctrl_c_interrupts():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_from_before_come_back_also_after_an_exception():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), Preemption():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_ctrl_c_that_the_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.reached(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_says_that_signals_are_not_noticed(caplog):
    def use():
        with Preemption() as preemption:
            preemption.reached(1)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "Not in the main thread" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_program_told_to_stop_commits_its_step_though_told_again_while_saving(start, tmp_path, number):
    program = start(tmp_path, "--wait-for-signal", "--megabytes", 32)
    program.wait_for("restored 0")
    program.process.send_signal(number)
    for found in program.process.stdout:
        if found.startswith("saved"):
            break
    program.process.send_signal(signal.SIGTERM)  # the save is still being written
    code, _ = program.finish()
    step = int(found.split()[1])
    assert code == PREEMPTED == 75
    assert CheckpointFolder(tmp_path, read_only=True).finished() == [step]
    assert resumed_step(tmp_path, "--megabytes", 32) == step


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_two_processes_of_which_one_is_told_to_stop_commit_the_same_step(start_two, tmp_path, told):
    pair = start_two(tmp_path, "--wait-for-signal")
    for program in pair:
        program.wait_for("restored 0")
    pair[told].process.send_signal(signal.SIGTERM)
    results = [program.finish() for program in pair]
    assert [code for code, _ in results] == [PREEMPTED, PREEMPTED]
    (step,) = CheckpointFolder(tmp_path, read_only=True).finished()
    assert all(f"saved {step}" in lines for _, lines in results)
    for program in start_two(tmp_path, "--until", 0):
        program.wait_for(f"restored {step}")
        assert program.finish()[0] == 0
