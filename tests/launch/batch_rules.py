"""What the SLURM script, the TPU VM script and the SkyPilot task must be, as data."""

import re

from documents import Must, broken, schema_problems
from scripts import missing, script_problems

SAVED, NEVER_AGAIN = 75, {2, 64, 65}
PRIVATE = {"umask 077": "photos of people, and what is learned of them, are their owner's alone"}
STRICT = {"set -euf -o pipefail": "an unset variable or a failed command must end it; EXTRA is not expanded"}
QUIET = {"export RAY_USAGE_STATS_ENABLED=0": "Ray reports its use otherwise"}

SBATCH_OPTIONS = {  # option -> what its value may be
    "job-name": r"[\w-]+",
    "array": r"0-\d+(%\d+)?",
    "nodes": r"1",
    "ntasks-per-node": r"1",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[MG]",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "signal": r"TERM@120",
    "requeue": None,
    "open-mode": r"append",
    "output": r".*%A_%a.*",
    "partition": r"[\w,-]+",
    "account": r"[\w-]+",
}
SBATCH_NEEDED = {
    "array": "a task of the array is a shard",
    "nodes": "a shard is one node",
    "signal": "the step saves before the time is up (B:TERM would tell the batch shell alone)",
    "requeue": "a preempted task must come back",
    "open-mode": "a task that comes back must not empty its log",
    "output": "two tasks must not share a log",
}
SLURM_LINES = {
    **STRICT,
    **PRIVATE,
    **QUIET,
    "unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY": "JAX hangs behind a proxy",
    "srun --kill-on-bad-exit=1 --ntasks=1 \\": "SLURM tells steps, and only steps, that they must save",
    "trap 'told=yes' TERM": "this script must outlive a preemption",
    'if [ "$again" = yes ] && [ "$told" = no ]; then': "scancel must not put the task back into the queue",
    "75) again=yes ;;": "a saved task comes back",
}
GCLOUD_FLAGS = {  # command -> its flags; all of them were seen to be parsed by gcloud 528
    "queued-resources create": {
        "--zone", "--node-id", "--accelerator-type", "--runtime-version", "--valid-until-duration", "--spot",
        "--service-account", "--quiet",
    },
    "queued-resources describe": {"--zone", "--format"},
    "queued-resources delete": {"--zone", "--force", "--quiet"},
    "tpu-vm ssh": {"--zone", "--worker=all", "--command", "--quiet"},
}  # fmt: skip
SKYPILOT = (
    Must("resources.use_spot", True, "the fleet survives preemptions, and pays less for them"),
    Must("resources.job_recovery.max_restarts_on_errors", 0, "bad input would be tried again, on a new machine"),
    Must("resources.job_recovery.recover_on_exit_codes", [SAVED], "it comes back after a save, and after nothing else"),
    Must("envs.RAY_USAGE_STATS_ENABLED", "0", "Ray reports its use otherwise"),
)


def local_problems(script: str) -> list[str]:
    """What is wrong with the script for one machine."""
    return script_problems(script) + missing(script, {**STRICT, **PRIVATE, **QUIET})


def slurm_problems(script: str) -> list[str]:
    """What is wrong with a batch script: its #SBATCH lines, which SLURM reads up to the first command, and the rest."""
    found = script_problems(script) + missing(script, SLURM_LINES)
    options, commands_began = {}, False
    for number, line in enumerate(script.splitlines(), 1):
        option = re.fullmatch(r"#SBATCH --([\w-]+)(?:=(.*))?", line)
        if line.startswith("#SBATCH") and commands_began:
            found.append(f"line {number}: SLURM does not read #SBATCH after the first command")
        elif option and option[1] in SBATCH_OPTIONS:
            name, value = option.groups()
            if name in options:
                found.append(f"line {number}: --{name} stands twice")
            options[name] = value
            pattern = SBATCH_OPTIONS[name]
            if (pattern is None) != (value is None) or (pattern and not re.fullmatch(pattern, value)):
                found.append(f"line {number}: --{name}={value}: must be {pattern or 'without a value'}")
        elif re.match(r"#\s*SBATCH", line, re.IGNORECASE):
            found.append(f"line {number}: {line!r} is no option that is used here (known: {', '.join(SBATCH_OPTIONS)})")
        commands_began = commands_began or bool(line.strip() and not line.startswith("#"))
    return found + [f"no --{name}: {why}" for name, why in SBATCH_NEEDED.items() if name not in options]


def tpu_vm_problems(script: str, commands: list[list[str]]) -> list[str]:
    """What is wrong with the script for TPU VMs; `commands` are the ones that DRY_RUN=1 prints."""
    found = script_problems(script) + missing(script, {**STRICT, **PRIVATE, "75) ;;": "a saved run comes back"})
    names = []
    for words in commands:
        name, flags = " ".join(words[3:5]), [word for word in words[5:] if word.startswith("--")]
        names.append(name)
        known = GCLOUD_FLAGS.get(name, set())
        if words[:3] != ["gcloud", "compute", "tpus"] or not known:
            found.append(f"{' '.join(words[:5])} is no command that is used here")
        found += [f"{name}: no such flag: {f}" for f in flags if f not in known and f.partition("=")[0] not in known]
    create, describe, delete, ssh = GCLOUD_FLAGS
    if names != [create, describe, ssh, ssh, delete]:
        found.append(f"the commands are {names}, not create, describe, set up, work, delete")
    return found


def skypilot_problems(task: dict) -> list[str]:
    """What is wrong with a SkyPilot task."""
    if found := schema_problems(task, "skypilot"):
        return found
    found = broken(task, SKYPILOT)
    for part in ("setup", "run"):
        found += [f"{part}: {problem}" for problem in script_problems(task[part])]
    found += [f"run: {text}" for text in missing(task["run"], {"set -euf": "as above", **PRIVATE})]
    for name in task["envs"]:
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD", name):
            found.append(f"envs.{name}: belongs under secrets, which SkyPilot hides")
    found += [f"secrets.{name}: has a value" for name, value in task["secrets"].items() if value]
    shared = [mount for mount in task.get("file_mounts", {}) if task["envs"]["OUT"].startswith(f"{mount}/")]
    if not shared or any(task["file_mounts"][mount]["mode"] != "MOUNT" for mount in shared):
        found.append("envs.OUT must lie in a bucket that is mounted with mode MOUNT: a machine's disk goes with it")
    if task["resources"]["accelerators"].startswith("tpu") != ("accelerator_args" in task["resources"]):
        found.append("accelerator_args.runtime_version is for TPUs, and they need it")
    return found
