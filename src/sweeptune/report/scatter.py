"""Two objectives at a glance, in characters: a letter for each method, large where nothing beats the trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

FENCE = 1.5
"""Points so many interquartile ranges above the third quartile are left out (Tukey): one would squeeze all others."""


@dataclass(frozen=True)
class Dot:
    """One trial."""

    x: float
    y: float
    letter: str
    """Lower case; the front's are drawn in upper case, over the others."""
    front: bool


def letters(names: Sequence[str]) -> dict[str, str]:
    """A letter for each name: its first one that is still free.

    Example:
        >>> letters(["full", "lora", "qlora", "lora_int8"])
        {'full': 'f', 'lora': 'l', 'qlora': 'q', 'lora_int8': 'o'}
    """
    found: dict[str, str] = {}
    for name in names:
        own = [c for c in name.lower() if c.isalpha()]
        found[name] = next((c for c in [*own, *"abcdefghijklmnopqrstuvwxyz"] if c not in found.values()), "x")
    return found


def scatter(dots: Sequence[Dot], width: int, height: int) -> tuple[list[str], int]:
    """Draw points between two axes.

    Args:
        dots: The points; the front is always inside.
        width: Characters a line, the vertical axis with its figures included.
        height: Lines, without the horizontal axis and its figures.

    Returns:
        The lines, and how many points lie outside.

    Example:
        >>> print(*scatter([Dot(1, 2, "a", True), Dot(2, 1, "b", True)], 30, 4)[0], sep="\\n")
    """
    kept = [dot for dot in dots if dot.front or (dot.x <= _fence(dots, "x") and dot.y <= _fence(dots, "y"))]
    (left, right), (low, high) = (_ends([getattr(dot, axis) for dot in kept]) for axis in ("x", "y"))
    margin = max(len(_figure(low)), len(_figure(high)))
    columns = width - margin - 2
    grid = [[" "] * columns for _ in range(height)]
    for dot in sorted(kept, key=lambda dot: dot.front):  # the front last, over the others
        column = round((dot.x - left) / (right - left) * (columns - 1))
        row = round((high - dot.y) / (high - low) * (height - 1))
        grid[row][column] = dot.letter.upper() if dot.front else dot.letter
    labels = {0: _figure(high), height - 1: _figure(low)}
    lines = [f"{labels.get(row, ''):>{margin}} │{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    ends = _figure(left) + _figure(right).rjust(columns - len(_figure(left)))
    return [*lines, f"{'':>{margin}} └{'─' * columns}", f"{'':>{margin}}  {ends}"], len(dots) - len(kept)


def _fence(dots: Sequence[Dot], axis: str) -> float:
    values = sorted(getattr(dot, axis) for dot in dots)
    if len(values) < 4:
        return float(values[-1])
    first, _, third = quantiles(values, n=4)
    return float(third + FENCE * (third - first))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
