"""Mistakes that people make in launch files, and what the linter must say."""

from typing import Literal, NamedTuple


class Fault(NamedTuple):
    """One replacement in one file."""

    file: str
    kind: Literal["typo", "semantic"]
    old: str
    new: str
    told: str  # part of what must be found


JOBSET, RAYJOB, SKY, SLURM, TPU_VM, LOCAL = (
    "gke_jobset.yaml", "rayjob.yaml", "skypilot.yaml", "slurm.sbatch", "tpu_vm.sh", "local.sh",
)  # fmt: skip

FAULTS = (
    # --- JobSet: typos ------------------------------------------------------------------------------------------------
    Fault(JOBSET, "typo", "maxRestarts:", "maxRestart:", "'maxRestart' was unexpected"),
    Fault(JOBSET, "typo", "maxRestarts: 8", 'maxRestarts: "8"', "'8' is not of type 'integer'"),
    Fault(JOBSET, "typo", "action: RestartJob\n", "action: RestartJobs\n", "'RestartJobs' is not one of"),
    Fault(JOBSET, "typo", "[PodFailurePolicy]", "[PodFailurePolicies]", "'PodFailurePolicies' is not one of"),
    Fault(JOBSET, "typo", "backoffLimit: 0", "backofLimit: 0", "'backofLimit' was unexpected"),
    Fault(JOBSET, "typo", "volumeMounts:", "volumeMount:", "'volumeMount' was unexpected"),
    Fault(JOBSET, "typo", "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/queue", "queue-name is missing"),
    Fault(JOBSET, "typo", "containerName: jaxbooth", "containerName: jaxboth", "there is no container jaxboth"),
    Fault(JOBSET, "typo", "jobset.sigs.k8s.io/job-index", "jobset.sigs.k8s.io/jobindex", "SHARD must be"),
    Fault(JOBSET, "typo", '"$MANIFEST"', '"$MANFEST"', "MANFEST"),
    Fault(JOBSET, "typo", "--num-shards", "--num-shard", "the effective command is"),
    Fault(JOBSET, "typo", "- {name: data, mountPath: /data}", "- {name: dta, mountPath: /data}", "no volume dta"),
    Fault(JOBSET, "typo", "podSelector:\n    matchLabels", "podSelectr:\n    matchLabels", "'podSelectr' was"),
    # --- JobSet: what is well spelt and wrong -------------------------------------------------------------------------
    Fault(JOBSET, "semantic", "restartPolicy: Never", "restartPolicy: OnFailure", "'OnFailure', not 'Never'"),
    Fault(JOBSET, "semantic", "restartPolicy: Never", "hostname: x", "absent, not 'Never'"),
    Fault(JOBSET, "semantic", "completions: 1", "completions: 2", "must both be the slice's hosts"),
    Fault(JOBSET, "semantic", "parallelism: 1", "parallelism: 2", "2 hosts of 8 chips are no slice 2x4"),
    Fault(JOBSET, "semantic", "backoffLimit: 0", "backoffLimit: 6", "6, not 0"),
    Fault(JOBSET, "semantic", "podReplacementPolicy: Failed", "podReplacementPolicy: TerminatingOrFailed",
          "two programs on one slice"),
    Fault(JOBSET, "semantic", "gke-tpu-topology: 2x4", "gke-tpu-topology: 4x4", "are no slice 4x4"),
    Fault(JOBSET, "semantic", "gke-tpu-topology: 2x4", "gke-tpu-topology: 2x3", "has no topology 2x3"),
    Fault(JOBSET, "semantic", "[2, 64, 65, 75]", "[2, 64, 65]", "exit codes [2, 64, 65]"),
    Fault(JOBSET, "semantic", "type: DisruptionTarget", "type: PodScheduled", "DisruptionTarget"),
    Fault(JOBSET, "semantic", "action: FailJobSet", "action: RestartJobSet", "must end the JobSet for bad input"),
    Fault(JOBSET, "semantic", "(2|64|65) ", "(2|64|65|75) ", "must be about exit codes 2, 64 and 65"),
    Fault(JOBSET, "semantic", "action: RestartJob\n", "action: RestartJobSet\n", "a crash restarts all shards"),
    Fault(JOBSET, "semantic", "privileged: false", "privileged: true", "TPUs need no privilege"),
    Fault(JOBSET, "semantic", "add: [SYS_RESOURCE]", "add: [SYS_ADMIN]", "needs no capability ['SYS_ADMIN']"),
    Fault(JOBSET, "semantic", "automountServiceAccountToken: false", "hostNetwork: true", "hostNetwork is True"),
    Fault(JOBSET, "semantic", "emptyDir: {sizeLimit: 32Gi}", "hostPath: {path: /tmp}", "hostPath reaches the node"),
    Fault(JOBSET, "semantic", "jaxbooth@sha256:" + "0" * 64, "jaxbooth:latest", "by digest"),
    Fault(JOBSET, "semantic", 'requests: {cpu: "64", memory: 128Gi, google.com/tpu: "8"}', 'requests: {cpu: "64"}',
          "request and limit must be equal"),
    Fault(JOBSET, "semantic", "valueFrom: {secretKeyRef: {name: jaxbooth-hub, key: token, optional: true}}",
          "value: abc", "HF_TOKEN must come from a Secret"),
    Fault(JOBSET, "semantic", '{name: RAY_USAGE_STATS_ENABLED, value: "0"}', '{name: X, value: "0"}', "its use"),
    Fault(JOBSET, "semantic", "umask 077", "umask 022", "its umask is 022"),
    Fault(JOBSET, "semantic", "terminationGracePeriodSeconds: 120", "terminationGracePeriodSeconds: 5", "a checkpoint"),
    Fault(JOBSET, "semantic", "matchLabels: {jobset.sigs.k8s.io/jobset-name: jaxbooth-fleet}",
          "matchLabels: {app: other}", "NetworkPolicy selects"),
    Fault(JOBSET, "semantic", "---\n", "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n",
          "one NetworkPolicy must stand beside it"),
    # --- RayJob -------------------------------------------------------------------------------------------------------
    Fault(RAYJOB, "typo", "numOfHosts:", "numofHosts:", "'numofHosts' was unexpected"),
    Fault(RAYJOB, "typo", "num-cpus:", "num_cpus:", "'num_cpus' was unexpected"),
    Fault(RAYJOB, "typo", "shutdownAfterJobFinishes", "shutdownAfterJobFinish", "was unexpected"),
    Fault(RAYJOB, "typo", "submissionMode: HTTPMode", "submissionMode: HttpMode", "'HttpMode' is not one of"),
    Fault(RAYJOB, "typo", "containerPort: 8265", "containrPort: 8265", "'containerPort' is a required property"),
    Fault(RAYJOB, "typo", "--address auto", "--adress auto", "the effective command is"),
    Fault(RAYJOB, "semantic", 'num-cpus: "0"', 'num-cpus: "4"', "no pack may be trained beside the driver"),
    Fault(RAYJOB, "semantic", 'num-cpus: "0"', "num-cpus: 0", "0 is not of type 'string'"),
    Fault(RAYJOB, "semantic", 'rayVersion: "2.60.0"', 'rayVersion: "2.59.1"', "is not the image's tag 2.60.0"),
    Fault(RAYJOB, "semantic", "numOfHosts: 1", "numOfHosts: 2", "2 hosts of 8 chips are no slice 2x4"),
    Fault(RAYJOB, "semantic", "mode: token", "mode: disabled", "whoever reaches the head"),
    Fault(RAYJOB, "semantic", "kind: NetworkPolicy", "kind: Service", "one NetworkPolicy"),
    Fault(RAYJOB, "semantic", "maxReplicas: 4", "maxReplicas: 8", "one number"),
    Fault(RAYJOB, "semantic", "enableInTreeAutoscaling: false", "enableInTreeAutoscaling: true", "token"),
    Fault(RAYJOB, "semantic", "jaxbooth-ray:2.60.0@sha256:0", "jaxbooth-ray:2.60.0@sha256:1", "the same image"),
    Fault(RAYJOB, "semantic", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "Kueue refuses"),
    Fault(RAYJOB, "semantic", "umask 077\n", "umask 022\n", "its umask is 022"),
    Fault(RAYJOB, "semantic", 'args: [umask, "077"]', "args: [echo]", "args must begin with umask 077"),
    Fault(RAYJOB, "semantic", "submissionMode: HTTPMode", "submissionMode: K8sJobMode", "expands the entrypoint"),
    # --- SkyPilot -----------------------------------------------------------------------------------------------------
    Fault(SKY, "typo", "job_recovery:", "job_recover:", "'job_recover' was unexpected"),
    Fault(SKY, "typo", "runtime_version:", "runtime_verson:", "'runtime_verson' was unexpected"),
    Fault(SKY, "typo", "EAGER_NEXT_REGION", "EAGER_NEXT_REGON", "is not one of"),
    Fault(SKY, "typo", "esac\n", "esca\n", "bash -n"),
    Fault(SKY, "typo", "fleet work", "flet work", "the effective command is"),
    Fault(SKY, "typo", 'SHARD: "0"', "SHARD: 0", "0 is not of type"),
    Fault(SKY, "semantic", "recover_on_exit_codes: [75]", "recover_on_exit_codes: [2, 75]", "[2, 75], not [75]"),
    Fault(SKY, "semantic", "max_restarts_on_errors: 0", "max_restarts_on_errors: 9", "bad input would be tried again"),
    Fault(SKY, "semantic", "secrets:\n", "  API_TOKEN: abc\n\nsecrets:\n", "belongs under secrets"),
    Fault(SKY, "semantic", 'HF_TOKEN: ""', "HF_TOKEN: abc", "secrets.HF_TOKEN: has a value"),
    Fault(SKY, "semantic", "mode: MOUNT", "mode: COPY", "mounted with mode MOUNT"),
    Fault(SKY, "semantic", "OUT: /data/fleet", "OUT: /tmp/fleet", "mounted with mode MOUNT"),
    Fault(SKY, "semantic", "tpu-v5litepod-8", "L4:1", "accelerator_args"),
    # --- SLURM --------------------------------------------------------------------------------------------------------
    Fault(SLURM, "typo", "--ntasks-per-node", "--ntask-per-node", "is no option that is used here"),
    Fault(SLURM, "typo", "#SBATCH --requeue", "# SBATCH --requeue", "is no option that is used here"),
    Fault(SLURM, "typo", "esac", "esca", "bash -n"),
    Fault(SLURM, "typo", "--kill-on-bad-exit=1", "--kill-on-badexit=1", "SLURM tells steps"),
    Fault(SLURM, "typo", '"$NUM_SHARDS" $EXTRA', '"$NUM_SHARD" $EXTRA', "NUM_SHARD"),
    Fault(SLURM, "typo", "--time=12:00:00", "--time=12h", "must be"),
    Fault(SLURM, "semantic", "--signal=TERM@120", "--signal=B:TERM@120", "--signal=B:TERM@120: must be"),
    Fault(SLURM, "semantic", "#SBATCH --requeue\n", "", "no --requeue"),
    Fault(SLURM, "semantic", "#SBATCH --requeue\n", "#SBATCH --requeue=1\n", "without a value"),
    Fault(SLURM, "semantic", "--open-mode=append", "--open-mode=truncate", "must be append"),
    Fault(SLURM, "semantic", "srun --kill-on-bad-exit=1 --ntasks=1 \\\n    jaxbooth", "jaxbooth", "SLURM tells steps"),
    Fault(SLURM, "semantic", "%x-%A_%a.log", "%x.log", "must be .*%A_%a.*"),
    Fault(SLURM, "semantic", "umask 077 ", "umask 022 ", 'no line "umask 077"'),
    Fault(SLURM, "semantic", "unset http_proxy", "echo http_proxy", "behind a proxy"),
    Fault(SLURM, "semantic", "#SBATCH --job-name", "sleep 0\n#SBATCH --job-name", "after the first command"),
    Fault(SLURM, "semantic", "75) again=yes", "2) again=yes", "a saved task comes back"),
    Fault(SLURM, "semantic", "export RAY_USAGE_STATS_ENABLED=0", "export HF_TOKEN=hf123", "a secret must not stand"),
    # --- TPU VM -------------------------------------------------------------------------------------------------------
    Fault(TPU_VM, "typo", "--accelerator-type", "--accelerator-typ", "no such flag: --accelerator-typ="),
    Fault(TPU_VM, "typo", "queued-resources \"$1\"", "queued-resource \"$1\"", "is no command that is used here"),
    Fault(TPU_VM, "typo", "--node-id", "--nodeid", "no such flag: --nodeid="),
    Fault(TPU_VM, "typo", "done\n", "dne\n", "bash -n"),
    Fault(TPU_VM, "typo", "--num-shards", "--num-shard", "the effective command is"),
    Fault(TPU_VM, "typo", "$MAX_RETRIES", "$MAX_RETRYS", "MAX_RETRYS"),
    Fault(TPU_VM, "semantic", "--worker=all", "--worker=0", "no such flag: --worker=0"),
    Fault(TPU_VM, "semantic", "    delete\n    exit\n", "    exit\n", "not create, describe, set up, work, delete"),
    Fault(TPU_VM, "semantic", 'work="umask 077; ', 'work="', "its umask is 022"),
    Fault(TPU_VM, "semantic", "export RAY_USAGE_STATS_ENABLED=0 PATH", "export PATH", "RAY_USAGE_STATS_ENABLED"),
    Fault(TPU_VM, "semantic", "set -euf -o pipefail", "set -f", "must end it"),
    # --- local --------------------------------------------------------------------------------------------------------
    Fault(LOCAL, "typo", '"$CONFIG" --out', '"$CONFG" --out', "CONFG"),
    Fault(LOCAL, "typo", "--config", "--cofnig", "the effective command is"),
    Fault(LOCAL, "typo", '"$SHARD" --num', '"$SHARD --num', "bash -n"),
    Fault(LOCAL, "semantic", "umask 077 ", "umask 022 ", 'no line "umask 077"'),
    Fault(LOCAL, "semantic", "export RAY_USAGE_STATS_ENABLED=0", "export RAY_USAGE_STATS_ENABLED=1", "reports its use"),
    Fault(LOCAL, "semantic", '"$MANIFEST" --config', "$MANIFEST --config", "the effective command is"),
    Fault(LOCAL, "semantic", "set -euf", "set -eu", "EXTRA is not expanded"),
)  # fmt: skip
