"""Memory: the peak of each phase in its pieces, and what was predicted against what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sweeptune.report.plot.look import Data, NoDrawing, colour, colours, legend, limit, mark, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRENGTHS = (1.0, 0.45, 0.2)
"""How strongly a piece of the memory is drawn: allocated, reserved beyond, paged."""
BAR_IN = 0.125
"""Height of a bar with the gap below it."""


def phases(figure: Figure, data: Data) -> None:
    """Peak memory of each phase of each method's best, its pieces one behind the other."""
    from matplotlib.patches import Patch

    groups = data["phases"]
    if not groups:
        raise NoDrawing("no record of a method's best says how memory was used")
    kinds = list(dict.fromkeys(kind for own in groups for phase in own["phases"] for kind, _ in phase["pieces"]))
    axes = figure.add_subplot()
    y, ticks, most = 0.0, [], 0.0
    for own in groups:
        axes.text(0, y, named(own["method"]), fontweight="bold", va="center", ha="left", clip_on=False)
        for phase in own["phases"]:
            y, left = y + 1, 0.0
            ticks.append((y, named(phase["phase"])))
            for kind, size in phase["pieces"]:
                strength = STRENGTHS[kinds.index(kind) % len(STRENGTHS)]
                tint = colour(data, own["method"])
                axes.barh(
                    y, size, 0.72, left, color=tint, alpha=strength, gid=f"{own['method']} {phase['phase']} {kind}"
                )
                left += size
            axes.annotate(f"{left:.2f}", (left, y), xytext=(2, 0), textcoords="offset points", va="center", fontsize=6)
            most = max(most, left)
        y += 1.4
    axes.set_yticks([place for place, _ in ticks], [word for _, word in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.8, -0.8)
    axes.set_xlim(0, most * 1.12)
    axes.grid(False)
    axes.set_xlabel("peak memory, GiB")
    limit(axes, data["limits"].get("peak_memory_gib"))
    grey = colours()["m6"]
    handles = [Patch(color=grey, alpha=STRENGTHS[place % len(STRENGTHS)]) for place in range(len(kinds))]
    figure.legend(handles, list(map(named, kinds)), loc="outside upper left", ncols=len(kinds), borderaxespad=0.2)
    figure.set_figheight(0.75 + BAR_IN * y)


def predicted(figure: Figure, data: Data) -> None:
    """Measured against predicted peak memory, a point for each kind of configuration; hollow where it ran out."""
    able = data["predictions"]
    measured = [p for p in able if p["measured"] is not None]
    if not measured:
        raise NoDrawing(
            "no kind of configuration was both predicted and measured; studies on GPUs with a memory limit are"
        )
    ends = [v for p in measured for v in (p["predicted"], p["measured"])] + [p["predicted"] for p in able]
    air = (max(ends) - min(ends) or 1.0) * 0.06
    low, high = min(ends) - air, max(ends) + air
    axes = figure.add_subplot(aspect="equal")
    axes.plot([low, high], [low, high], color=colours()["rule"], linewidth=0.7, linestyle="--", gid="equal")
    methods = [m for m in data["methods"] if any(p["m"] == m for p in able)]
    for method in methods:
        own = [p for p in measured if p["m"] == method]
        gone = [p for p in able if p["m"] == method and p["measured"] is None]
        style: dict[str, Any] = {"marker": mark(data, method), "s": 14, "linewidths": 0.6, "zorder": 3}
        place, tint = data["methods"].index(method), colour(data, method)
        x, y = [p["predicted"] for p in own], [p["measured"] for p in own]
        axes.scatter(x, y, color=tint, alpha=0.8, gid=f"points-{place}", **style)
        if gone:
            x = [p["predicted"] for p in gone]
            axes.scatter(
                x, [high - air / 2] * len(gone), facecolors="none", edgecolors=tint, gid=f"gone-{place}", **style
            )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    cap = data["limits"].get("peak_memory_gib")
    limit(axes, cap)
    limit(axes, cap, word=False, along="y")
    axes.set_xlabel("predicted peak memory, GiB")
    axes.set_ylabel("measured, GiB")
    legend(figure, data, methods)
    figure.set_figheight(figure.get_figwidth())
