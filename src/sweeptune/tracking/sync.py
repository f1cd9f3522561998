"""``sweeptune sync DIR``: send to Weights & Biases what it has not got, of runs with and without ``tracker=wandb``.

There is one way into W&B: the run's own files are replayed, under the id that `sweeptune.tracking.describe` gives the
attempt. The .wandb files that ``tracker=wandb_offline`` leaves are for ``wandb leet`` and are not uploaded: W&B does
not join them (an offline run that was resumed is several files, of which the last one sent replaces the others),
while rows of metrics.jsonl have one place each. A run that was sent in part goes on after its last row, one that was
sent whole is left alone, so calling it again changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

from sweeptune.config.errors import ConfigError
from sweeptune.config.tracker_rules import has_wandb
from sweeptune.tracking.delivery import LOCK, METRICS, Rows, conclude, count_rows, is_complete, write_note
from sweeptune.tracking.describe import card as describe
from sweeptune.tracking.record import RECORD, natural
from sweeptune.tracking.tracker import Card
from sweeptune.tracking.wandb_run import WandbTracker, has_key, server

STARTS = "attempts.jsonl"
QUIET_S = 600.0
"""A run of another machine, without a study, that has written nothing for so long has ended."""
LEASE_S = 90.0
"""Likewise the lease of a study: `sweeptune.study.lease.STALE_S`."""
State = Literal["sent", "there", "would send", "busy", "running", "unreadable"]


@dataclass(frozen=True)
class Sent:
    """What became of one run folder.

    Attributes:
        folder: The run's.
        state: sent; there: it was sent before; busy: it is being sent by its own run; running: it has not ended.
        id: Of the W&B run.
        rows: How many were sent now, or would be.
        note: Its page, or why it was not sent.
    """

    folder: Path
    state: State
    id: str = ""
    rows: int = 0
    note: str = ""


def sync(
    root: Path,
    *,
    project: str | None = None,
    entity: str | None = None,
    dry_run: bool = False,
    tell: Callable[[Sent], None] = lambda sent: None,
) -> list[Sent]:
    """Send every run at and below a folder that W&B has not got.

    Args:
        root: A run folder, a study, or a folder of many.
        project: Replaces ``tracker.project`` of the runs.
        entity: Replaces ``tracker.entity``.
        dry_run: Only say what would be sent; needs neither key nor network.
        tell: Called with each run as it is done.

    Raises:
        ConfigError: There is no run, no key, no package, or the server does not answer; what was sent before that is
            noted and stays.

    Example:
        >>> [run.state for run in sync(Path("multirun/demo"))]
        ['sent', 'sent', 'sent']
    """
    folders = find_runs(root)
    if not dry_run:
        _check_ready()
    done = []
    for folder in folders:
        done.append(_one(folder, project, entity, dry_run=dry_run))
        tell(done[-1])
    return done


def find_runs(root: Path) -> list[Path]:
    """Folders of runs at and below a folder, in natural order; probes are measurements, not runs.

    Raises:
        ConfigError: There is none.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. Give a run, a study or a folder of many, such as multirun/demo")
    found = [path.parent for path in sorted(root.rglob("config.yaml"), key=natural)]
    runs = [folder for folder in found if not _is_no_run(folder.absolute())]
    if not runs:
        raise ConfigError(
            f"{root}: holds no run. A run folder has a config.yaml; runs lie in outputs/<date>/<time> and "
            "multirun/<study>/<number>"
        )
    return runs


def _is_no_run(folder: Path) -> bool:
    """Whether it is a study's probe, or in its copy of the code."""
    return any(
        above.name in ("probes", "code") and (above.parent / "study.json").is_file()
        for above in (folder, *folder.parents)
    )


def _check_ready() -> None:
    if not has_wandb():
        raise ConfigError("sweeptune sync: the package wandb is not installed. pip install 'sweeptune[wandb]'")
    if not has_key():
        raise ConfigError(
            f"sweeptune sync: no key for {server()}. Log in once with `wandb login`, or set WANDB_API_KEY "
            "(--dry-run needs none)"
        )


