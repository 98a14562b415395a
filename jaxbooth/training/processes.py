"""What the processes of one program must agree on before they act on the shared file system."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxbooth.errors import CheckpointError


def from_process_zero(decide: Callable[[], Any]) -> Any:
    """Calls `decide` on process 0 and returns its JSON-able result on every process; all of them must call this.

    Raises:
        CheckpointError: `decide` raised it, then every process raises it.
    """
    if jax.process_count() == 1:
        return decide()
    answer = {"value": None, "error": None}
    if jax.process_index() == 0:
        try:
            answer["value"] = decide()
        except CheckpointError as error:
            answer["error"] = str(error)
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    # The other processes' text is ignored, but it must have the same length.
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(np.resize(text, size))))
    if answer["error"] is not None:
        raise CheckpointError(answer["error"])
    return answer["value"]
