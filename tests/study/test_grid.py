"""Which points of a grid a baseline stands for, and which trial gets which point then."""

from __future__ import annotations

from typing import Any

import pytest

from sweeptune.config.schema import StudyConfig
from sweeptune.study.grid import firsts, merge, rest
from sweeptune.study.space import Choice, Parameter, Space
from tests.study.helpers import GRID, SPACE

ON = StudyConfig(sampler="grid", baselines=True)


def run_of(point: dict[str, Any]) -> dict[str, Any]:
    """Recommended: 1e-5 for full, 1e-4 and rank 16 for lora."""
    full = point.get("method") == "full"
    plain = {"method.name": "full", "optim.lr": 1e-5} if full else {"method.name": "lora", "optim.lr": 1e-4}
    own = {} if full else {"method.rank": 16}
    return {"seed": 0, **plain, **own, **{key: value for key, value in point.items() if key != "method"}}


def test_recommended_points_go_first_and_the_rest_keeps_its_order() -> None:
    merged = merge(GRID, ON, run_of)
    assert merged == {
        0: {"method": "full", "optim.lr": 1e-5},
        1: {"method": "lora", "optim.lr": 1e-4, "method.rank": 16},
    }
    assert firsts(GRID, ON, merged) == list(merged.values())
    assert rest(GRID, merged) == [point for point in GRID.grid() if point not in merged.values()]
    assert len(rest(GRID, merged)) == 4


def test_a_baseline_outside_of_the_grid_stands_for_nothing() -> None:
    narrow = Space((*GRID.parameters[:2], Parameter("method.rank", {"lora": Choice((4, 8))})), GRID.methods)
    merged = merge(narrow, ON, run_of)
    assert list(merged) == [0] and firsts(narrow, ON, merged)[1] == {"method": "lora"}
    assert len(rest(narrow, merged)) == 5


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (ON, 1),
        (StudyConfig(sampler="grid", baselines=True, prune=True), 0),
        (StudyConfig(sampler="grid", baselines=True, replicates=2), 0),
        (StudyConfig(sampler="grid"), 0),
    ],
)
def test_a_point_with_a_seed_is_no_baseline_with_several(settings: StudyConfig, count: int) -> None:
    seeds = Space((Parameter("seed", {"*": Choice((0, 1))}),), ("lora",))
    assert len(merge(seeds, settings, run_of)) == count


def test_only_a_grid_is_merged() -> None:
    assert merge(SPACE, StudyConfig(sampler="tpe", baselines=True), run_of) == {}
