"""One picture of a study: check what was asked for, draw it, and write a file that is the same every time."""

from __future__ import annotations

import difflib
import io
import warnings
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.report.html.page import make_page
from sweeptune.report.plot import effects, memory, points
from sweeptune.report.plot.look import NoDrawing, rules
from sweeptune.report.studies import read_study
from sweeptune.tracking.files import write_bytes

KINDS = {
    "front": points.front,
    "curves": points.curves,
    "memory": memory.phases,
    "settings": effects.settings,
    "predicted": memory.predicted,
}
"""What can be drawn; each takes a figure and the values of the report's page."""
UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""The endings, and what keeps their files free of dates and versions: a study that is drawn twice gives equal bytes."""
COLUMN_IN = 3.3
"""The width of a column in a two-column paper."""


def write_plot(folder: Path, out: Path, kind: str = "front", width_in: float = COLUMN_IN) -> Path:
    """Draw a study and write the picture, whole or not at all.

    Args:
        folder: The study's, finished or not.
        out: The file; its ending says what it is: .svg, .pdf (vectors) or .png (300 dots an inch).
        kind: ``front`` (loss against memory), ``curves`` (loss over tokens), ``memory`` (its phases), ``settings``
            (their effects) or ``predicted`` (against measured memory).
        width_in: Inches.

    Returns:
        The file.

    Raises:
        ConfigError: An unknown kind or ending, no study, nothing in it to draw, no matplotlib, or no such folder.

    Example:
        >>> write_plot(Path("multirun/tradeoff"), Path("front.svg"))
        PosixPath('front.svg')
    """
    if problems := [*_kind_problems(kind), *_file_problems(out)]:
        raise ConfigError(problems)
    study = read_study(folder)
    if not any(trial.counts and trial.status == "completed" for trial in study.trials):
        raise ConfigError(
            f"{folder}: none of its trials has completed, so nothing can be drawn; `sweeptune report {folder}` shows "
            "how far it is"
        )
    data = make_page(study).data
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "matplotlib is not installed, which draws these pictures; pip install -e '.[plot]' -c constraints.txt"
        ) from error
    ending = out.suffix[1:].lower()
    with matplotlib.rc_context(rules()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font has not
        figure = Figure(figsize=(width_in, width_in * 0.8), layout="constrained")
        try:
            KINDS[kind](figure, data)
        except NoDrawing as nothing:
            raise ConfigError(f"{folder}: {kind} cannot be drawn: {nothing}") from None
        picture = io.BytesIO()
        figure.savefig(picture, format=ending, metadata=UNDATED[ending])
    try:
        write_bytes(out, picture.getvalue())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return out


def _kind_problems(kind: str) -> list[str]:
    if kind in KINDS:
        return []
    near = difflib.get_close_matches(kind, KINDS, 1)
    return [f"{kind}: no such picture; use {', '.join(KINDS)}" + (f". Did you mean {near[0]}?" if near else "")]


def _file_problems(out: Path) -> list[str]:
    if out.suffix[1:].lower() not in UNDATED:
        known = ", ".join(f".{ending}" for ending in UNDATED)
        return [f"--out {out}: the ending says what is written, and must be one of {known}: {out.stem or 'front'}.svg"]
    if not out.parent.is_dir():
        return [f"--out {out}: there is no folder {out.parent}; make it, or give another file"]
    return []
