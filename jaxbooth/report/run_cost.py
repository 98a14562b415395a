"""What a run cost, from its metrics and the sizes of its files."""

import math
from dataclasses import dataclass
from pathlib import Path

from jaxbooth.report.run_files import RunFiles

PEAK_MEMORY = "memory/peak_bytes"


@dataclass(frozen=True)
class Cost:
    """Seconds, bytes; None where the run does not tell.

    Attributes:
        wall_seconds: Of all processes that worked on it, one after the other.
        training_share: Of the last process's time, in which steps were taken.
        devices: How many worked at once.
        device_kind: What they are.
        peak_bytes: The most that one device held.
        sizes: Bytes of what it keeps, by name.
    """

    wall_seconds: float | None
    training_share: float | None
    devices: int | None
    device_kind: str | None
    peak_bytes: float | None
    sizes: dict[str, int]

    @property
    def device_seconds(self) -> float | None:
        """Wall time over all devices."""
        return None if self.wall_seconds is None or self.devices is None else self.wall_seconds * self.devices


def cost_of(run: RunFiles) -> Cost:
    """Adds up one run."""
    totals = [number for line in run.metrics if (number := _number(line.get("time/total_s"))) is not None]
    # A resumed run's clock begins anew: what was shown before it did counts, too.
    ended = [last for last, following in zip(totals, totals[1:] + [0.0], strict=True) if following < last]
    share = [number for line in run.metrics if (number := _number(line.get("time/goodput"))) is not None]
    peaks = [number for line in run.metrics if (number := _number(line.get(PEAK_MEMORY))) is not None]
    devices = run.record.get("devices")
    devices = devices if isinstance(devices, dict) else {}
    count = devices.get("count")
    return Cost(
        wall_seconds=sum(ended) if ended else None,
        training_share=share[-1] if share else None,
        devices=count if isinstance(count, int) else _of_mesh(run),
        device_kind=str(devices["kind"]) if devices.get("kind") else None,
        peak_bytes=max(peaks, default=None),
        sizes=_sizes(run.path),
    )


def _of_mesh(run: RunFiles) -> int | None:
    sizes = [run.value(f"mesh.{axis}") for axis in ("subject", "data", "fsdp")]
    return math.prod(sizes) if all(isinstance(size, int) and size > 0 for size in sizes) else None


def _sizes(path: Path) -> dict[str, int]:
    checkpoints = [folder for folder in path.glob("checkpoints/*") if folder.name.isdecimal()]
    newest = max(checkpoints, key=lambda folder: int(folder.name), default=None)
    folders = {"adapter": path / "adapter", "pipeline": path / "pipeline"}
    if newest is not None:
        folders[f"checkpoint of step {newest.name}"] = newest
    return {name: size for name, folder in folders.items() if (size := _bytes_below(folder))}


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _number(value) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def say_seconds(seconds: float) -> str:
    """ "48 s", "3.2 min", "5.1 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def say_bytes(count: float) -> str:
    """ "812 B", "3.2 KB", "14 MB", "3.66 GB"; powers of ten, as file managers count."""
    for unit, power in (("GB", 9), ("MB", 6), ("KB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} B"
