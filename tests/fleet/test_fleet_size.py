"""Manifests of thousands of subjects: checked and divided into packs in seconds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_fleets import write_base, write_config, write_manifest, write_pictures

from jaxbooth.fleet.packs import form_packs
from jaxbooth.fleet_run import open_fleet, pack_sizes


def many(folder: Path, count: int) -> float:
    """Seconds that it takes to open a fleet of so many subjects and to form its packs."""
    write_base(folder / "base")
    write_config(folder)
    pictures = write_pictures(folder / "pictures", 0, count=5, size=16)
    for number in range(count):
        own = folder / "photos" / f"s{number:05}"
        own.mkdir(parents=True)
        for picture in pictures.iterdir():
            os.link(picture, own / picture.name)
    write_manifest(folder / "subjects.yaml", [f"s{number:05}" for number in range(count)])
    began = time.monotonic()
    fleet = open_fleet(folder / "subjects.yaml", folder / "config.yaml")
    packs = form_packs(fleet.candidates, pack_sizes(fleet.config, 64), {})
    assert len(fleet.members) == count and sum(len(pack.members) for pack in packs) == count
    return time.monotonic() - began


def test_a_thousand_subjects_are_planned_in_seconds(tmp_path):
    assert many(tmp_path, 1000) < 30  # 1 to 2 s where nobody else is at work


@pytest.mark.slow
def test_ten_thousand_subjects_are_planned_in_half_a_minute_and_two_gigabytes(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path; from test_fleet_size import many\n"
        "seconds = many(Path(sys.argv[1]), 10_000)\n"
        "print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    seconds, gigabytes = map(float, ran.stdout.split())
    print(f"{seconds:.1f} s, {gigabytes:.2f} GB")
    assert seconds < 30 and gigabytes < 2
