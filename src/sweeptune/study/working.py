"""Whether somebody works on a study right now, for those who only watch it.

A command holds a lease in the study's folder from its first look at it to its end, so that others see it live, and see
that it is gone also where it was killed. Trials have leases of their own, but between two trials nobody holds one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sweeptune.study.lease import Leases
from sweeptune.tracking.files import write_text

COMMANDS, OVER = ".commands", "over"
Standing = Literal["running", "over", "left"]
"""A command works on it; the last one had nothing left to do; it was left before that (Ctrl-C, an error, a kill)."""


@contextmanager
def at_work(study: Path) -> Iterator[None]:
    """Show that a command works on a study for as long as it does.

    Args:
        study: Its folder, which is made where it is missing.

    Example:
        >>> with at_work(Path("multirun/demo")):
        ...     find_standing(Path("multirun/demo"), Leases())
        'running'
    """
    own = study / COMMANDS / f"{os.getpid()}-{time.time_ns()}"
    try:
        with Leases() as leases:
            leases.take(own)
            yield
    finally:
        shutil.rmtree(own, ignore_errors=True)  # nobody else's: it is named after this process


def set_over(study: Path, over: bool) -> None:
    """Say whether nothing is left to do: not while a command goes on with it, nor after it was stopped."""
    mark = study / COMMANDS / OVER
    if over:
        write_text(mark, "")
    else:
        mark.unlink(missing_ok=True)


def find_standing(study: Path, leases: Leases) -> Standing:
    """How things stand with a study.

    Args:
        study: Its folder.
        leases: What the caller has seen of others' leases before: an owner on another machine is known to be gone only
            after its lease has rested for `sweeptune.study.lease.STALE_S`.

    Example:
        >>> find_standing(Path("multirun/demo"), Leases())
        'over'
    """
    folder = study / COMMANDS
    if any(not leases.free(path) for path in folder.glob("*-*") if path.is_dir()):
        return "running"
    return "over" if (folder / OVER).exists() else "left"
