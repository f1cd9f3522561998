"""Reports: runs side by side, and what this machine can do."""

from __future__ import annotations

import logging
from pathlib import Path

from sweeptune.config.errors import ConfigError
from sweeptune.report.compare import load
from sweeptune.report.html import write_report
from sweeptune.report.studies import is_study, read_study
from sweeptune.report.study_table import render_study
from sweeptune.report.table import render

__all__ = ["is_study", "leave_report", "load", "read_study", "render", "render_study", "show", "write_report"]

log = logging.getLogger("sweeptune")


def show(folder: Path) -> None:
    """Print the comparison of a folder of runs to stdout, of a study the verdict; what a ``--multirun`` ends with.

    Beside a study's verdict its report is written, as ``report.html`` in its folder.

    Args:
        folder: A study, or any folder of runs.

    Raises:
        ConfigError: There is no run in it.

    Example:
        >>> show(Path("multirun/demo"))
    """
    if is_study(folder):
        render_study(read_study(folder), brief=True)
        leave_report(folder)
    else:
        render(load(folder))


def leave_report(folder: Path) -> None:
    """Write a study's report and say where; a folder that cannot be written to does not spoil what was just shown.

    Args:
        folder: The study's.
    """
    try:
        print(f"report: {write_report(folder)}")
    except (ConfigError, OSError) as error:
        log.warning("the report was not written: %s", error)
