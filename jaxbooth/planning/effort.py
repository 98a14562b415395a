"""How hard the compiler tries: a full compile of Stable Diffusion takes many minutes, most of them spent on speed."""

from typing import Any, Literal

Effort = Literal["full", "low"]

# XLA's own dial, from -1 to 1: how much compile time may be spent on a program that runs faster. It changes how values
# are scheduled between memories; what is computed stays.
OPTIONS: dict[Effort, dict[str, Any] | None] = {"full": None, "low": {"exec_time_optimization_effort": -1.0}}
