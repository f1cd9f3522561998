"""What the measurements share: runs through train.py like a user's, each in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeptune.tracking.record import find_records

ROOT = Path(__file__).resolve().parents[1]


def train(name: str, overrides: Sequence[str], work: Path) -> dict[str, Any] | None:
    """One run; its output goes to ``work/<name>.log``, and a failure is kept as what it is.

    Returns:
        Its record, None where not even that was written.
    """
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={work / name}"]
    with (work / f"{name}.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=False, cwd=ROOT)
    found = [record for _, record in find_records(work / name)]
    print(name, found[0]["status"] if found else "no record", found[0]["reason"] if found else "", flush=True)
    return found[0] if found else None


def positive(text: str) -> int:
    """A count on a command line: nothing is measured with none."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return int(text)


def absent(*files: Path | None) -> str | None:
    """Which of the files that were given are not there, in words; None where all are."""
    missing = [str(file) for file in files if file is not None and not file.is_file()]
    return f"{', '.join(missing)}: no such file" if missing else None


def sections_of(parser: argparse.ArgumentParser, files: Sequence[Path], results: Path | None) -> list[str]:
    """The sections that ``--section`` names, each checked to be one before any goes into ``--results``."""
    if results is None:
        parser.error("--results FILE has to be given: the section goes there, such as bench/RESULTS.md")
    found = []
    for file in files:
        if not file.is_file():
            parser.error(f"--section {file}: no such file; give one that a visit left in its --out")
        found.append(file.read_text())
        if not found[-1].startswith("## "):
            parser.error(f"--section {file}: begins with no heading (## ...), so it is no section of a visit")
    return found


def gib(value: float | None) -> str:
    """A size for a table."""
    return "-" if value is None else f"{value:.2f}"


def line(cells: Sequence[object]) -> str:
    """A line of a markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a markdown table."""
    return [line(cells), "|" + "---|" * len(cells)]
