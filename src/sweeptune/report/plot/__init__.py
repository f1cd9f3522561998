"""Pictures of a study for papers: the report's drawings as vectors, in the width of a column, with matplotlib."""

from __future__ import annotations

from sweeptune.report.plot.write import KINDS, write_plot

__all__ = ["KINDS", "write_plot"]
