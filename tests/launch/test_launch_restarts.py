"""What starts again after which exit code: 75 always, crashes a few times, bad input never; and what SIGTERM does."""

import os
import signal
import sys
import time

import pytest
from documents import LAUNCH
from effective_commands import PARAMETERS, dry_run_commands, read_calls, run_launch_file, start_launch_file

BAD_INPUT = (2, 64, 65)
GIVEN_UP = 3  # some subjects were given up (FAILED.json), all others are done
CRASHES = (70, 134, 137, 139)
SAVES_ON_SIGTERM = f"""#!{sys.executable}
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("began").touch()
time.sleep(60)
"""


@pytest.fixture
def launched(tmp_path):
    """`launched(name, codes, states="...", **variables)` runs a launch file whose jaxbooth ends with these codes."""

    def run(name, codes, states=None, **variables):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "jaxbooth.codes").write_text("\n".join(map(str, codes)))
        if states is not None:
            (tmp_path / "bin" / "states").write_text("\n".join(states))
        return run_launch_file(LAUNCH / name, tmp_path, **PARAMETERS | variables)

    return run


@pytest.fixture
def stopped(tmp_path):
    """`stopped(name, ask)` starts a launch file, calls `ask(its process)` in the middle and returns code and calls."""

    def run(name, ask, **variables):
        process = start_launch_file(LAUNCH / name, tmp_path, SAVES_ON_SIGTERM, **PARAMETERS | variables)
        try:
            deadline = time.monotonic() + 20
            while not (tmp_path / "began").exists():
                assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
                time.sleep(0.01)
            ask(process)
            process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert (tmp_path / "saved").exists()
        return process.returncode, [call for call in read_calls(tmp_path) if call["program"] in ("scontrol", "gcloud")]

    return run


def tell_it_alone(process):
    process.terminate()


def tell_all(process):
    os.killpg(process.pid, signal.SIGTERM)


# --- one machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", (0, 1, 75, *BAD_INPUT, *CRASHES))
def test_local_hands_the_exit_code_on(launched, code):
    run = launched("local.sh", [code])
    assert run.code == code and len(run.of("jaxbooth")) == 1


@pytest.mark.parametrize("name", ("local.sh", "gke_jobset.yaml", "rayjob.yaml"))
def test_sigterm_reaches_the_program_itself(stopped, name):
    assert stopped(name, tell_it_alone) == (75, [])


# --- Kubernetes: what the pod ends with is what JobSet and KubeRay go by ----------------------------------------------


@pytest.mark.parametrize("name", ("gke_jobset.yaml", "rayjob.yaml"))
@pytest.mark.parametrize("code", (0, 1, GIVEN_UP, 75, *BAD_INPUT, *CRASHES))
def test_pod_hands_the_exit_code_on_but_given_up_subjects_are_no_failure_of_it(launched, name, code):
    run = launched(name, [code])
    assert run.code == (0 if code == GIVEN_UP else code) and len(run.of("jaxbooth")) == 1


# --- SLURM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", (75, *CRASHES))
def test_slurm_requeues_its_own_task_of_the_array(launched, code):
    run = launched("slurm.sbatch", [code])
    assert run.code == code and run.of("scontrol") == [["requeue", "70_3"]]


@pytest.mark.parametrize("code", (0, 1, GIVEN_UP, *BAD_INPUT))
def test_slurm_does_not_requeue_what_is_done_or_will_fail_again(launched, code):
    run = launched("slurm.sbatch", [code])
    assert run.code == code and not run.of("scontrol")


def test_slurm_gives_up_on_crashes_but_not_on_preemptions(launched):
    assert not launched("slurm.sbatch", [137], SLURM_RESTART_COUNT="10").of("scontrol")


def test_slurm_requeues_a_saved_task_any_number_of_times(launched):
    assert launched("slurm.sbatch", [75], SLURM_RESTART_COUNT="99").of("scontrol")


def test_slurm_step_saves_when_it_alone_is_told(stopped):
    def time_is_up(process):
        # Told are the children of the batch shell, which is what SLURM does without B:.
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        with open(children) as file:
            for child in file.read().split():
                os.kill(int(child), signal.SIGTERM)

    code, calls = stopped("slurm.sbatch", time_is_up)
    assert code == 75 and [call["words"] for call in calls] == [["requeue", "70_3"]]


def test_slurm_script_outlives_scancel_until_the_step_has_saved_and_leaves_the_queue_alone(stopped):
    assert stopped("slurm.sbatch", tell_all) == (75, [])


def test_slurm_refuses_a_part_of_an_array_without_its_length(launched):
    run = launched("slurm.sbatch", [], SLURM_ARRAY_TASK_COUNT="2")
    assert run.code == 64 and "set NUM_SHARDS" in run.said and not run.calls


def test_slurm_takes_proxies_away_and_hands_its_cpus_to_the_step(launched):
    run = launched("slurm.sbatch", [0], https_proxy="http://proxy:1", HTTP_PROXY="x", SLURM_CPUS_PER_TASK="8")
    env = run.calls[-1]["env"]
    assert not [name for name in env if name.lower().endswith("_proxy")] and env["SRUN_CPUS_PER_TASK"] == "8"