def _one(folder: Path, project: str | None, entity: str | None, *, dry_run: bool) -> Sent:
    try:
        known = describe(folder, project=project, entity=entity)
    except ConfigError as error:
        return Sent(folder, "unreadable", note="; ".join(error.problems))
    if dry_run:
        return _nothing_to_send(folder, known) or Sent(folder, "would send", known.id, count_rows(folder))
    try:
        with FileLock(folder / LOCK, timeout=0):
            return _nothing_to_send(folder, known) or _send(folder, known)
    except Timeout:
        return Sent(folder, "busy", known.id, note="it is being sent at this moment")


def _nothing_to_send(folder: Path, known: Card) -> Sent | None:
    """Why a run needs no sending now; None where it does."""
    if is_complete(folder, known, server()):
        return Sent(folder, "there", known.id)
    if is_running(folder):
        return Sent(folder, "running", known.id, note="it has not ended; sync again when it has")
    return None


def _send(folder: Path, known: Card) -> Sent:
    tracker = WandbTracker(folder, online=True)
    try:
        have = tracker.start(known)
        rows = Rows(folder, have)
        for index, line in rows.fresh():
            tracker.log(line, index)
        conclude(folder, tracker)
    except Exception as error:  # W&B's own, of any kind: none of them is a reason for a traceback
        tracker.close()
        raise ConfigError(
            f"{folder}: {server()} did not take it ({type(error).__name__}: {str(error).splitlines()[0]}). Runs before "
            "it are sent and noted; the same command goes on"
        ) from error
    write_note(folder, known, server(), tracker.path, tracker.url, rows.sent)
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        path.with_name(f"{path.name}.synced").touch()  # W&B's own mark, so that `wandb sync` passes over them
    return Sent(folder, "sent", known.id, max(0, rows.sent - have), tracker.url or "")


def is_running(folder: Path) -> bool:
    """Whether a run may still get rows, or a record: sending it now would end it in W&B while it goes on.

    Its process is asked where it is on this machine. Elsewhere only files tell: its study touches the lease of a trial
    every few seconds, and a run alone writes its metrics.
    """
    record, last = folder / RECORD, _last_start(folder)
    if last is None:
        return not record.exists()  # a study drops trials that never start; everything else is still importing torch
    if record.exists() and record.stat().st_mtime >= last["time"] - 0.01:
        return False
    if _is_leased(folder):
        return True
    if last["host"] != socket.gethostname():
        return any(_touched_within(folder / name, QUIET_S) for name in (METRICS, STARTS))
    return last["pid"] != os.getpid() and _lives(last["pid"], last["time"] + 1)


def _last_start(folder: Path) -> dict[str, Any] | None:
    """The last whole line of a run's starts."""
    path = folder / STARTS
    for text in reversed(path.read_text(encoding="utf-8").splitlines() if path.is_file() else []):
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(text)
            return {key: found[key] for key in ("time", "host", "pid")}
    return None


def _is_leased(folder: Path) -> bool:
    """Whether a study works on a run, or on the trial that it is a seed of (`sweeptune.study.lease`)."""
    for place in (folder, folder.parent):
        leases = sorted(place.glob(".lease-*.json"), key=natural)
        with suppress(OSError, ValueError, KeyError, TypeError):
            if leases and _touched_within(leases[-1], LEASE_S):
                owner = json.loads(leases[-1].read_text(encoding="utf-8"))
                if not owner.get("released"):
                    elsewhere = owner["machine"].partition(" ")[0] != socket.gethostname()
                    return elsewhere or _lives(owner["pid"], owner["started"] + 1)
    return False


def _touched_within(path: Path, seconds: float) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime < seconds
    return False


def _lives(pid: int, begun_before: float) -> bool:
    """Whether a process of this machine is still there; its number alone may have a new holder."""
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() <= begun_before and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def line_of(sent: Sent) -> str:
    """What became of a run, for people."""
    rows = f"{sent.rows} rows" if sent.state in ("sent", "would send") else ""
    return "  ".join(filter(None, [str(sent.folder), sent.state, sent.id, rows, sent.note]))


def summary_of(done: Sequence[Sent]) -> str:
    """How many of each, such as ``3 sent, 5 there``."""
    counts = Counter(sent.state for sent in done)
    return ", ".join(f"{count} {state}" for state, count in counts.items())
