"""What every tracker can do: five calls, in this order, for one attempt at one run.

metrics.jsonl and result.json are always written and are the truth; a tracker is fed from them, while the run trains
(`sweeptune.tracking.follow`) or later (`sweeptune.tracking.sync`), so that both send the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Card:
    """What is known of a run before its first step.

    Attributes:
        id: Names this attempt at this run, and no other, for ever: ``demo-0007-s0-a1-3fa2c1``.
        name: For people: ``0007-qlora-r16-lr0.0005``.
        project: Where it belongs.
        entity: User or team; None is the default one of the key.
        group: The study's name; None for a single run.
        job_type: train, trial, baseline or confirm.
        tags: Method, model, and baseline or confirm.
        config: The resolved settings, and ``trial``: study, number, seed, attempt.
    """

    id: str
    name: str
    project: str
    entity: str | None
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]


class Tracker(Protocol):
    """Receives one attempt at one run. Every call may raise and may take long: only `follow` and `sync` make them."""

    def start(self, card: Card) -> int:
        """Begin, or go on where an earlier call left it.

        Returns:
            How many rows it has already; the caller logs those that come after them.
        """
        ...

    def log(self, row: dict[str, Any], index: int) -> None:
        """Add a row of metrics.

        Args:
            row: Such as ``{"train/tokens": 2048, "train/loss": 2.1}``.
            index: Its place in metrics.jsonl, from 0.
        """
        ...

    def summary(self, figures: dict[str, Any]) -> None:
        """Set the final figures, ``result/*``."""
        ...

    def artifact(self, path: Path) -> None:
        """Keep a file."""
        ...

    def finish(self, *, ok: bool) -> None:
        """End it; returns when everything has arrived.

        Args:
            ok: Whether the run reached its end.
        """
        ...
