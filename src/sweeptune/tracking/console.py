"""What people see while they wait: short log lines, and bars for everything that takes more than two seconds.

Everything goes to stderr, so that stdout stays clean for ``--json``. Without a terminal (CI, a file) a bar is a plain
line every ten seconds.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_EVERY_S = 10.0

console = Console(stderr=True)
log = logging.getLogger("sweeptune")
_live: Progress | None = None


class ConsoleHandler(logging.Handler):
    """Plain lines above the live bars; never wrapped, so that paths can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        console.print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


def setup_logging(log_file: Path | None, *, main: bool = True) -> None:
    """Send the log to the terminal and, whole and with times, to a file.

    Args:
        log_file: train.log of the run, or None.
        main: False on the ranks that stay silent.
    """
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    if main:
        shown = ConsoleHandler()
        shown.setLevel(logging.INFO)
        log.addHandler(shown)
    if log_file is not None:
        kept = logging.FileHandler(log_file, encoding="utf-8")
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(kept)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advice on a package that is not needed here
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


@contextmanager
def bar(description: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar.

    Args:
        description: What is going on.
        total: Units of work.
        completed: Units that were done before.

    Yields:
        ``advance(n, note="loss 3.21")``.
    """
    if not any(isinstance(handler, ConsoleHandler) for handler in log.handlers):
        yield lambda n=1, note="": None
    elif console.is_terminal:
        with _progress() as live:
            task = live.add_task(description, total=total, completed=completed, note="")
            try:
                yield lambda n=1, note="": live.update(task, advance=n, note=note)
            finally:
                live.remove_task(task)
    else:
        yield _plain_bar(description, total, completed)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with bar(description, count) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    if console.is_terminal and _live is None and log.handlers:
        with console.status(description):
            yield
    else:
        log.info("%s", description)
        yield


@contextmanager
def _progress() -> Iterator[Progress]:
    """The one live display: a bar inside another one is a second line of it."""
    global _live
    if _live is not None:
        yield _live
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as live:
        _live = live
        try:
            yield live
        finally:
            _live = None


def _plain_bar(description: str, total: int, completed: int) -> Callable[..., None]:
    done, spoken = completed, time.monotonic()

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, spoken
        done += n
        if time.monotonic() - spoken >= PLAIN_EVERY_S:
            spoken = time.monotonic()
            print(f"{description}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
