"""Why a run ends before its last step: a signal, a loss that is no number, the verdict of its study."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sweeptune.tracking.record import PRUNED, read_pruned
from sweeptune.training.oom import any_rank
from sweeptune.training.session import Session

log = logging.getLogger("sweeptune")


class Diverged(RuntimeError):
    """The loss or the gradient is no longer a number."""


class Pruned(RuntimeError):
    """The study of this run has seen enough of it.

    Args:
        verdict: What the study left in the run folder; empty on every rank but the first.
    """

    def __init__(self, verdict: dict[str, Any]) -> None:
        super().__init__(verdict.get("reason", ""))
        self.verdict = verdict


def stop_if_pruned(session: Session) -> None:
    """Look for the study's verdict on this run; every rank must call this.

    Raises:
        Pruned: There is one.
    """
    verdict = read_pruned(session.folder) if session.main else None
    if any_rank(verdict is not None, session.device):
        raise Pruned(verdict or {})


def is_pruned(session: Session) -> bool:
    """Whether the study has left its verdict: a look between steps, since it comes some time after the evaluation."""
    return session.main and (session.folder / PRUNED).exists()


@dataclass
class Stop:
    """Set by a signal: stop after the step that is running."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after the running step; the second interrupts at once."""
    stop = Stop()

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        log.warning("stopping after this step with a checkpoint (again to stop at once)")

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
