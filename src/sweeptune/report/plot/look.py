"""How pictures look: the report's colours and marks, small plain letters, and what its drawings share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from sweeptune.report import html
from sweeptune.report.scatter import FENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
"""The values of `sweeptune.report.html.page.Page`."""
MARKS = ("o", "s", "^", "D", "v", "P", "h")
"""Of the methods in their order, as ``draw.js`` has them: neither colour nor shape alone has to tell."""
LONGEST = 24
"""Characters of a name."""
FEW = 8
"""Below so many values none is taken for an outlier."""


class NoDrawing(Exception):
    """The study has nothing of what a drawing shows; the text says what is missing."""


@cache
def colours() -> dict[str, str]:
    """The report's light colours by name, such as ``m0`` and ``ink``, from its style sheet, which is their one home."""
    css = (Path(html.__file__).parent / "style.css").read_text(encoding="utf-8")
    return {name: light for name, light in re.findall(r"--(\w+): light-dark\((#\w+),", css)}


def colour(data: Data, method: str) -> str:
    """A method's colour."""
    return colours()[f"m{data['methods'].index(method) % len(MARKS)}"]


def mark(data: Data, method: str) -> str:
    """A method's mark, in matplotlib's words."""
    return MARKS[data["methods"].index(method) % len(MARKS)]


def rules() -> dict[str, Any]:
    """Settings of matplotlib: texts stay texts in an SVG, and none of them is read as mathematics."""
    ink, soft, line = colours()["ink"], colours()["soft"], colours()["line"]
    return {
        "svg.hashsalt": "sweeptune",  # names inside an SVG would differ from run to run
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "savefig.dpi": 300,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
        "font.size": 7,
        "axes.labelsize": 7,
        "axes.titlesize": 7,
        "xtick.labelsize": 6.5,
        "ytick.labelsize": 6.5,
        "legend.fontsize": 6.5,
        "axes.linewidth": 0.5,
        "axes.edgecolor": soft,
        "axes.labelcolor": ink,
        "text.color": ink,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "xtick.major.width": 0.5,
        "ytick.major.width": 0.5,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.5,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "legend.frameon": False,
        "legend.handletextpad": 0.4,
        "legend.columnspacing": 1.2,
    }


def named(text: str) -> str:
    """A name as a picture has room for it; one that begins with an underscore would be hidden by matplotlib."""
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f" {text}" if text.startswith("_") else text


def completed(data: Data) -> list[dict[str, Any]]:
    """Trials of the search that completed with a loss."""
    return [t for t in data["trials"] if t["s"] == "completed" and "l" in t and t["k"] in ("trial", "baseline")]


def fence(values: Sequence[float]) -> float:
    """Above this a value would squeeze all others (Tukey), as in the report and on the terminal."""
    if len(values) < FEW:
        return max(values)
    first, _, third = quantiles(values, n=4)
    return max(v for v in values if v <= third + FENCE * (third - first))


def legend(figure: Figure, data: Data, methods: Sequence[str], more: Sequence[tuple[Any, str]] = ()) -> None:
    """Name the marks above the drawing; ``more`` are other handles with their words."""
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = []
    for method in methods:
        style: dict[str, Any] = {
            "marker": mark(data, method),
            "color": colour(data, method),
            "linestyle": "none",
            "markersize": 4,
        }
        entries.append((Line2D([], [], **style), named(method)))
    entries += more
    handles, names = zip(*entries, strict=True)
    figure.legend(handles, names, loc="outside upper left", ncols=min(4, len(entries)), borderaxespad=0.2)


def limit(axes: Axes, value: float | None, word: bool = True, along: str = "x") -> None:
    """Where a study limits what an axis shows: a dashed line; only inside what is shown."""
    low, high = axes.get_xlim() if along == "x" else axes.get_ylim()
    if value is None or not low < value < high:
        return
    bad = colours()["bad"]
    line = axes.axvline if along == "x" else axes.axhline
    line(value, color=bad, linewidth=0.8, linestyle=(0, (4, 3)), gid="limit")
    if word:
        axes.annotate(
            f"limit {value:g}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2, -1),
            textcoords="offset points",
            ha="right",
            va="top",
            color=bad,
            fontsize=6.5,
        )
