"""Trains a fleet of pocket subjects through local Ray while its processes are killed, and counts what is left.

    python tests/fleet/chaos.py --subjects 1000 --out DIR [--pack-size 16] [--packs-per-process 1] [--steps 2]
        [--method textual_inversion|lora] [--kill 0.12] [--seed 0] [KEY=VALUE ...]

Of the processes that train packs, `--kill` of them die by SIGKILL at a random moment: themselves, or their warden, or
Ray's worker above them. The driver is killed twice and started again; for a while there are two. All that time every
result that appears is read whole at first sight. At the end every subject must have exactly one result with the digests
that DONE.json names, the one that was seen first. Prints seconds per subject for every tenth of the subjects and what
lies about; DIR/chaos.json holds the same. Exit code 1 if anything is not as it must be.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from jaxbooth.fleet.store import OutputStore
from jaxbooth.pocket import DEMO_SUBJECTS, SUBJECTS

POLL_S = 0.5
CONFIGS = Path(__file__).parents[2] / "configs" / "pocket"
SMALL = ["prior.loss_weight=0", "sample.prompts=[]", "sample.class_prompts=[]", "train.batch_size=1"]
VICTIMS = ("process", "process", "process", "warden", "Ray worker")  # generations above the process: 0, 0, 0, 1, 2
DRIVER_DIES = (0.2, 0.4)  # shares of the subjects that are done then
TWO_DRIVERS = (0.6, 0.8)
STUCK_S = 1800.0  # without a new result


@dataclass
class Report:
    """What is told at the end."""

    subjects: int
    processes: int = 0
    killed: dict[str, int] = field(default_factory=dict)
    drivers_killed: int = 0
    seconds_until_no_job_lived: list[float] = field(default_factory=list)  # after a driver was killed
    seconds_of_two_drivers: float = 0.0
    second_driver_exit: int | None = None
    seconds_per_subject: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    left: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def write_manifest(folder: Path, count: int) -> Path:
    """Subjects that differ in name and so in randomness; they share the photos of the demo subjects."""
    shutil.copytree(SUBJECTS, folder, dirs_exist_ok=True)
    rows = []
    for number in range(count):
        demo = DEMO_SUBJECTS[number % len(DEMO_SUBJECTS)]
        name = f"subject-{number:04d}"
        rows.append({"name": name, "images": demo.name, "class_noun": demo.class_noun, "token": f"<{name}>"})
    (folder / "subjects.yaml").write_text(yaml.safe_dump({"subjects": rows}))
    return folder / "subjects.yaml"


class Results:
    """What can be seen in the folder of results: each result is read whole when it is first seen."""

    def __init__(self, out: Path, names: list[str], report: Report):
        self.store, self._report, self._wanted = OutputStore(out), report, set(names)
        self.seen: dict[str, tuple[Path, tuple[int, bytes]]] = {}  # subject -> its result, and what DONE.json was
        self.times: list[float] = []

    def look(self) -> int:
        """Looks at the subjects that had no result yet; returns how many have one."""
        for name in self._wanted - self.seen.keys():
            for result in visible(self.store.root / name):
                self.times.append(time.monotonic())
                self.seen[name] = (result, identity(result))
                if problems := damage(self.store, result):
                    self._report.wrong.append(f"{result} was seen unfinished: {problems}")
        return len(self.seen)

    def check(self) -> None:
        """Looks at all of them once more, when nothing runs any more."""
        for name in sorted(self._wanted):
            results = visible(self.store.root / name)
            if len(results) != 1:
                self._report.wrong.append(f"{name} has {len(results)} results")
            for result in results:
                if problems := damage(self.store, result):
                    self._report.wrong.append(f"{result}: {problems}")
                if self.seen.get(name) != (result, identity(result)):
                    self._report.wrong.append(f"{result} is not the one that was seen first")
        self._report.wrong += [f"{file}: given up" for file in self.store.root.glob("*/*.FAILED.json")]

    def left(self) -> dict[str, int]:
        """What lies about beside results."""
        patterns = {"attempts": "*/.tmp-*", "set aside": "*/.bad-*"}
        patterns |= {kind: f".fleet/{kind}/*" for kind in ("claims", "jobs", "packs", "removing", "strikes")}
        return {kind: len(list(self.store.root.glob(pattern))) for kind, pattern in patterns.items()}


def visible(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[!.]*") if not path.name.endswith(".FAILED.json")]


def identity(result: Path) -> tuple[int, bytes]:
    """Of one commit: nothing writes DONE.json a second time."""
    with suppress(OSError):
        return (result / "DONE.json").stat().st_ino, (result / "DONE.json").read_bytes()
    return 0, b""


def damage(store: OutputStore, result: Path) -> list[str]:
    try:
        contents = json.loads((result / "DONE.json").read_text())
        problems = store.problems(result.parent.name, contents["key"], verify=True) or []
        return problems + ([] if contents["key"].startswith(result.name) else [f"is of key {contents['key']}"])
    except (OSError, ValueError, KeyError) as error:
        return [f"{type(error).__name__}: {error}"]


class Killer:
    """Sentences some of the fleet's processes to death, each at a moment of its life."""

    def __init__(self, jobs: Path, share: float, seed: int, report: Report):
        self._word, self._share, self._report, self._random = str(jobs).encode(), share, report, random.Random(seed)
        self._born: dict[int, float] = {}
        self._doomed: dict[int, tuple[float, str]] = {}  # process -> when, and which one of its line
        self._life_s = 20.0  # of a process, as far as is known

    def processes(self) -> list[int]:
        """Those that train packs now."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes()
                if self._word in words and b"warden.py" not in words and b"-m\0jaxbooth" in words:
                    found.append(int(folder.name))
        return found

    def moment(self) -> float:
        """A random one in the life of a process that was born just now."""
        return time.monotonic() + self._random.random() * self._life_s

    def strike(self) -> None:
        """Passes sentences on those that are new, and carries out those that are due."""
        now, alive = time.monotonic(), self.processes()
        for pid in set(alive) - self._born.keys():
            self._born[pid] = now
            self._report.processes += 1
            if self._random.random() < self._share:
                self._doomed[pid] = self.moment(), self._random.choice(VICTIMS)
        for pid in self._born.keys() - set(alive):
            self._life_s = max(2.0, 0.7 * self._life_s + 0.3 * (now - self._born.pop(pid)))
            self._doomed.pop(pid, None)
        for pid, (when, victim) in list(self._doomed.items()):
            if now >= when:
                del self._doomed[pid]
                with suppress(OSError):
                    os.kill(ancestor(pid, ("process", "warden", "Ray worker").index(victim)), signal.SIGKILL)
                    self._report.killed[victim] = self._report.killed.get(victim, 0) + 1


def ancestor(pid: int, generations: int) -> int:
    for _ in range(generations):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


class Drivers:
    """The command, started again and again; one more beside it when asked for."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]):
        self._command, self._folder, self._env = command, folder, env
        self._count = 0

    def start(self) -> subprocess.Popen:
        self._count += 1
        with (self._folder / f"driver{self._count}.log").open("w") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._env, start_new_session=True
            )


