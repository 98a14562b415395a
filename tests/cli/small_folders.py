"""Photos for small runs, and what lies in a folder before and after a command."""

import numpy as np
from PIL import Image


def write_photos(folder, count=4):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def snapshot(folder):
    """Names, contents and times of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }
