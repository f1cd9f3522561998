"""What people see while they wait: short log lines, and bars for everything that takes more than two seconds.

Everything goes to stderr, so that stdout stays clean for ``--json``. Without a terminal (CI, a file) a bar is a plain
line every ten seconds.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
PLAIN_EVERY_S = 10.0

console = Console(stderr=True)
log = logging.getLogger("sweeptune")
OURS: list[logging.Handler] = []
"""The handlers that the last `setup_logging` made; the next one replaces them."""
_live: Progress | None = None


class ConsoleHandler(logging.Handler):
    """Plain lines above the live bars; never wrapped, so that paths can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        console.print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


class Count(MofNCompleteColumn):
    """``3/10``, ``3`` where the total is unknown, and nothing where nothing is counted."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.completed:,.0f}" if task.completed else "")
        return super().render(task)


def setup_logging(log_file: Path | None, *, main: bool = True) -> None:
    """Send the log to the terminal and, whole and with times, to a file; a file also gets Python's warnings.

    Args:
        log_file: train.log of the run, or None.
        main: False on the ranks that stay silent.

    Example:
        >>> setup_logging(Path("train.log"))
        >>> logging.getLogger("sweeptune").info("loading")
    """
    log.setLevel(logging.DEBUG)
    log.propagate = False
    warned = logging.getLogger("py.warnings")
    handlers: list[logging.Handler] = []
    # Without any handler Python prints warnings all the same.
    handlers.append(ConsoleHandler(logging.INFO) if main else logging.NullHandler())
    if log_file is not None:
        kept = logging.FileHandler(log_file, encoding="utf-8")
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(kept)
    for logger, wanted in ((log, handlers), (warned, handlers if log_file is not None else [])):
        for old in [handler for handler in logger.handlers if handler in OURS]:
            logger.removeHandler(old)
            old.close()
        for handler in wanted:
            logger.addHandler(handler)
    OURS[:] = handlers
    logging.captureWarnings(log_file is not None)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


@contextmanager
def bar(description: str, total: int | None, completed: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar.

    Args:
        description: What is going on.
        total: Units of work; None where nobody knows.
        completed: Units that were done before.

    Yields:
        ``advance(n, note="loss 3.21")``.
    """
    if not _shown():
        yield lambda n=1, note="": None
    elif console.is_terminal:
        with _progress() as live:
            task = live.add_task(description, total=total, completed=completed, note="")
            try:
                yield lambda n=1, note="": live.update(task, advance=n, note=note)
            finally:
                live.remove_task(task)
    else:
        plain = PlainBar(description, total, completed)
        try:
            yield plain.advance
        finally:
            plain.say()


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar.

    Args:
        items: What to iterate over.
        description: What is going on.
        total: The number of items, where ``len(items)`` does not know it; without either the bar only counts.
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    with bar(description, count) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    if not _shown():
        yield
    elif console.is_terminal:
        log.debug("%s", description)
        with _progress() as live:
            task = live.add_task(description, total=None, note="")
            try:
                yield
            finally:
                live.remove_task(task)
    else:
        log.info("%s", description)
        yield


def _shown() -> bool:
    """Whether this process talks to the terminal: the main rank of a program, not a library's user."""
    return any(isinstance(handler, ConsoleHandler) for handler in log.handlers)


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
        Count(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as live:
        _live = live
        try:
            yield live
        finally:
            _live = None


class PlainBar:
    """A bar without a terminal: a line at most every ten seconds, and one at the end."""

    def __init__(self, description: str, total: int | None, completed: int) -> None:
        self.description, self.total, self.done = description, total, completed
        self.note, self.spoken, self.said = "", time.monotonic(), -1

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count n more units."""
        self.done += n
        self.note = note or self.note
        if time.monotonic() - self.spoken >= PLAIN_EVERY_S:
            self.say()

    def say(self) -> None:
        """Print how far it is, unless that has been said."""
        if self.said == self.done:
            return
        self.spoken, self.said = time.monotonic(), self.done
        far = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        print(f"{self.description}: {far} {self.note}".rstrip(), file=sys.stderr, flush=True)
