"""Loss against each swept setting: a row for each setting, a column for each method."""

from __future__ import annotations

import json
import math
from statistics import median
from typing import TYPE_CHECKING, Any

from sweeptune.report.plot.look import Data, NoDrawing, colour, colours, completed, fence, mark, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 3
"""Trials of a method that say something of a setting."""
STEPS = 6
"""Up to so many values that come again are places side by side; more lie on a scale."""
WIDE = 20
"""A range whose ends are so many times apart is drawn in decades."""
ROW_IN = 1.05


def settings(figure: Figure, data: Data) -> None:
    """Eval loss of each trial against its value of a setting; the bar is the median of a value."""
    able = completed(data)
    kept = [t for t in able if t["l"] <= fence([t["l"] for t in able])]
    keys = list(dict.fromkeys(key for t in kept for key in t["p"]))
    cells = {(key, m): own for key in keys for m in data["methods"] if (own := _varied(kept, m, key))}
    if not cells:
        raise NoDrawing(f"no method has {FEWEST} completed trials that differ in a setting")
    rows = [key for key in keys if any(key == row for row, _ in cells)]
    columns = [m for m in data["methods"] if any(m == method for _, method in cells)]
    grid = figure.subplots(len(rows), len(columns), sharey=True, squeeze=False)
    chosen = {arm["method"]: arm["trial"] for arm in data["arms"]}
    for row, key in enumerate(rows):
        for column, method in enumerate(columns):
            axes = grid[row][column]
            if row == 0:
                axes.set_title(named(method), fontweight="bold", color=colour(data, method))
            if (key, method) not in cells:
                axes.set_axis_off()  # its title stays
                continue
            _cell(axes, data, method, key, cells[key, method], chosen.get(method))
            axes.set_xlabel(named(key.rpartition(".")[2]), labelpad=1)
            axes.tick_params(axis="x", labelsize=6.5 if len(columns) < 4 else 5.5)
            first = next(m for m in columns if (key, m) in cells)
            axes.tick_params(axis="y", labelleft=method == first)
    figure.supylabel("eval loss, nat/token", fontsize=7)
    # More methods than fit into a column take more than a column, so that their figures stay apart.
    figure.set_size_inches(max(figure.get_figwidth(), 0.35 + 0.72 * len(columns)), 0.25 + ROW_IN * len(rows))


def _varied(kept: list[dict[str, Any]], method: str, key: str) -> list[dict[str, Any]]:
    """A method's trials that have a setting; none where they do not differ in it."""
    own = [t for t in kept if t["m"] == method and key in t["p"]]
    return own if len(own) >= FEWEST and len({json.dumps(t["p"][key]) for t in own}) > 1 else []


def _cell(axes: Axes, data: Data, method: str, key: str, own: list[dict[str, Any]], best: int | None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    numbers = all(isinstance(t["p"][key], int | float) and not isinstance(t["p"][key], bool) for t in own)
    values = list({json.dumps(t["p"][key]): t["p"][key] for t in own}.values())
    values.sort(key=None if numbers else str)
    steps = not numbers or (len(values) <= STEPS and len(values) < len(own))
    tint = colour(data, method)
    places = [values.index(t["p"][key]) if steps else t["p"][key] for t in own]
    losses = [t["l"] for t in own]
    edges = [colours()["ink"] if t["n"] == best else "white" for t in own]
    widths = [0.9 if t["n"] == best else 0.3 for t in own]
    name = f"{key} {method}"
    axes.scatter(places, losses, s=9, marker=mark(data, method), color=tint, alpha=0.85, edgecolors=edges,
                 linewidths=widths, gid=name, zorder=3)  # fmt: skip
    if not steps:
        if values[0] > 0 and values[-1] / values[0] > WIDE:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(math.log10(value))}"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(2))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        return
    for place, value in enumerate(values):
        middle = median(t["l"] for t in own if t["p"][key] == value)
        axes.hlines(middle, place - 0.3, place + 0.3, color=tint, linewidth=1.0, zorder=2)
    axes.set_xticks(range(len(values)), [named(brief(value)) for value in values])
    axes.set_xlim(-0.6, len(values) - 0.4)


def brief(value: Any) -> str:
    """Three digits that count: ``1e-4``, ``1.18e-4``, ``0.05``, ``16``.

    Example:
        >>> brief(0.0001), brief(0.05), brief("cosine")
        ('1e-4', '0.05', 'cosine')
    """
    if not isinstance(value, float):
        return str(value)
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
