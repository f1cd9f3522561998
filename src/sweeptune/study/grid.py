"""A grid behind baselines: a point that is a method's recommended settings is run once, as that method's baseline.

Which points these are is decided when a study begins and kept in its study.json. Trials of a grid go by number, so a
study that began without this must keep its numbers: it has no such list, and runs those points twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweeptune.config.schema import StudyConfig
from sweeptune.study.space import Point, Space

Merged = Mapping[int, Point]
"""Points of the grid that a baseline stands for, by the baseline's place among the baselines."""


def merge(space: Space, settings: StudyConfig, run_of: Callable[[Point], Mapping[str, Any]]) -> Merged:
    """Find the points of a grid whose runs would be those of a baseline.

    Args:
        space: What is searched.
        settings: The study's; ``sampler`` is no longer ``auto``.
        run_of: Composes a point; every setting of its run, with dotted keys.
    """
    if settings.sampler != "grid" or not settings.baselines:
        return {}
    if "seed" in space.swept and (settings.prune or settings.replicates > 1):
        return {}  # a baseline then has several seeds and a point one, so they are different runs
    found: dict[int, Point] = {}
    points = space.grid()
    for place, baseline in enumerate(space.baselines()):
        values = run_of(baseline)
        # Composing takes a tenth of a second, so only points whose swept values agree are composed.
        for point in [p for p in points if all(_agrees(values, key, value) for key, value in p.items())]:
            if run_of(point) == values:
                found[place] = point
                break
    return found


def firsts(space: Space, settings: StudyConfig, merged: Merged) -> list[Point]:
    """What the first trials try: the baselines, those that stand for a point of the grid as that point."""
    if not settings.baselines:
        return []
    return [merged.get(place, baseline) for place, baseline in enumerate(space.baselines())]


def rest(space: Space, merged: Merged) -> list[Point]:
    """The points of the grid that no baseline stands for, in its order."""
    return [point for point in space.grid() if point not in merged.values()]


def from_header(header: Mapping[str, Any]) -> Merged:
    """What study.json keeps, whose keys are text."""
    return {int(place): point for place, point in header.get("merged", {}).items()}


def _agrees(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a swept setting, or the option of a swept group, is what a configuration has."""
    return bool(values.get(key, values.get(f"{key}.name", value)) == value)
