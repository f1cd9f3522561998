"""A study as a comparison workspace and a report in Weights & Biases."""

from __future__ import annotations

from sweeptune.report.dashboard.save import Saved, save, specification

__all__ = ["Saved", "save", "specification"]
