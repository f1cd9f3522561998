"""One run folder to one tracker, whoever asks: rows of metrics.jsonl, figures of result.json, and a note of what has
been sent.

The note, ``wandb.json``, is written last, when the server has confirmed the rows. It saves work; that nothing is sent
twice does not depend on it, because a run that is opened again says itself how many rows it has.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.describe import row, run_figures
from sweeptune.tracking.files import write_json
from sweeptune.tracking.record import RECORD, read_record
from sweeptune.tracking.tracker import Card, Tracker

NOTE, LOCK, LOG = "wandb.json", ".wandb.lock", "wandb.log"
METRICS = "metrics.jsonl"
KILLED = "its process ended without a record"
GONE_ON = "attempt {} went on with it"


@dataclass(frozen=True)
class Note:
    """What has been sent of a run.

    Attributes:
        id: Of the attempt.
        server: Address it was sent to.
        path: ``entity/project/id``.
        url: Of the run's page.
        rows: How many.
        record: Hash of the result.json that the figures were taken from; None while there was none.
        time: Seconds since 1970.
    """

    id: str
    server: str
    path: str
    url: str | None
    rows: int
    record: str | None
    time: float


class Rows:
    """Reads metrics.jsonl as it grows.

    A run that ran out of memory in its optimiser cuts its metrics back to the checkpoint and makes the same steps
    again: rows that were read before keep their place and are passed over. Between two looks the file may be cut and
    grow beyond where it was, so the last line that was read is looked at again, too.

    Args:
        folder: The run folder.
        have: How many rows the tracker has already.
    """

    def __init__(self, folder: Path, have: int = 0) -> None:
        self.path, self.sent = folder / METRICS, have
        self._offset, self._index = 0, 0
        self._last = b""
        self._before: dict[str, Any] | None = None

    def fresh(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows that have come since the last call, each with its place; a half-written line waits for its end."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._offset, self._index, self._last, self._before = 0, 0, b"", None
                file.seek(0)
            for text in file:
                if not text.endswith(b"\n"):
                    break
                self._offset, self._last = self._offset + len(text), text
                line = _object(text)
                if line is None:
                    continue
                index, before = self._index, self._before
                self._index, self._before = index + 1, line
                if index >= self.sent:
                    yield index, row(line, before)
                    self.sent = index + 1  # after the tracker took it: should that fail, it is read again


def conclude(folder: Path, tracker: Tracker, *, own: bool = True, gone_on: int | None = None) -> None:
    """Send the final figures of a run and end it.

    Args:
        folder: The run folder, with all rows sent.
        tracker: Started before.
        own: Whether the record is this attempt's; else it was killed, and an earlier one left it.
        gone_on: The later attempt that goes on with the run, where there is one.
    """
    try:
        record = read_record(folder) if own else None
    except ConfigError:
        record = None
    if record is None:
        reason = GONE_ON.format(gone_on) if gone_on else KILLED
        tracker.summary({"result/status": "interrupted", "result/reason": reason, "result/failed": 0})
        tracker.finish(ok=False)
        return
    tracker.summary(run_figures(folder, record))
    tracker.artifact(folder / RECORD)
    tracker.finish(ok=record["status"] in ("completed", "pruned"))


def write_note(folder: Path, card: Card, server: str, path: str, url: str | None, rows: int) -> None:
    """Note that a run has been sent."""
    note = Note(card.id, server, path, url, rows, digest(folder), round(time.time(), 3))
    write_json(folder / NOTE, asdict(note))


def read_note(folder: Path) -> Note | None:
    """What has been sent of a run; None where nothing has, or the note cannot be read."""
    try:
        return Note(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_complete(folder: Path, card: Card, server: str) -> bool:
    """Whether a run has been sent whole, with the record that it has now.

    Args:
        folder: The run folder.
        card: Says what it would be sent as, and where to; without an entity, any will do.
        server: Address it would be sent to.
    """
    note = read_note(folder)
    if note is None or (note.id, note.server, note.record) != (card.id, server, digest(folder)):
        return False
    project = f"/{card.entity}/{card.project}/" if card.entity else f"/{card.project}/"
    return project in f"/{note.path}" and note.rows >= count_rows(folder)


def count_rows(folder: Path) -> int:
    """Rows of metrics.jsonl."""
    return sum(1 for _ in Rows(folder).fresh())


def digest(folder: Path) -> str | None:
    """Hash of the record; None where there is none."""
    try:
        return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:  # torn by a kill
        return None
    return found if isinstance(found, dict) else None
