"""Runs a launch file as its scheduler would, with stand-ins for the programs that it calls, and sees what comes out."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from documents import LAUNCH, at, load_documents

# What stands in PATH before everything else. A stand-in writes its call down, then ends with the next number of its
# file NAME.codes (0 when there is none) or, for srun and ssh, runs what it was given.
RECORDER = """#!{python} -IS
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
name = pathlib.Path(__file__).name
umask = os.umask(0)
os.umask(umask)
call = dict(program=name, words=sys.argv[1:], umask=umask, env=dict(os.environ))
with here.joinpath("calls.jsonl").open("a") as log:
    print(json.dumps(call), file=log)
def next_of(file, default):
    lines = here.joinpath(file).read_text().splitlines() if here.joinpath(file).exists() else []
    here.joinpath(file).write_text("\\n".join(lines[1:]))
    return lines[0] if lines else default
if name == "srun":
    words = sys.argv[1:]
    while words and words[0].startswith("-"):
        words = words[1:]
    os.execvp(words[0], words)
if name == "gcloud" and "describe" in sys.argv:
    print(next_of("states", "ACTIVE"))
if name == "gcloud" and "ssh" in sys.argv:
    command = next(word for word in sys.argv if word.startswith("--command=")).partition("=")[2]
    os.umask(0o022)  # another machine
    os.execvp("bash", ["bash", "-c", command])
sys.exit(int(next_of(name + ".codes", "0")))
"""
PROGRAMS = ("jaxbooth", "srun", "scontrol", "gcloud", "sleep")
PARAMETERS = {
    "MANIFEST": "the subjects.yaml",
    "CONFIG": "c.yaml",
    "OUT": "out",
    "EXTRA": "train.steps=2 prompts=[a*,b]",
}
LABELS = {  # what JobSet writes on the pod of shard 3 of 8
    "metadata.labels['jobset.sigs.k8s.io/job-index']": "3",
    "metadata.labels['jobset.sigs.k8s.io/replicatedjob-replicas']": "8",
}
GIVEN = {  # what the scheduler gives to that shard, by launch file
    "local.sh": {"SHARD": "3", "NUM_SHARDS": "8"},
    "tpu_vm.sh": {"SHARD": "3", "NUM_SHARDS": "8", "SETUP": "true"},
    "slurm.sbatch": {
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "8",
    },
    "skypilot.yaml": {"SHARD": "3", "NUM_SHARDS": "8"},
    "gke_jobset.yaml": {},
    "rayjob.yaml": {},
}


class Run(NamedTuple):
    """What a launch file did."""

    code: int
    calls: list[dict]  # program, words, umask, env
    said: str

    def of(self, program: str) -> list[list[str]]:
        """The words of each call of a program."""
        return [call["words"] for call in self.calls if call["program"] == program]


def run_launch_file(file: Path, folder: Path, jaxbooth: str | None = None, **variables: str) -> Run:
    """Runs it in `folder`.

    Args:
        file: One of launch/, or a copy under the same name.
        folder: Where it works; its `bin` holds the stand-ins. Put `NAME.codes` and `states` there first.
        jaxbooth: A script to stand for `jaxbooth`; default: one that writes its call down.
        variables: As the user sets them.
    """
    process = start_launch_file(file, folder, jaxbooth, **variables)
    said, _ = process.communicate(timeout=300)
    return Run(process.returncode, read_calls(folder), said)


def start_launch_file(file: Path, folder: Path, jaxbooth: str | None = None, **variables: str) -> subprocess.Popen:
    """Starts it, in a process group of its own."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        text = jaxbooth if program == "jaxbooth" and jaxbooth else RECORDER.format(python=sys.executable)
        (bin_folder / program).write_text(text)
        (bin_folder / program).chmod(0o755)
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "RAY_")) and not name.lower().endswith("_proxy")
    }
    env |= {"PATH": f"{bin_folder}{os.pathsep}{env['PATH']}", "HOME": str(folder), "BASH_ENV": ""}
    env["BASH_FUNC_ulimit%%"] = f'() {{ echo "$@" >>{shlex.quote(str(bin_folder / "limits"))}; }}'
    words, own = program_of(file)
    return subprocess.Popen(
        words,
        cwd=folder,
        env=env | own | GIVEN[file.name] | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=0o022,
        start_new_session=True,
    )


def read_calls(folder: Path) -> list[dict]:
    """What the stand-ins wrote down so far."""
    log = folder / "bin" / "calls.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may still be being written


def program_of(file: Path) -> tuple[list[str], dict[str, str]]:
    """The program that a scheduler starts for a launch file, and the environment that the file gives it."""
    if file.suffix != ".yaml":
        return ["bash", str(file)], {}
    document = load_documents(file)[0]
    if file.name == "skypilot.yaml":
        return ["bash", "-c", document["run"]], document["envs"] | document["secrets"]
    if file.name == "rayjob.yaml":
        head = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        return ["sh", "-c", document["spec"]["entrypoint"]], environment(head)
    container = at(document, "spec.replicatedJobs.*.template.spec.template.spec.containers.*")[0]
    return [*container["command"], *container["args"]], environment(container)


def environment(container: dict) -> dict[str, str]:
    """The variables of a container, with JobSet's labels filled in; a Secret that is not there leaves its out."""
    found = {}
    for entry in container["env"]:
        field = at(entry, "valueFrom.fieldRef.fieldPath")[0]
        if field is not None:
            found[entry["name"]] = LABELS.get(field, f"no label {field}")
        elif "value" in entry:
            found[entry["name"]] = entry["value"]
    return found


def dry_run_commands(file: Path, folder: Path, **variables: str) -> list[list[str]]:
    """The commands that DRY_RUN=1 prints."""
    run = run_launch_file(file, folder, DRY_RUN="1", **variables)
    assert not run.calls, "a dry run ran something"
    return [shlex.split(line) for line in run.said.splitlines()] if run.code == 0 else [[run.said]]


def launch_files() -> list[Path]:
    """All of launch/ that a scheduler reads."""
    return sorted(file for file in LAUNCH.iterdir() if file.suffix != ".md")
