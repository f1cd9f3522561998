"""Leases: one owner at a time, a dead one followed once, a living one never, whatever the clocks do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeptune.study import lease as module
from sweeptune.study.lease import Leases, owners


def other(folder: Path, **owner: object) -> Path:
    """A lease that a process on another machine holds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lease-1.json"
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": 0.0, "ticks": 1, **owner}))
    return path


def test_a_folder_has_one_owner_and_can_be_given_back(tmp_path: Path) -> None:
    one, two = Leases(), Leases()
    lease = one.take(tmp_path / "0")
    assert lease is not None and lease.number == 1
    assert two.take(tmp_path / "0") is None
    one.release(lease)
    again = two.take(tmp_path / "0")
    assert again is not None and again.number == 2 and owners(tmp_path / "0") == 2


def test_the_owner_that_was_followed_knows_it(tmp_path: Path) -> None:
    one = Leases()
    lease = one.take(tmp_path / "0")
    assert lease is not None and one.lost() == []
    (tmp_path / "0" / ".lease-2.json").write_text("{}")
    assert one.lost() == [lease]


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sweeptune.study.lease import Leases; "
        f"Leases().take(Path({str(tmp_path / '0')!r})); print('taken', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "taken\n"
    assert Leases().take(tmp_path / "0") is None
    child.kill()
    child.wait()
    lease = Leases().take(tmp_path / "0")
    assert lease is not None and lease.number == 2


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    other(tmp_path / "0", machine=module._machine(), pid=os.getpid(), ticks=7)
    assert Leases().take(tmp_path / "0") is not None


def test_elsewhere_only_a_heartbeat_that_stops_means_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = other(tmp_path / "0")
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    leases = Leases(stale_s=90.0)
    for jump in (0, 10**6, -(10**6), 5):  # the clocks of machines jump and differ: it is the change that counts
        os.utime(path, (time.time() + jump, time.time() + jump))
        clock[0] += 60
        assert leases.take(tmp_path / "0") is None
    clock[0] += 89
    assert leases.take(tmp_path / "0") is None
    clock[0] += 2
    lease = leases.take(tmp_path / "0")
    assert lease is not None and lease.number == 2


def test_of_many_that_follow_a_dead_owner_one_succeeds(tmp_path: Path) -> None:
    other(tmp_path / "0", released=True)
    assert sum(Leases().take(tmp_path / "0") is not None for _ in range(8)) == 1


def test_a_heartbeat_touches_the_lease(tmp_path: Path) -> None:
    with Leases(heartbeat_s=0.05) as leases:
        lease = leases.take(tmp_path / "0")
        assert lease is not None
        before = lease.path.stat().st_mtime_ns
        time.sleep(0.4)
        assert lease.path.stat().st_mtime_ns > before
    assert json.loads(lease.path.read_text()) == {"released": True}


def test_what_we_own_is_not_taken_twice(tmp_path: Path) -> None:
    leases = Leases()
    assert leases.take(tmp_path / "a") is not None
    assert leases.take(tmp_path / "a") is None, "two of our slots would train in one folder"


def test_whoever_came_in_between_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, late = Leases(), Leases(), Leases()
    held = first.take(tmp_path / "a")
    assert held is not None
    first.release(held)
    judged = late._free

    def slow(folder: Path, number: int) -> bool:
        found = judged(folder, number)
        assert second.take(folder) is not None
        return found

    monkeypatch.setattr(late, "_free", slow)
    assert late.take(tmp_path / "a") is None


def test_an_emptied_lease_goes_stale(tmp_path: Path) -> None:
    gone, leases = Leases(), Leases(stale_s=0.05)
    lease = gone.take(tmp_path / "a")
    assert lease is not None
    lease.path.write_text("")
    assert not leases.free(tmp_path / "a")
    time.sleep(0.1)
    assert leases.free(tmp_path / "a")
