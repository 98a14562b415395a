"""The loss of rows that are the same each time: what changes in it is what was learned, not what was drawn."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.diffusion.loss import Objective
from jaxbooth.methods.base import Method
from jaxbooth.sharding import batch_sharding, replicated, subject_sharding
from jaxbooth.training.gradients import NOISE_STREAM, pack_losses
from jaxbooth.training.pack import Pack
from jaxbooth.training.state import Flat, Split, TrainState, state_shardings
from jaxbooth.types import Batch

NEVER = -1  # the step whose noise no training step draws: keys take it as the largest of 32 bits


def fixed_loss_program(
    method: Method, split: Split, objective: Objective, mesh: Mesh, state: TrainState, *, stream: int = NOISE_STREAM,
    as_drawn: bool = False,
) -> Callable:  # fmt: skip
    """Builds `(adapter, statistics, base, batch, pack) -> metrics [s]`, with the same noise for a row each time.

    Args:
        state: Gives shapes and layout only.
        stream: Of the rows' keys.
        as_drawn: As `pack_losses` has it.
    """
    of_step = pack_losses(method, split, objective, mesh, stream, as_drawn)

    def losses(adapter: Flat, statistics: Flat, base: Flat, batch: Batch, pack: Pack):
        return of_step(adapter, statistics, base, batch, pack, np.uint32(NEVER % 2**32))

    layout = state_shardings(state, mesh)
    return jax.jit(
        losses,
        in_shardings=(layout.adapter, layout.statistics, None, batch_sharding(mesh), subject_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def on_host(metrics: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """What every device holds whole, as host arrays `[s]`."""
    return {name: np.asarray(value.addressable_data(0)) for name, value in metrics.items()}
