"""A study as one HTML file that needs nobody's server: it opens from disk and asks no network for anything."""

from __future__ import annotations

from sweeptune.report.html.write import REPORT, to_html, watch_report, write_report

__all__ = ["REPORT", "to_html", "watch_report", "write_report"]
