"""TPU slices that are not there: libtpu's compiler describes and compiles for them on any machine.

`describe_topology("v5e:2x4")` gives devices to make a mesh of, and a step that is lowered for that mesh with abstract
arguments compiles as on the slice itself, memory check included. Nothing can be run on them.
"""

import glob
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from jaxbooth.errors import ConfigError, list_problems
from jaxbooth.planning.chips import TPUS, Chip

# Without these libtpu asks the cloud's metadata server which TPU this is (for minutes, where there is none), and two
# processes may not compile at once. On a machine with a TPU they would break what runs there.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any; the topology's name is what counts
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
ONE_HOST = {"v5e": 8, "v6e": 8}  # chips of the largest machine that is a slice by itself; 4 of every other kind
DIMENSIONS = {"v3": 2, "v5e": 2, "v6e": 2}  # of the torus; 3 of every other kind
MEGACORE = {"v4", "v5p"}  # two cores of a chip are one device, as on the slices themselves
EXAMPLES = ("v4:2x2x2", "v5e:2x4", "v5e:4x4", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1", "2xv5e:4x4")


def describe_topology(name: str) -> list[jax.Device]:
    """The devices of a TPU slice, or of several, to compile for.

    Args:
        name: Chip and shape, `v5e:2x4`; `2xv5e:2x4` are two such slices.

    Raises:
        ConfigError: The name is none, or libtpu is not installed or cannot be loaded.
    """
    slices, chip, shape = parse_topology(name)
    one = f"{chip}:{'x'.join(map(str, shape))}"
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError(
            f"topology {name}: the TPU compiler is not installed. pip install 'jaxbooth[plan]' brings the libtpu "
            f"of this JAX ({jax.__version__}); no TPU is needed."
        )
    without_a_tpu()
    options = {"chip_config_name": "megacore"} if chip in MEGACORE else {}
    if math.prod(shape) <= ONE_HOST.get(chip, 4):
        options["chips_per_host_bounds"] = (*shape, 1)[:3]
    if slices > 1:
        options["num_slices"] = slices
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=one, **options).devices)
    except (RuntimeError, ValueError) as error:  # jax.errors.JaxRuntimeError is a RuntimeError
        raise ConfigError(_reason(name, str(error))) from error


def parse_topology(name: str) -> tuple[int, str, tuple[int, ...]]:
    """`v5e:2x4` -> `(1, "v5e", (2, 4))`, `4xv5e:2x4` -> `(4, "v5e", (2, 4))`.

    Raises:
        ConfigError: It is no topology.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", name)
    slices, chip, shape = int(found[1] or 1) if found else 1, name.split(":")[0], ()
    if found:
        chip, shape = found[2], tuple(map(int, found[3].split("x")))
    problems, wanted = [], DIMENSIONS.get(chip, 3)
    if chip not in TPUS:
        problems.append(f'the chip "{chip}" is none of {", ".join(TPUS)}')
    elif len(shape) != wanted or 0 in shape:
        problems.append(f"slices of {chip} have {wanted} dimensions, each 1 or more, as in {_example(chip)}")
    if slices == 0:
        problems.append("there is 1 slice or more")
    if problems:
        advice = f"Write the chip and the shape of the slice, e.g. {', '.join(EXAMPLES)}."
        raise ConfigError(list_problems(f'topology "{name}" cannot be used:', problems, advice))
    return slices, chip, shape


def count_devices(name: str) -> tuple[Chip, int]:
    """The chip of slices, and how many devices JAX will see on all of them; asks no compiler, so none need exist.

    Raises:
        ConfigError: It is no topology.
    """
    slices, kind, shape = parse_topology(name)
    return TPUS[kind], slices * math.prod(shape) * TPUS[kind].devices


def without_a_tpu() -> None:
    """Readies a process for compiling only: it never touches a TPU. Leaves machines that have one as they are."""
    if not tpu_machine():
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
    if jax.config.jax_platforms is None:
        # Else JAX would look for the TPU that libtpu's presence promises.
        jax.config.update("jax_platforms", "cpu")


def tpu_machine() -> bool:
    """Whether there are TPUs here, by the files of their drivers."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _example(chip: str) -> str:
    return next((name for name in EXAMPLES if name.startswith(f"{chip}:")), f"{chip}:2x2")


def _reason(name: str, message: str) -> str:
    first = message.splitlines()[0]
    if "not divisible" in message or "topology" in message.lower():
        return f"topology {name}: there is no such slice ({first}). Known to compile: {', '.join(EXAMPLES)}."
    if "lockfile" in message:
        return f"topology {name}: another process holds libtpu ({first}). Wait for it, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 on a machine without a TPU."  # noqa: E501
    return f"topology {name}: libtpu cannot be used ({first}). Is TPU_LOAD_LIBRARY=0 set, or is it of another JAX?"
