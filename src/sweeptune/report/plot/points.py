"""The two drawings that every study has: loss against memory, and loss over tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sweeptune.report.cells import count
from sweeptune.report.plot.look import Data, NoDrawing, colour, colours, completed, fence, legend, limit, mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL_PT, MORE_PT = 2.5, 4.5
"""Diameter of the slowest conceivable point, and what the fastest has more."""
CROWD = 100
"""From so many points on they are drawn smaller."""


def front(figure: Figure, data: Data) -> None:
    """Eval loss against peak memory, a point for each trial, its area by tokens/s; the Pareto front is outlined."""
    able = [t for t in completed(data) if "g" in t]
    if not able:
        raise NoDrawing("no trial has completed with a measured memory")
    high = max([fence([t["l"] for t in able]), *(t["l"] for t in able if t.get("f"))])
    kept = [t for t in able if t["l"] <= high]
    fastest = max(t.get("v", 0.0) for t in kept) or 1.0
    axes = figure.add_subplot()
    methods = [m for m in data["methods"] if any(t["m"] == m for t in kept)]
    for method in methods:
        own = [t for t in kept if t["m"] == method]
        axes.scatter(
            [t["g"] for t in own],
            [t["l"] for t in own],
            s=[_diameter(t.get("v", 0.0), fastest, len(kept)) ** 2 for t in own],
            marker=mark(data, method),
            color=[(colour(data, method), 0.85 if t.get("e") else 0.25) for t in own],
            edgecolors=[colours()["ink"] if t.get("f") else "white" for t in own],
            linewidths=[0.9 if t.get("f") else 0.3 for t in own],
            gid=f"points-{data['methods'].index(method)}",
            zorder=3,
        )
    axes.set_xlabel("peak memory, GiB")
    axes.set_ylabel("eval loss, nat/token")
    cap = data["limits"].get("peak_memory_gib")
    low, most = axes.get_xlim()
    if cap is not None and low < cap < most + (most - low) * 0.5:
        axes.set_xlim(low, max(most, cap + 0.02 * (most - low)))
    limit(axes, cap)
    limit(axes, data["limits"].get("eval_loss"), word=False, along="y")
    if sorted(data["objectives"]) == ["eval_loss", "peak_memory_gib"]:
        _stairs(axes, [t for t in kept if t.get("f")])
    legend(figure, data, methods, _sizes(kept, fastest))


def _diameter(speed: float, fastest: float, number: int) -> float:
    """Points; so that the area above the smallest grows with the speed."""
    return (SMALL_PT + MORE_PT * math.sqrt(speed / fastest)) * max(0.4, min(1.0, math.sqrt(CROWD / number)))


def _sizes(kept: list[dict[str, Any]], fastest: float) -> list[tuple[Any, str]]:
    """The slowest and the fastest point, for the legend."""
    from matplotlib.lines import Line2D

    speeds = sorted(t["v"] for t in kept if t.get("v"))
    found = []
    for speed in dict.fromkeys([speeds[0], speeds[-1]] if speeds else []):
        size = _diameter(speed, fastest, len(kept))
        handle = Line2D([], [], marker="o", color=colours()["m6"], linestyle="none", markersize=size)
        found.append((handle, f"{count(round(speed))} tokens/s"))
    return found


def _stairs(axes: Any, best: list[dict[str, Any]]) -> None:
    """The edge of what the front beats."""
    if best:
        best = sorted(best, key=lambda t: t["g"])
        (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
        x, y = [best[0]["g"], *(t["g"] for t in best), right], [top, *(t["l"] for t in best), best[-1]["l"]]
        axes.step(x, y, where="post", color=colours()["ink"], linewidth=0.7, alpha=0.6, gid="front", zorder=2)
        axes.set_xlim(right=right)
        axes.set_ylim(top=top)


def curves(figure: Figure, data: Data) -> None:
    """Eval loss over tokens, a thin line for each trial, a strong one for the best of each method."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import FuncFormatter

    of = {t["n"]: t["m"] for t in data["trials"]}
    best = {arm["trial"] for arm in data["arms"]}
    own = [(n, of[n], list(zip(x, y, strict=True))) for n, x, y in data["curves"] if n in of]
    if not own:
        raise NoDrawing("no trial was evaluated more than once (train.eval_every, train.eval_at)")
    axes = figure.add_subplot()
    methods = [m for m in data["methods"] if any(method == m for _, method, _ in own)]
    faint = max(0.18, min(0.6, 16 / len(own)))
    for method in methods:
        tint, place = colour(data, method), data["methods"].index(method)
        thin = [line for n, m, line in own if m == method and n not in best]
        if thin:
            axes.add_collection(LineCollection(thin, colors=[tint], linewidths=0.6, alpha=faint, gid=f"lines-{place}"))
        for n, m, line in own:
            if m == method and n in best:
                x, y = zip(*line, strict=True)
                axes.plot(x, y, color=tint, linewidth=1.3, gid=f"best-{place}", zorder=3)
                axes.plot(x[-1:], y[-1:], color=tint, marker=mark(data, method), markersize=3.5, zorder=4)
    high = max(max(line[0][1] for _, _, line in own), fence([line[-1][1] for _, _, line in own]))
    values = [y for _, _, line in own for _, y in line]
    low, high = min(values), min(high, max(values))
    air = (high - low or 1.0) * 0.05
    axes.set_ylim(low - air, high + air)
    axes.set_xlim(0, max(x for _, _, line in own for x, _ in line) * 1.03)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{count(round(value))}".replace(".00", "")))
    axes.set_xlabel("tokens")
    axes.set_ylabel("eval loss, nat/token")
    legend(figure, data, methods)
