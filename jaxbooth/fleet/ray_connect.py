"""Joining a Ray cluster, or starting one of this process's own, with plain words when that does not work."""

import os
import socket
from types import ModuleType

from jaxbooth.errors import ConfigError, JaxboothError

ANSWER_S = 10.0
OWN_RAY_DIED = "Ray has died on the driver's own machine, and can run nothing more. Run the same command again"
QUIET = {"log_to_driver": False, "configure_logging": False}
OBJECTS_BYTES = 100 * 2**20  # results are a few lines; Ray would take a third of the memory


def connect(address: str) -> ModuleType:
    """Returns Ray, connected.

    Args:
        address: `auto` or HOST:PORT of a cluster that this machine belongs to; `local` for one of this process's own.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        JaxboothError: Ray cannot be started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would hide accelerators from tasks that ask for none, and the driver asks for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15, which the jobs' processes would inherit
    try:
        import ray
    except ImportError:
        raise ConfigError("`fleet run` needs Ray: pip install 'jaxbooth[fleet]', or use `fleet work`") from None
    # Never without an address: Ray would follow RAY_ADDRESS, or what an older cluster left in /tmp/ray.
    if address == "local":
        _start_own(ray)
    else:
        _join(ray, _answering(address))
    return ray


def _start_own(ray: ModuleType) -> None:
    try:
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECTS_BYTES, **QUIET)
    except Exception as error:  # Ray raises no class of its own for a machine that is too busy or too full
        logs = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
        raise JaxboothError(f"Ray could not be started on this machine: {error} (its logs: {logs})") from None


def _join(ray: ModuleType, address: str) -> None:
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(_refusal(address, str(error))) from None


def _answering(address: str) -> str:
    """HOST:PORT of a cluster that answers; Ray itself tries for minutes and then ends the process."""
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init does with the address

    if "://" in address:
        raise ConfigError(_refusal(address, "it must be HOST:PORT, given on a machine of the cluster"))
    try:
        found = canonicalize_bootstrap_address(address)
        host, port = found.rsplit(":", 1)
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (ConnectionError, ValueError, AttributeError) as error:
        raise ConfigError(_refusal(address, str(error))) from None
    except OSError as error:
        raise ConfigError(_refusal(address, f"{found}: {error}")) from None
    return found


def _refusal(address: str, reason: str) -> str:
    return f"--address {address}: no Ray cluster answers ({reason}). Start one, or leave --address out"
