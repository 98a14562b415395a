"""A package `jaxbooth` that is found before the real one, and whose command trains nothing.

`python -m jaxbooth fleet pack JOB` of it does what the real one does as far as others can see: it writes its steps,
meets the other hosts of the job as JAX does, and commits a result for every member. All else is the real package.
The job's `config` says how: `notes`, a folder for what each process knows of itself; `seconds` of a pack; `hang`, for a
process that does not notice that others have gone; `exit`, exit codes by rank.
"""

import json
import time
from pathlib import Path

import jaxbooth
from jaxbooth.fleet.dispatch import new_job
from jaxbooth.fleet.driver import Driver, Limits
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.packs import Candidate
from jaxbooth.fleet.store import OutputStore
from jaxbooth.fleet.strikes import StrikeBook

REAL = Path(jaxbooth.__file__).parent

MAIN = """
import json, os, pathlib, socket, sys, time
from jaxbooth.fleet.private_files import write_json
from jaxbooth.fleet.store import OutputStore

rank, hosts = int(os.environ.get("JAX_PROCESS_ID", 0)), int(os.environ.get("JAX_NUM_PROCESSES", 1))
job = json.loads(pathlib.Path(sys.argv[3]).read_text())
config, step = job["config"], pathlib.Path(job["step_file"])
host, _, port = os.environ.get("JAX_COORDINATOR_ADDRESS", ":").partition(":")
peers = []
if hosts > 1 and rank == 0:
    listener = socket.create_server((host, int(port)))
    peers = [listener.accept()[0] for _ in range(hosts - 1)]
elif hosts > 1:
    for _ in range(200):
        try:
            peers = [socket.create_connection((host, int(port)))]
            break
        except OSError:
            time.sleep(0.1)
members = [member for pack in job["packs"] for member in pack["members"]]
write_json(pathlib.Path(config["notes"]) / f"{os.getpid()}.json", {
    "names": [member["name"] for member in members], "pid": os.getpid(), "rank": rank, "hosts": hosts,
    "nice": os.nice(0),
    "environment": {key: value for key, value in os.environ.items() if key.startswith(("JAX_", "TPU_", "SLURM_"))},
})
if code := config.get("exit", {}).get(str(rank)):
    os._exit(code)
for number, pack in enumerate(job["packs"]):
    step.with_name("pack").write_text(str(number))
    end = time.monotonic() + config.get("seconds", 0)
    while True:
        step.write_text(f"{time.monotonic()}")
        for peer in peers:
            peer.setblocking(False)
            try:
                gone = not config.get("hang") and peer.recv(1) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone and time.monotonic() < end:
                os._exit(134)
        if time.monotonic() >= end:
            break
        time.sleep(0.05)
    for member in pack["members"] if rank == 0 else ():
        store = OutputStore(job["out"])
        with store.attempt(member["name"], member["key"]) as attempt:
            (attempt.path / "weights.bin").write_text(member["key"])
            store.commit(attempt, {})
"""


def write_stand_in(folder: Path) -> str:
    """Writes it; returns the PYTHONPATH by which it is found."""
    package = folder / "stand_in" / "jaxbooth"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(REAL)!r})\n")
    (package / "__main__.py").write_text(MAIN)
    return f"{package.parent}:{REAL.parent}"


def wanted(*names: str) -> tuple[list[Candidate], dict]:
    """Candidates, and what a job must know of them."""
    candidates = [Candidate(name, content_key({"name": name})) for name in names]
    return candidates, {one.key: {"name": one.name, "key": one.key} for one in candidates}


class Fleet:
    """A store, and what its jobs' processes told of themselves."""

    def __init__(self, folder: Path):
        self.store, self.notes_folder = OutputStore(folder / "out"), folder / "notes"
        self.book = StrikeBook(self.store)

    def job(self, name: str, size: int, **config):
        packs = [{"members": list(wanted(name)[1].values()), "size": size}]
        job = {"config": self.config(**config), "out": str(self.store.root), "packs": packs}
        return new_job(self.store.bookkeeping / "jobs", self.store.bookkeeping / "compiled", job)

    def config(self, **config):
        return {"notes": str(self.notes_folder)} | config

    def driver(self, names, engine, size, **config):
        candidates, members = wanted(*names)
        limits = Limits((size,), packs_per_process=1)
        return Driver(self.store, candidates, members, self.config(**config), engine, limits)

    def notes(self, name: str | None = None) -> list[dict]:
        """Of all processes, or of those that had a subject; the leader's first."""
        found = [json.loads(note.read_text()) for note in self.notes_folder.glob("*.json")]
        return sorted((one for one in found if name in (None, *one["names"])), key=lambda one: one["rank"])

    def wait_for_notes(self, count: int, name: str | None = None) -> list[dict]:
        wait_until(lambda: len(self.notes(name)) >= count)
        return self.notes(name)

    def strikes(self, names) -> set[tuple[str, ...]]:
        return {tuple(strike.kind for strike in self.book.of(one.name, one.key)) for one in wanted(*names)[0]}

    def is_done(self, name: str) -> bool:
        ((candidate,), _) = wanted(name)
        return self.store.is_done(name, candidate.key)


def wait_until(happened, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ancestor(pid: int, generations: int) -> int:
    for _ in range(generations):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid
