"""What a JobSet and a RayJob must be beyond their schemas."""

from documents import Must, at, broken, schema_problems
from pod_rules import kubernetes_problems, pod_problems, slice_problems

QUEUE = "kueue.x-k8s.io/queue-name"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
NEVER_AGAIN = {2, 64, 65}  # bad configuration or data
SAVED = 75
SHARD, NUM_SHARDS = (
    f"metadata.labels['jobset.sigs.k8s.io/{label}']" for label in ("job-index", "replicatedjob-replicas")
)

JOB = (
    Must("completionMode", "Indexed", "the hosts of a slice have ranks"),
    Must("backoffLimit", 0, "a program of several hosts fails as a whole; JobSet starts it again"),
    Must("podReplacementPolicy", "Failed", "a new pod beside one that still ends: two programs on one slice"),
    Must("template.spec.restartPolicy", "Never", "together with a podFailurePolicy the API server refuses all else"),
)
RAYJOB = (
    Must("spec.shutdownAfterJobFinishes", True, "Kueue refuses a cluster that stays, and it costs"),
    Must("spec.submissionMode", "HTTPMode", "else a shell in another pod expands the entrypoint first"),
    Must("spec.rayClusterSpec.enableInTreeAutoscaling", False, "an autoscaler needs a service account's token"),
    Must("spec.rayClusterSpec.authOptions.mode", "token", "else whoever reaches the head runs code in the cluster"),
    Must("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", "0", "no pack may be trained beside the driver"),
)


def jobset_problems(jobset: dict, others: list[dict]) -> list[str]:
    """What is wrong with a JobSet; `others` are the documents beside it."""
    if found := schema_problems(jobset, "jobset"):
        return found
    found = queue_problems(jobset) + _restart_problems(jobset["spec"]["failurePolicy"]["rules"])
    for child in jobset["spec"]["replicatedJobs"]:
        job, where = child["template"]["spec"], f"replicatedJobs.{child['name']}: "
        resource = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": child["name"]}, "spec": job}
        if problems := kubernetes_problems(resource):
            found += [where + problem for problem in problems]
            continue
        found += broken(job, JOB, where) + [where + problem for problem in _job_problems(job, jobset)]
        found += pod_problems(job["template"]["spec"], where)
        found += slice_problems(job["template"]["spec"], job.get("parallelism", 1), where)
    wanted = {"jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"]}
    return found + policy_problems(others, wanted)


