"""One measurement in a process of its own: `python -m jaxbooth.bench jaxbooth|diffusers|loop`, JSON in, JSON out."""

import json
import re
import sys
from pathlib import Path

from jaxbooth.bench import OUT_OF_MEMORY

# XLA's, CUDA's and the host's words for it.
NO_ROOM = re.compile(r"RESOURCE_EXHAUSTED|out of memory|can't allocate memory|std::bad_alloc", re.IGNORECASE)


def main() -> None:
    """Prints a `Figure` as the last line."""
    program, given = sys.argv[1], json.load(sys.stdin)
    try:
        found = _measure(program, given)
    except Exception as error:
        if not (isinstance(error, MemoryError) or NO_ROOM.search(str(error))):
            raise
        found = {"program": program, "problem": OUT_OF_MEMORY}
    if found.get("peak_bytes") is None and found.get("problem") is None:
        found["peak_bytes"] = host_peak()
    print(json.dumps(found))


def _measure(program: str, given: dict) -> dict:
    if program == "diffusers":  # in a process that knows nothing of JAX
        from jaxbooth.evaluation.torch_step import measure as measure_reference

        return measure_reference(given)
    from jaxbooth.bench.case import Case
    from jaxbooth.bench.loop import measure_loop
    from jaxbooth.bench.ours import measure

    return (measure_loop if program == "loop" else measure)(Case(**given)).model_dump(mode="json")


def host_peak() -> int | None:
    """The most memory that this process has had, in bytes; None where Linux is not there to tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
