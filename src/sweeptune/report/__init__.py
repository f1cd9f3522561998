"""Reports: runs side by side, and what this machine can do."""

from __future__ import annotations

from pathlib import Path

from sweeptune.report.compare import load
from sweeptune.report.table import render

__all__ = ["load", "render", "show"]


def show(folder: Path) -> None:
    """Print the comparison of a folder of runs to stdout; what a ``--multirun`` ends with.

    Args:
        folder: A study, or any folder of runs.

    Raises:
        ConfigError: There is no run in it.

    Example:
        >>> show(Path("multirun/demo"))
    """
    render(load(folder))
