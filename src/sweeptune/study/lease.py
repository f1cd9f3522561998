"""Who works on a run folder: leases that die with their owner, and are taken over once.

The n-th owner of a folder holds ``.lease-<n>.json``, made by a link, which succeeds for one process only. Nothing is
ever renamed or removed, so two processes that find the n-th owner dead cannot both follow it, and an owner that was
only suspended finds the next lease and knows that it has been followed.

An owner shows that it lives by touching its lease. Others look whether the file's time *changes* while their own
monotonic clock runs, never at the time itself, so clocks that jump or differ kill nobody. On the owner's own machine
they ask for the process, which tells at once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from sweeptune.tracking.files import write_text

log = logging.getLogger("sweeptune")

HEARTBEAT_S = 5.0
STALE_S = 90.0
"""An owner elsewhere whose lease has not been touched for so long is dead: many missed heartbeats, for slow disks."""


@dataclass(frozen=True)
class Lease:
    """The right to write in a folder.

    Attributes:
        folder: The run folder.
        number: How many owners the folder has had: this one included.
    """

    folder: Path
    number: int

    @property
    def path(self) -> Path:
        return _path(self.folder, self.number)

    def followed(self) -> bool:
        """Whether somebody thought us dead and went on in our place."""
        return _path(self.folder, self.number + 1).exists()

    def release(self) -> None:
        """Let others go on at once."""
        with suppress(OSError):
            write_text(self.path, json.dumps({"released": True}))


@dataclass
class Leases:
    """The leases of this process, kept alive by a thread of its own, and what it knows of others'.

    Example:
        >>> with Leases() as leases:
        ...     lease = leases.take(Path("multirun/demo/3"))   # None: somebody else works there
    """

    held: dict[Path, Lease] = field(default_factory=dict)
    heartbeat_s: float = HEARTBEAT_S
    stale_s: float = STALE_S
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Leases:
        threading.Thread(target=self._beat, name="leases", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for lease in list(self.held.values()):
            self.release(lease)

    def take(self, folder: Path) -> Lease | None:
        """Become the owner of a folder, unless a living process is, this one included; a missing folder is made."""
        number = _last(folder)
        if folder in self.held or not self._free(folder, number):
            return None
        lease = Lease(folder, number + 1)  # of the owner just judged: whoever came in between keeps it
        folder.mkdir(parents=True, exist_ok=True)
        if not _create(lease.path, _self()):
            return None
        self.held[folder] = lease
        return lease

    def release(self, lease: Lease) -> None:
        """Give a folder back."""
        if self.held.pop(lease.folder, None) is not None:
            lease.release()

    def free(self, folder: Path) -> bool:
        """Whether nobody works on the folder: there is no lease, it was given back, or its owner is dead."""
        return self._free(folder, _last(folder))

    def _free(self, folder: Path, number: int) -> bool:
        if number == 0:
            return True
        path = _path(folder, number)
        try:
            text, touched = path.read_text(), path.stat().st_mtime_ns
        except OSError:
            return False  # the next look tells
        owner: dict[str, Any] = {}
        with suppress(ValueError):  # emptied by a loss of power: as stale as another machine's
            owner = json.loads(text)
        if owner.get("released"):
            return True
        if owner.get("machine") == _machine():
            return not _runs(owner)
        known, since = self._seen.get(path, (None, 0.0))
        if known != touched:
            self._seen[path] = (touched, time.monotonic())
            return False
        return time.monotonic() - since > self.stale_s

    def lost(self) -> list[Lease]:
        """Those of our leases that others have followed: what runs there must stop, and write nothing more."""
        return [lease for lease in self.held.values() if lease.followed()]

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_s):
            for lease in list(self.held.values()):
                with suppress(OSError):
                    os.utime(lease.path)


def owners(folder: Path) -> int:
    """How many owners a folder has had."""
    return _last(folder)


def _path(folder: Path, number: int) -> Path:
    return folder / f".lease-{number}.json"


def _last(folder: Path) -> int:
    numbers = [int(path.stem.rpartition("-")[2]) for path in folder.glob(".lease-*.json")]
    return max(numbers, default=0)


def _create(path: Path, value: dict[str, Any]) -> bool:
    """Make a file with its content in one step; False where it exists."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-lease-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file)
        try:
            os.link(name, path)
        except FileExistsError:
            return False
        return True
    finally:
        os.unlink(name)


def _self() -> dict[str, Any]:
    process = psutil.Process()
    return {"machine": _machine(), "pid": process.pid, "started": process.create_time(), "ticks": _ticks(process.pid)}


def _runs(owner: dict[str, Any]) -> bool:
    """Whether the process that wrote a lease on this machine is still there; its number alone may have a new holder."""
    try:
        process = psutil.Process(owner["pid"])
        # Where ticks are unknown (no Linux) the start in seconds must do, which a jump of the clock moves.
        if owner.get("ticks") is not None:
            same = owner["ticks"] == _ticks(process.pid)
        else:
            same = abs(owner["started"] - process.create_time()) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, KeyError):
        return False


def _ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: what no change of the clock moves."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _machine() -> str:
    """This machine since its last start, and this container: process numbers mean something inside it only."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
    return " ".join(parts)