def run(drivers: Drivers, results: Results, killer: Killer, report: Report) -> None:
    """Until a driver says that all is done."""
    driver, second, began, since = drivers.start(), None, time.monotonic(), 0.0
    deaths, death = [share * report.subjects for share in DRIVER_DIES], None
    two = [share * report.subjects for share in TWO_DRIVERS]
    try:
        while (code := driver.poll()) is None:
            time.sleep(POLL_S)
            done = results.look()
            killer.strike()
            if deaths and death is None and done >= deaths[0]:
                del deaths[0]
                death = killer.moment()
            elif death is not None and time.monotonic() > death:
                death = None
                kill(driver, killer, report)
                driver = drivers.start()
            elif len(two) == 2 and not deaths and death is None and done >= two[0]:
                del two[0]
                second, since = drivers.start(), time.monotonic()
            elif second is not None and len(two) == 1 and (done >= two[0] or second.poll() is not None):
                del two[0]
                second.terminate()
                report.seconds_of_two_drivers = round(time.monotonic() - since, 1)
            if time.monotonic() - max([began, *results.times]) > STUCK_S:
                report.wrong.append(f"no result for {STUCK_S:g} s")
                break
        if code != 0:
            report.wrong.append(f"the driver ended with {code}")
        if second is not None:
            report.second_driver_exit = second.wait(300)
    finally:
        for process in (driver, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def kill(driver: subprocess.Popen, killer: Killer, report: Report) -> None:
    """Kills the driver; nothing that it started may go on training."""
    driver.kill()
    driver.wait()
    report.drivers_killed += 1
    began = time.monotonic()
    while killer.processes():
        if time.monotonic() - began > 60:
            report.wrong.append("a job outlived its driver by a minute")
            return
        time.sleep(0.02)
    report.seconds_until_no_job_lived.append(round(time.monotonic() - began, 2))


def seconds_per_subject(times: list[float], began: float) -> dict[str, float]:
    """For every tenth of the subjects, in the order in which they appeared."""
    bounds = [round(len(times) * part / 10) for part in range(11)]
    spans = [(first, last) for first, last in zip(bounds, bounds[1:], strict=False) if last > first]
    ends = [began, *times]
    return {f"{first + 1}-{last}": round((ends[last] - ends[first]) / (last - first), 2) for first, last in spans}


@contextmanager
def environment(out: Path) -> Iterator[dict[str, str]]:
    """Of the drivers: one CPU device, caches and Ray's files of their own."""
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of its sockets must be short
    env = os.environ | {"JAXBOOTH_CACHE": str(out / "cache"), "RAY_TMPDIR": short, "HF_HUB_OFFLINE": "1"}
    env.setdefault("JAX_PLATFORMS", "cpu")
    env.pop("XLA_FLAGS", None)
    try:
        yield env
    finally:
        shutil.rmtree(short, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--pack-size", type=int, default=16)
    parser.add_argument("--packs-per-process", type=int, default=1)
    parser.add_argument("--method", choices=("textual_inversion", "lora"), default="textual_inversion")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--kill", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the configuration")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True)
    manifest, report = write_manifest(out / "photos", options.subjects), Report(options.subjects)
    command = [sys.executable, "-m", "jaxbooth", "fleet", "run", str(manifest), "--out", str(out / "fleet")]
    command += ["--config", str(CONFIGS / f"{options.method}.yaml"), "--pack-size", str(options.pack_size)]
    command += ["--packs-per-process", str(options.packs_per_process), *SMALL, f"train.steps={options.steps}"]
    names = [row["name"] for row in yaml.safe_load(manifest.read_text())["subjects"]]
    results = Results(out / "fleet", names, report)
    killer = Killer(out / "fleet" / ".fleet" / "jobs", options.kill, options.seed, report)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no driver is left
    began = time.monotonic()
    with environment(out) as env:
        run(Drivers([*command, *options.overrides], out, env), results, killer, report)
        report.seconds = round(time.monotonic() - began, 1)
        results.look()
        results.check()
        report.wrong += [f"process {pid} is left" for pid in killer.processes()]
    report.left, report.seconds_per_subject = results.left(), seconds_per_subject(results.times, began)
    text = json.dumps(asdict(report), indent=1)
    (out / "chaos.json").write_text(text)
    print(text)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