# --- SkyPilot ---------------------------------------------------------------------------------------------------------


def test_skypilot_tries_a_crash_again_on_the_same_machine(launched):
    run = launched("skypilot.yaml", [137, 134, 0])
    assert run.code == 0 and len(run.of("jaxbooth")) == 3


def test_skypilot_gives_up_on_crashes(launched):
    run = launched("skypilot.yaml", [139] * 9)
    assert run.code == 139 and len(run.of("jaxbooth")) == 6


@pytest.mark.parametrize("code", (1, 75, GIVEN_UP, *BAD_INPUT))
def test_skypilot_leaves_the_rest_to_job_recovery(launched, code):
    run = launched("skypilot.yaml", [code, 0])
    assert run.code == code and len(run.of("jaxbooth")) == 1


def test_skypilot_has_no_empty_token(launched):
    assert "HF_TOKEN" not in launched("skypilot.yaml", [0]).calls[0]["env"]


def test_skypilot_passes_a_token_on(launched):
    assert launched("skypilot.yaml", [0], HF_TOKEN="abc").calls[0]["env"]["HF_TOKEN"] == "abc"


# --- TPU VM -----------------------------------------------------------------------------------------------------------


def verbs(run):
    """The gcloud commands in short."""
    return [
        next(word for word in words if word in ("create", "describe", "ssh", "delete")) for words in run.of("gcloud")
    ]


def test_tpu_vm_is_made_waited_for_used_and_deleted(launched):
    run = launched("tpu_vm.sh", [0], states=["", "ACCEPTED", "PROVISIONING", "ACTIVE"])
    assert run.code == 0 and len(run.of("sleep")) == 2
    assert verbs(run) == ["describe", "create", "describe", "describe", "describe", "ssh", "ssh", "delete"]


def test_tpu_vm_that_was_preempted_is_deleted_and_asked_for_again(launched):
    run = launched("tpu_vm.sh", [143, 0], states=["ACTIVE", "SUSPENDED", "SUSPENDED", "", "ACTIVE"])
    again = ["describe", "describe", "delete", "describe", "create", "describe"]
    assert run.code == 0 and verbs(run) == ["describe", "ssh", "ssh", *again, "ssh", "ssh", "delete"]


def test_tpu_vm_runs_again_after_a_save(launched):
    run = launched("tpu_vm.sh", [75] * 6 + [0])
    assert run.code == 0 and len(run.of("jaxbooth")) == 7


def test_tpu_vm_gives_up_on_crashes_and_is_deleted(launched):
    run = launched("tpu_vm.sh", [137] * 9)
    assert run.code == 137 and len(run.of("jaxbooth")) == 6 and verbs(run)[-1] == "delete"


@pytest.mark.parametrize("code", (1, GIVEN_UP, *BAD_INPUT))
def test_tpu_vm_never_repeats_what_would_end_the_same(launched, code):
    run = launched("tpu_vm.sh", [code, 0])
    assert run.code == code and len(run.of("jaxbooth")) == 1 and verbs(run)[-1] == "delete"


def test_tpu_vm_that_cannot_be_had_ends_with_a_message(launched):
    run = launched("tpu_vm.sh", [], states=["", "FAILED"])
    assert run.code == 69 and "FAILED" in run.said and not run.of("jaxbooth")


def test_tpu_vm_stays_if_it_should(launched):
    run = launched("tpu_vm.sh", [2], KEEP="1")
    assert run.code == 2 and "delete" not in verbs(run)


def test_tpu_vm_with_broken_setup_runs_nothing(launched):
    run = launched("tpu_vm.sh", [], SETUP="exit 3")
    assert run.code == 3 and not run.of("jaxbooth") and verbs(run)[-1] == "delete"


@pytest.mark.parametrize("ask", (tell_it_alone, lambda process: process.send_signal(signal.SIGINT)))
def test_tpu_vm_told_to_stop_lets_the_hosts_save_first(stopped, ask):
    code, calls = stopped("tpu_vm.sh", ask)
    assert code == 75 and "delete" in calls[-1]["words"]


def test_tpu_vm_told_to_stop_while_it_waits_takes_its_request_back(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "states").write_text("PROVISIONING\n" * 10_000)
    process = start_launch_file(LAUNCH / "tpu_vm.sh", tmp_path, **PARAMETERS)
    while not any(call["program"] == "sleep" for call in read_calls(tmp_path)):
        assert process.poll() is None, process.stdout.read()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 75 and "delete" in read_calls(tmp_path)[-1]["words"]


def test_tpu_vm_reads_a_token_on_the_machine_itself(launched):
    run = launched("tpu_vm.sh", [0], HF_SECRET="hub")
    assert ["secrets", "versions", "access", "latest", "--secret=hub"] in run.of("gcloud")


def test_tpu_vm_installs_and_mounts_by_default(tmp_path):
    options = {"NFS": "10.0.0.2:/my share", "PACKAGE": "jaxbooth[tpu]==1.0", "SETUP": ""}
    setup = dry_run_commands(LAUNCH / "tpu_vm.sh", tmp_path, **options)[2][-1]
    assert "mount -t nfs '10.0.0.2:/my share' /mnt/data" in setup and "pip install -q 'jaxbooth[tpu]==1.0'" in setup
