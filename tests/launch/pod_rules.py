"""What every pod of launch/ must be: unprivileged, pinned, without a token of the cluster."""

import math
import re

import kubernetes_validate
from documents import ABSENT, Must, at, broken

TOPOLOGY = "cloud.google.com/gke-tpu-topology"
TPU = "google.com/tpu"
# Hosts of a slice by topology and chips of a host (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
NUMBER_OF_TPU_HOSTS = {
    "tpu-v5-lite-podslice": {"1x1": {1: 1}, "2x2": {4: 1}, "2x4": {8: 1, 4: 2}, "4x4": {4: 4}, "4x8": {4: 8}},
    "tpu-v6e-slice": {"1x1": {1: 1}, "2x2": {4: 1}, "2x4": {8: 1, 4: 2}, "4x4": {4: 4}, "4x8": {4: 8}},
}
SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")
DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")

POD = (
    Must("automountServiceAccountToken", False, "no program here talks to the API server"),
    Must("hostNetwork", ABSENT, "the host's network is not ours"),
    Must("hostPID", ABSENT, "the host's processes are not ours"),
    Must("hostIPC", ABSENT, "the host's memory is not ours"),
    Must("securityContext.seccompProfile.type", "RuntimeDefault", "system calls that nobody needs"),
    Must("containers.*.securityContext.privileged", False, "TPUs need no privilege"),
    Must("containers.*.securityContext.allowPrivilegeEscalation", False, "nothing here is setuid"),
    Must("containers.*.securityContext.readOnlyRootFilesystem", True, "only /data and /tmp are written"),
    Must("containers.*.securityContext.capabilities.drop", ["ALL"], "root without its powers"),
)


def kubernetes_problems(resource: dict) -> list[str]:
    """What the schemas of Kubernetes find, with unknown fields refused."""
    try:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def pod_problems(pod: dict, where: str) -> list[str]:
    """What is wrong with the spec of a pod."""
    found = broken(pod, POD, where)
    if pod.get("terminationGracePeriodSeconds", 30) < 60:
        found.append(f"{where}terminationGracePeriodSeconds: a checkpoint takes up to a minute")
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    found += [f"{where}volume {name}: hostPath reaches the node" for name, v in volumes.items() if "hostPath" in v]
    for container in pod["containers"]:
        name = f"{where}container {container['name']}: "
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        found += [f"{name}there is no volume {missing}" for missing in sorted(mounted - volumes.keys())]
        found += [name + text for text in _container_problems(container)]
    return found


def _container_problems(container: dict) -> list[str]:
    found = []
    if not DIGEST.fullmatch(container["image"]):
        found.append("the image must be given by digest: a tag can change between two pods")
    more = set(at(container, "securityContext.capabilities.add")[0] or []) - {"SYS_RESOURCE"}
    if more:
        found.append(f"needs no capability {sorted(more)}")
    env = {entry["name"]: entry for entry in container.get("env", [])}
    if len(env) != len(container.get("env", [])):
        found.append("a variable stands twice in env")
    if env.get("RAY_USAGE_STATS_ENABLED", {}).get("value") != "0":
        found.append('RAY_USAGE_STATS_ENABLED must be "0": Ray reports its use otherwise')
    for name, entry in env.items():
        if SECRET_NAME.search(name) and "secretKeyRef" not in entry.get("valueFrom", {}):
            found.append(f"{name} must come from a Secret")
    requested, limit = (at(container, f"resources.{kind}")[0] or {} for kind in ("requests", "limits"))
    if requested.get(TPU) != limit.get(TPU):
        found.append(f"{TPU}: request and limit must be equal")
    if "memory" not in limit:
        found.append("has no limit of memory")
    return found


def slice_problems(pod: dict, hosts: int, where: str) -> list[str]:
    """Whether hosts and chips of a host make the slice that the node selector asks for."""
    selector = pod.get("nodeSelector", {})
    kind, topology = selector.get("cloud.google.com/gke-tpu-accelerator"), selector.get(TOPOLOGY)
    chips = int((at(pod["containers"][0], "resources.limits")[0] or {}).get(TPU, 0))
    known = NUMBER_OF_TPU_HOSTS.get(kind, {}).get(topology)
    if known is None:
        return [f"{where}nodeSelector: {kind} has no topology {topology} (known: {NUMBER_OF_TPU_HOSTS})"]
    if known.get(chips) != hosts:
        total = math.prod(map(int, topology.split("x")))
        return [
            f"{where}{hosts} hosts of {chips} chips are no slice {topology} of {total} chips (hosts by chips: {known})"
        ]
    return []
