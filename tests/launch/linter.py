"""`problems(file)`: everything that can be found wrong with a launch file without a cluster."""

import tempfile
from pathlib import Path

import yaml
from batch_rules import local_problems, skypilot_problems, slurm_problems, tpu_vm_problems
from cluster_rules import jobset_problems, rayjob_problems
from documents import load_documents
from effective_commands import PARAMETERS, dry_run_commands, program_of, run_launch_file
from scripts import script_problems

WORK = ["fleet", "work", "the subjects.yaml", "--config", "c.yaml", "--out", "out", "--shard", "3", "--num-shards", "8",
        "train.steps=2", "prompts=[a*,b]"]  # fmt: skip
RUN = ["fleet", "run", "the subjects.yaml", "--config", "c.yaml", "--out", "out", "--address", "auto",
       "train.steps=2", "prompts=[a*,b]"]  # fmt: skip
GOLDEN = {  # what each launch file comes down to: `jaxbooth` and these words
    "local.sh": WORK,
    "tpu_vm.sh": WORK,
    "slurm.sbatch": WORK,
    "skypilot.yaml": WORK,
    "gke_jobset.yaml": WORK,
    "rayjob.yaml": RUN,
}


def problems(file: Path) -> list[str]:
    """What is wrong with a launch file; it is known by its name."""
    try:
        found = _own_problems(file)
    except yaml.MarkedYAMLError as error:
        return [f"line {error.problem_mark.line + 1}: {error.problem}"]
    return found or command_problems(file)


def _own_problems(file: Path) -> list[str]:
    if file.suffix != ".yaml":
        script = file.read_text()
        if file.name == "tpu_vm.sh":
            with tempfile.TemporaryDirectory() as folder:
                return tpu_vm_problems(script, dry_run_commands(file, Path(folder)))
        return {"local.sh": local_problems, "slurm.sbatch": slurm_problems}[file.name](script)
    document, *others = load_documents(file)
    if file.name == "skypilot.yaml":
        return skypilot_problems(document)
    check = {"gke_jobset.yaml": jobset_problems, "rayjob.yaml": rayjob_problems}[file.name]
    if found := check(document, others):
        return found
    shell, _, script = program_of(file)[0]
    return script_problems(script, shell)


def command_problems(file: Path) -> list[str]:
    """Whether the file, run as its scheduler would, comes down to the one command, privately and without telemetry."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_launch_file(file, Path(folder), **PARAMETERS)
    calls = [call for call in run.calls if call["program"] == "jaxbooth"]
    if run.code or len(calls) != 1:
        return [f"it calls jaxbooth {len(calls)} times and ends with {run.code}: {run.said}"]
    call, found = calls[0], []
    if call["words"] != GOLDEN[file.name]:
        found.append(f"the effective command is jaxbooth {call['words']}, not {GOLDEN[file.name]}")
    if call["umask"] != 0o077:
        found.append(f"its umask is {call['umask']:03o}, not 077")
    if call["env"].get("RAY_USAGE_STATS_ENABLED") != "0":
        found.append('RAY_USAGE_STATS_ENABLED is not "0" there')
    return found
