"""What happens on the way from rows of a dataset to rows of a store: duplicates, held-out rows, rows that are too long.

All of it sees one row at a time, so that the size of a dataset does not matter.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.tokenize import Row

CHUNK_ROWS = 1024
CHUNK_CHARACTERS = 2**22
KINDS = ("truncated", "split", "dropped")
PERCENTS = [percent / 100 for percent in range(100)]


def chunks(items: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Rows in lists that are bounded in number and, for long documents, in text."""
    chunk: list[Conversation] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += sum(len(message.content) for message in item.messages)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class Different:
    """Passes each row on once, by its id; of the ids it keeps 8 bytes each (a Python set would take ten times that).

    The ids lie in sorted arrays, each at least twice as long as the next, so that few have to be searched.

    Attributes:
        rows: How many were passed on.
        duplicates: How many were not.
    """

    def __init__(self) -> None:
        self.rows = self.duplicates = 0
        self._known: list[np.ndarray[Any, Any]] = []

    def of(self, items: Iterable[Conversation]) -> Iterator[Conversation]:
        """The rows that were not met before, in order."""
        for chunk in chunks(items):
            fresh = self._fresh(np.array([int(item.id, 16) for item in chunk], dtype=np.uint64))
            self.rows += int(fresh.sum())
            self.duplicates += len(chunk) - int(fresh.sum())
            yield from (item for item, new in zip(chunk, fresh, strict=True) if new)

    def _fresh(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        fresh = np.zeros(len(ids), dtype=bool)
        fresh[np.unique(ids, return_index=True)[1]] = True
        for known in self._known:
            places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            fresh &= known[places] != ids
        added = np.sort(ids[fresh])
        while self._known and len(self._known[-1]) < 2 * len(added):
            added = np.concatenate([self._known.pop(), added])
            added.sort()
        if len(added):
            self._known.append(added)
        return fresh


def position(key: str) -> float:
    """Where a key falls in [0, 1): evenly spread, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@dataclass
class HoldOut:
    """Cuts rows into train, eval and test by their split key: the same rows are held out in every run.

    Args:
        data: ``eval_fraction`` and ``test_fraction``.

    Example:
        >>> HoldOut(config.data).part("shutil")
        'train'
    """

    data: DataConfig
    counts: dict[str, int] = field(default_factory=lambda: {"train": 0, "eval": 0, "test": 0})
    places: list[int] = field(default_factory=lambda: [0] * 100)
    """How many rows lie in each percent of [0, 1)."""

    def part(self, key: str) -> str:
        """The part that rows of this key belong to."""
        return self._part(position(key))

    def _part(self, place: float) -> str:
        if place >= self.data.eval_fraction + self.data.test_fraction:
            return "train"
        return "eval" if place < self.data.eval_fraction else "test"

    def count(self, key: str) -> str:
        """Count a row, and name its part."""
        place = position(key)
        part = self._part(place)
        self.counts[part] += 1
        self.places[bisect_right(PERCENTS, place) - 1] += 1
        return part

    def check(self) -> None:
        """See that no part is empty.

        Raises:
            ConfigError: One is; it names the fractions nearest to those asked for that leave none empty.
        """
        empty = [name for name, count in self.counts.items() if not count]
        if not empty:
            return
        seen = (
            f"data.eval_fraction={self.data.eval_fraction} data.test_fraction={self.data.test_fraction}: of "
            f"{sum(self.counts.values())} different rows, none falls into {' and '.join(empty)}"
        )
        fix = self._fractions()
        if fix is None:
            raise ConfigError(f"{seen}; training, eval and test each need rows, so bring more")
        raise ConfigError(f"{seen}; set data.eval_fraction={fix[0]} data.test_fraction={fix[1]}, or bring more rows")

    def _fractions(self) -> tuple[float, float] | None:
        below = [0, *np.cumsum(self.places).tolist()]
        wanted = (100 * self.data.eval_fraction, 100 * self.data.test_fraction)
        fits = [
            (math.dist((held, kept), wanted), held / 100, kept / 100)
            for held in range(1, 99)
            for kept in range(1, 100 - held)
            if 0 < below[held] < below[held + kept] < below[100]
        ]
        return min(fits)[1:] if fits else None


def policy(data: DataConfig) -> str:
    """What is done with a training sample that is longer than ``data.max_length``; ``whole`` leaves it as it is."""
    if data.on_long_row != "auto" and (data.packing, data.on_long_row) != ("split", "split"):
        return data.on_long_row
    return {"none": "truncate", "pack": "split", "split": "whole"}[data.packing]


@dataclass
class Fit:
    """Makes rows fit ``data.max_length`` as ``data.on_long_row`` says, and counts what that costs.

    Attributes:
        costs: By what happened to rows (``truncated``, ``split``, or ``dropped``: nothing that bears loss is left), how
            many rows it happened to and how many of their tokens and loss tokens were lost.
    """

    data: DataConfig
    costs: dict[str, dict[str, int]] = field(
        default_factory=lambda: {kind: {"rows": 0, "tokens": 0, "loss_tokens": 0} for kind in KINDS}
    )
    too_long: int = 0
    longest: int = 0

    def rows(self, row: Row, *, cut: bool = True) -> list[Row]:
        """What is left of a row.

        Args:
            row: The whole row.
            cut: Whether its length matters (evaluation never cuts).
        """
        how = policy(self.data) if cut and row.length > self.data.max_length else "whole"
        pieces = [row]
        if how == "truncate":
            pieces = [_piece(row, 0, self.data.max_length, 0)]
        elif how == "split":
            starts = range(0, row.length, self.data.max_length)
            pieces = [_piece(row, start, start + self.data.max_length, n) for n, start in enumerate(starts)]
        elif how == "drop":
            pieces = []
        elif how == "error":
            self.too_long += 1
            self.longest = max(self.longest, row.length)
        kept = [piece for piece in pieces if True in piece.loss_mask]
        kind = "dropped" if not kept else {"truncate": "truncated", "split": "split"}.get(how)
        if kind:
            cost = self.costs[kind]
            cost["rows"] += 1
            cost["tokens"] += row.length - sum(piece.length for piece in kept)
            cost["loss_tokens"] += row.loss_tokens - sum(piece.loss_tokens for piece in kept)
        return kept

    def check(self) -> None:
        """See that nothing was too long where that is an error.

        Raises:
            ConfigError: Rows were; it says how many and how long.
        """
        if self.too_long:
            raise ConfigError(
                f"data.max_length={self.data.max_length}: {self.too_long} training rows are longer, the longest has "
                f"{self.longest} tokens; raise data.max_length, or set data.on_long_row=truncate, split or drop"
            )

    def counts(self) -> dict[str, int]:
        """For the log and the record."""
        rows = {f"{kind}_rows": cost["rows"] for kind, cost in self.costs.items()}
        return rows | {"tokens_cut": sum(cost["tokens"] for cost in self.costs.values())}


def _piece(row: Row, begin: int, end: int, number: int) -> Row:
    mask = row.loss_mask[begin:end]
    if number:
        mask[0] = False  # nothing stands before it that could predict it
    learned = row.loss_mask.count(True)
    # The first piece keeps the bytes before the cut, as `Row` defines them; later ones have their share.
    size = row.loss_bytes if number == 0 else row.loss_bytes * mask.count(True) // max(1, learned)
    return replace(
        row,
        id=f"{row.id}-{number}" if number else row.id,
        input_ids=row.input_ids[begin:end],
        loss_mask=mask,
        loss_bytes=size,
    )
