"""Reports: runs side by side, and what this machine can do."""

from __future__ import annotations

from pathlib import Path

from sweeptune.report.compare import load
from sweeptune.report.studies import is_study, read_study
from sweeptune.report.study_table import render_study
from sweeptune.report.table import render

__all__ = ["is_study", "load", "read_study", "render", "render_study", "show"]


def show(folder: Path) -> None:
    """Print the comparison of a folder of runs to stdout, of a study the verdict; what a ``--multirun`` ends with.

    Args:
        folder: A study, or any folder of runs.

    Raises:
        ConfigError: There is no run in it.

    Example:
        >>> show(Path("multirun/demo"))
    """
    if is_study(folder):
        render_study(read_study(folder), brief=True)
    else:
        render(load(folder))
