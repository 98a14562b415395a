import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxbooth.errors import ConfigError
from jaxbooth.fleet import leases
from jaxbooth.fleet.keys import content_key
from jaxbooth.fleet.leases import Leases, holder
from jaxbooth.fleet.store import OutputStore

KEY = content_key({"steps": 10})


@pytest.fixture
def store(tmp_path):
    return OutputStore(tmp_path)


def lease_file(store, name="toy"):
    return leases.claims_folder(store) / f"{name}-{KEY[:16]}.json"


def change(store, **values):
    file = lease_file(store)
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("times", [(10, 30), (10, 5), (0, 30), (-1, 30), (10, 100_000), (10, float("nan"))])
def test_a_lease_must_outlast_three_heartbeats(store, times):
    with pytest.raises(ConfigError, match="three times"):
        Leases(store, heartbeat_s=times[0], expiry_s=times[1])


def test_one_worker_at_a_time_has_a_lease(store):
    mine, yours = Leases(store), Leases(store)
    assert mine.claim("toy", KEY) and not yours.claim("toy", KEY) and yours.claim("cat", KEY)
    assert holder(store, "toy", KEY) == mine.owner and holder(store, "dog", KEY) is None
    yours.release("toy", KEY)
    assert holder(store, "toy", KEY) == mine.owner, "it was not theirs to give"
    mine.release("toy", KEY)
    assert holder(store, "toy", KEY) is None and yours.claim("toy", KEY)
    assert lease_file(store).stat().st_mode & 0o777 == 0o600


def test_a_stale_lease_is_taken_over_and_its_owner_learns_of_it(store):
    mine, yours = Leases(store), Leases(store)
    mine.claim("toy", KEY)
    mine.claim("cat", KEY)
    change(store, expiry=time.time() - 1)
    assert yours.claim("toy", KEY)
    assert json.loads(lease_file(store).read_text())["attempt"] == 2
    assert mine.renew() == [f"toy-{KEY[:16]}"]
    mine.release("toy", KEY)
    assert holder(store, "toy", KEY) == yours.owner and holder(store, "cat", KEY) == mine.owner


def test_heartbeats_keep_a_lease_beyond_its_expiry_and_the_end_gives_it_back(store):
    with Leases(store, heartbeat_s=0.2, expiry_s=1.5) as mine:
        mine.claim("toy", KEY)
        for _ in range(11):
            time.sleep(0.2)
            assert holder(store, "toy", KEY) == mine.owner
    assert not lease_file(store).exists()


@pytest.mark.parametrize("shift", [-1e9, -3600, 3600, 1e9, float("inf"), float("nan")])
def test_a_lease_of_a_wrong_clock_is_stale_and_not_eternal(store, shift):
    mine, yours = Leases(store), Leases(store)
    mine.claim("toy", KEY)
    change(store, expiry=time.time() + 120 + shift)
    assert holder(store, "toy", KEY) is None and yours.claim("toy", KEY)


def test_after_a_jump_of_the_clock_the_next_heartbeat_makes_a_lease_live_again(store, monkeypatch):
    mine, now = Leases(store), time.time()
    mine.claim("toy", KEY)
    for jump in (-86_400, 86_400):
        with monkeypatch.context() as patch:
            patch.setattr(leases.time, "time", lambda: now + jump)  # noqa: B023
            assert holder(store, "toy", KEY) is None
            assert mine.renew() == [] and holder(store, "toy", KEY) == mine.owner


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"expiry": "soon", "seconds": 5}', '{"expiry": 1e12}'])
def test_a_file_that_is_no_lease_holds_nobody_up_for_long(store, content):
    file = lease_file(store)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    if content in ("", "{", "[]"):
        assert not Leases(store).claim("toy", KEY), "it might be written just now"
        os.utime(file, (time.time() - 60,) * 2)
    assert Leases(store).claim("toy", KEY)


def test_the_lease_of_a_dead_process_of_this_host_is_stale_at_once(store):
    mine = Leases(store)
    mine.claim("toy", KEY)
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    change(store, pid=dead.pid, owner="another")
    assert Leases(store).claim("toy", KEY)
    change(store, pid=dead.pid, host="elsewhere")
    assert not Leases(store).claim("toy", KEY), "a process of another host cannot be asked"


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_workers_at_once_one_gets_the_lease(store, stale):
    for number in range(20):
        if stale:
            Leases(store).claim(f"toy{number}", KEY)
            file = lease_file(store, f"toy{number}")
            file.write_text(json.dumps(json.loads(file.read_text()) | {"expiry": 0}))
        workers = [Leases(store) for _ in range(16)]
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda worker, name=f"toy{number}": worker.claim(name, KEY), workers))
        assert sum(won) == 1
        assert holder(store, f"toy{number}", KEY) == workers[won.index(True)].owner


def test_a_worker_that_wakes_after_its_lease_expired_only_loses_the_commit(store):
    sleeper, other = Leases(store), Leases(store)
    sleeper.claim("toy", KEY)
    late = store.attempt("toy", KEY)
    (late.path / "weights.bin").write_bytes(b"late")
    change(store, expiry=time.time() - 1)
    assert other.claim("toy", KEY)
    with store.attempt("toy", KEY) as attempt:
        (attempt.path / "weights.bin").write_bytes(b"first")
        assert store.commit(attempt, {})
    assert not store.commit(late, {}) and not late.path.exists()
    assert (store.folder("toy", KEY) / "weights.bin").read_bytes() == b"first"
