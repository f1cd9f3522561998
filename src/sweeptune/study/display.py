"""What a person sees of a running study: a live table in a terminal, else a line as things begin and end."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sweeptune.tracking.console import console

log = logging.getLogger("sweeptune")

REFRESH_S = 1.0
SHOWN = 12
"""Finished trials below the running ones: the newest."""
TAIL = 4096


class Display:
    """Shows a study while it runs.

    Args:
        name: The study's.
        total: How many trials there will be; None where nobody knows.
    """

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total = name, total
        self.lines: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> Display:
        if console.is_terminal and not os.environ.get("SWEEPTUNE_PLAIN"):
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None

    def started(self, unit: Any) -> None:
        """A run has begun."""
        what = {"probe": "probe of trial", "loss": "trial", "confirm": "confirming"}[unit.kind]
        name = unit.folder.name if unit.trial is None else f"{unit.trial.number}"
        many = f", seed {unit.seed}" if unit.trial is not None and len(unit.trial.seeds) > 1 else ""
        settings = "" if unit.trial is None else _behind(" ", unit.trial.point)
        log.info("%s %s%s%s on %s -> %s", what, name, settings, many, unit.slot.name, unit.folder)

    def ended(self, unit: Any, record: dict[str, Any]) -> None:
        """A run has ended; trials have their own line."""
        if unit.kind == "probe" and record["status"] == "completed":
            speed = record["speed"]["tokens_per_s"]
            rate = f"{speed:,.0f} tokens/s" if speed else "no speed"
            log.info("  measured: peak %.2f GiB, %s", record["memory"]["peak_memory_gib"], rate)
        elif record["status"] not in ("completed", "pruned"):
            log.warning("  %s: %s", record["status"], record["reason"])

    def finished(self, line: dict[str, Any], counted: int) -> None:
        """A trial has ended, and with it so many of the study."""
        self.lines.append(line)
        far = f"{counted}" + (f" of {self.total}" if self.total else "")
        settings = _behind(", ", line["params"])
        log.info("trial %d %s%s: %s (%s)", line["number"], line["status"], settings, figures(line), far)

    def update(self, engine: Any) -> None:
        """Draw again, at most once a second."""
        now = time.monotonic()
        if self._live is not None and now - self._drawn > REFRESH_S:
            self._drawn = now
            self._live.update(self._table(engine), refresh=True)

    def _table(self, engine: Any) -> Table:
        table = Table(title=f"study {escape(self.name)}: {self._summary(engine)}", title_justify="left", box=None)
        for heading in ("run", "settings", "where", "how far", "loss", "time"):
            table.add_column(heading, overflow="fold")
        for slot in engine.slots:
            for unit in slot.units:
                far, loss = progress_of(unit.folder)
                name = unit.folder.name if unit.trial is None else f"{unit.trial.number} {unit.kind}"
                point = told(unit.trial.point) if unit.trial is not None else "confirmation"
                seconds = time.monotonic() - unit.worker.started
                table.add_row(name, escape(point), slot.name, far, loss, f"{seconds:.0f} s", style="bold")
        for line in self.lines[-SHOWN:][::-1]:
            state = line["status"] if line["status"] != "completed" else ""
            table.add_row(
                str(line["number"]),
                escape(told(line["params"])),
                "",
                state,
                figures(line),
                f"{line['seconds']:.0f} s",
                style="dim",
            )
        return table

    def _summary(self, engine: Any) -> str:
        done = engine.store.counted
        words = f"{done} of {self.total} trials" if self.total else f"{done} trials"
        failed = sum(line["status"] not in ("completed", "pruned") for line in engine.store.trials.values())
        words += f", {failed} failed" if failed else ""
        here = len(self.lines)
        if self.total and here and done < self.total:
            left = (time.monotonic() - self.began) / here * (self.total - done)
            words += f", about {left / 60:.0f} min left"
        return words + (" - ending after these" if engine.wish else "  (Ctrl-C: end after the running ones)")


def told(point: dict[str, Any]) -> str:
    """Settings in short: ``method=lora lr=0.0002 rank=16``."""
    values = {key.rpartition(".")[2]: value for key, value in point.items()}
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def _behind(sign: str, point: dict[str, Any]) -> str:
    """Settings behind what leads to them; nothing at all where nothing is swept."""
    return f"{sign}{told(point)}" if point else ""


def figures(line: dict[str, Any]) -> str:
    """What came out: ``loss 2.314, 3.20 GiB, 1,500 tokens/s``, or why nothing did."""
    if line["status"] != "completed":
        return str(line["reason"] or line["status"])
    words = [f"loss {line['eval_loss']:.4f}"] if line["eval_loss"] is not None else []
    words += [f"{line['peak_memory_gib']:.2f} GiB"] if line["peak_memory_gib"] is not None else []
    shared = "~" if line.get("exclusive") is False else ""
    words += [f"{shared}{line['tokens_per_s']:,.0f} tokens/s"] if line["tokens_per_s"] is not None else []
    return ", ".join(words)


def progress_of(folder: Path) -> tuple[str, str]:
    """How far a run is, and its last training loss, from the end of its metrics.jsonl."""
    path = folder / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return "starting", ""
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "loss" in line:
            return f"step {line['step']}, {line['tokens']:,} tokens", f"{line['loss']:.3f}"
    return "evaluating", ""
