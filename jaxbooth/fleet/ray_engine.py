"""Jobs on a Ray cluster. Ray decides where; what a job is, whether it is done and how often it is tried is ours.

A Ray task is a supervisor only: it starts the job in a process of its own and watches it. Ray reuses its workers, and
JAX cannot be initialised twice in one process, so that no worker ever imports JAX. If the driver dies, Ray ends its
workers, and their jobs die with them.
"""

import logging
import os
import time
from contextlib import suppress

from jaxbooth.errors import ConfigError
from jaxbooth.fleet.child_result import ChildResult
from jaxbooth.fleet.dispatch import JobFiles, run_job_process

log = logging.getLogger(__name__)

CPUS_PER_JOB = 2  # where there are no accelerators


class RayEngine:
    """Runs as many jobs at once as the cluster has accelerators; a context manager that leaves the cluster alone.

    Args:
        address: `auto` or HOST:PORT of a cluster, `local` for one of this process's own.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str = "local"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would hide accelerators from tasks that ask for none, and the driver asks for none.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise ConfigError("`fleet run` needs Ray: pip install 'jaxbooth[fleet]', or use `fleet work`") from None
        self._ray = ray
        # Local is said outright: a stale file of an older cluster would be followed otherwise.
        options = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            advice = "Start one, or leave --address out"
            raise ConfigError(f"--address {address}: no Ray cluster answers ({error}). {advice}") from None
        self._task = ray.remote(max_retries=0, max_calls=1)(_supervise)
        self._given: dict = {}  # Ray's reference -> job

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *exception) -> None:
        self._ray.shutdown()

    def room(self) -> int:
        """Accelerators (or pairs of cores) that no job was given to."""
        return max(0, self._capacity() - len(self._given))

    def _capacity(self) -> int:
        have = self._ray.cluster_resources()
        return int(have.get("GPU", 0)) or max(1, int(have.get("CPU", 0)) // CPUS_PER_JOB)

    def submit(self, files: JobFiles) -> None:
        """Queues a job; it starts where there is an accelerator free."""
        have = self._ray.cluster_resources()
        if have.get("GPU"):
            needs = {"num_gpus": 1, "num_cpus": 1}
        else:
            needs = {"num_cpus": min(CPUS_PER_JOB, max(1, int(have.get("CPU", 1))))}
        self._given[self._task.options(**needs).remote(files)] = files

    def wait(self, timeout_s: float) -> list[tuple[JobFiles, ChildResult]]:
        """Jobs that have ended; a job whose machine went away counts as killed."""
        if not self._given:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(self._given), num_returns=1, timeout=timeout_s)
        return [(self._given.pop(reference), self._result(reference)) for reference in ready]

    def _result(self, reference) -> ChildResult:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = f"its machine or Ray worker went away: {str(error).splitlines()[0]}"
            return ChildResult(137, "infra", reason, "", 0.0)


def _supervise(files: JobFiles) -> ChildResult:
    """Runs in a Ray worker."""
    with suppress(OSError):
        os.umask(0o077)
    return run_job_process(files)