def _job_problems(job: dict, jobset: dict) -> list[str]:
    found = []
    hosts = job.get("parallelism")
    if hosts != job.get("completions"):
        found.append(f"parallelism {hosts} and completions {job.get('completions')} must both be the slice's hosts")
    topology = jobset["metadata"].get("annotations", {}).get(EXCLUSIVE)
    if (hosts or 1) > 1 and topology != "cloud.google.com/gke-nodepool":
        found.append(f"slices of several hosts need the annotation {EXCLUSIVE}: cloud.google.com/gke-nodepool")
    if hosts == 1 and topology == "cloud.google.com/gke-nodepool":
        found.append(f"{EXCLUSIVE} would leave all but one host of a node pool idle")
    rules = job.get("podFailurePolicy", {}).get("rules", [])
    names = {container["name"] for container in job["template"]["spec"]["containers"]}
    told = {name for rule in rules if (name := rule.get("onExitCodes", {}).get("containerName"))}
    found += [f"podFailurePolicy: there is no container {name}" for name in sorted(told - names)]
    codes = {code for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    if codes != NEVER_AGAIN | {SAVED}:
        found.append(f"podFailurePolicy is about exit codes {sorted(codes)}, not {sorted(NEVER_AGAIN | {SAVED})}")
    if "DisruptionTarget" not in at(rules, "*.onPodConditions.*.type"):
        found.append("podFailurePolicy: a preemption (DisruptionTarget) would count as a crash")
    env = {entry["name"]: entry for entry in job["template"]["spec"]["containers"][0]["env"]}
    for name, field in (("SHARD", SHARD), ("NUM_SHARDS", NUM_SHARDS)):
        if at(env.get(name, {}), "valueFrom.fieldRef.fieldPath") != [field]:
            found.append(f"{name} must be {field}")
    return found


def _restart_problems(rules: list[dict]) -> list[str]:
    """The first rule that fits decides: bad input ends all, a saved shard comes back, a crash comes back and counts."""
    policy, found = [rule for rule in rules if "PodFailurePolicy" in rule.get("onJobFailureReasons", [])], []
    if [rule["action"] for rule in policy] != ["FailJobSet", "RestartJobAndIgnoreMaxRestarts"]:
        found.append("failurePolicy: PodFailurePolicy must end the JobSet for bad input, then restart without counting")
    elif policy[0].get("onJobFailureMessagePatterns") != ["failed with exit code (2|64|65) "]:
        found.append("failurePolicy: the rule for bad input must be about exit codes 2, 64 and 65")
    if rules[-1].get("action") != "RestartJob" or len(rules[-1]) > 2:
        found.append("failurePolicy: the last rule must restart the one Job, else a crash restarts all shards")
    return found


def rayjob_problems(rayjob: dict, others: list[dict]) -> list[str]:
    """What is wrong with a RayJob; `others` are the documents beside it."""
    if found := schema_problems(rayjob, "rayjob"):
        return found
    found = queue_problems(rayjob) + broken(rayjob, RAYJOB)
    cluster = rayjob["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for group, where in ((head, "head: "), *((worker, f"{worker['groupName']}: ") for worker in workers)):
        resource = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        if problems := kubernetes_problems(resource):
            found += [where + problem for problem in problems]
            continue
        found += pod_problems(group["template"]["spec"], where)
        found += [where + text for text in _ray_container_problems(group["template"]["spec"], cluster["rayVersion"])]
        if group is not head:
            found += slice_problems(group["template"]["spec"], group["numOfHosts"], where)
            if not group["minReplicas"] == group["replicas"] == group["maxReplicas"]:
                found.append(f"{where}without an autoscaler min, max and replicas are one number")
    if len({image for group in (head, *workers) for image in at(group, "template.spec.containers.*.image")}) > 1:
        found.append("head and workers must run the same image: Ray refuses other versions")
    return found + policy_problems(others, head["template"].get("metadata", {}).get("labels", {}))


def _ray_container_problems(pod: dict, version: str) -> list[str]:
    found, container = [], pod["containers"][0]
    tag = container["image"].partition("@")[0].rpartition(":")[2]
    if tag != version and not tag.startswith(f"{version}-"):
        found.append(f"rayVersion {version} is not the image's tag {tag}")
    if container.get("args", [])[:2] != ["umask", "077"]:
        found.append("args must begin with umask 077")
    if len(pod["containers"]) > 1:
        found.append("the Ray container must be the only one")
    return found


def queue_problems(resource: dict) -> list[str]:
    """Kueue admits what has its label."""
    return [] if resource["metadata"]["labels"].get(QUEUE) else [f"metadata.labels: {QUEUE} is missing"]


def policy_problems(documents: list[dict], labels: dict[str, str]) -> list[str]:
    """There must be one NetworkPolicy that closes the pods with these labels."""
    if [document.get("kind") for document in documents] != ["NetworkPolicy"]:
        return ["one NetworkPolicy must stand beside it: JAX's and Ray's ports ask for no password"]
    policy = documents[0]
    if found := kubernetes_problems(policy):
        return [f"NetworkPolicy: {problem}" for problem in found]
    selected = at(policy, "spec.podSelector.matchLabels")[0]
    found = []
    if not isinstance(selected, dict) or not selected or not selected.items() <= labels.items():
        found.append(f"NetworkPolicy selects {selected}, the pods have {labels}")
    if policy["spec"].get("policyTypes") != ["Ingress"] or not all(at(policy, "spec.ingress.*.from")):
        found.append("NetworkPolicy must say from whom its pods may be reached")
    return found
