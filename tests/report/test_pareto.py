"""Fronts and hypervolumes, against Optuna's own and against counting."""

from __future__ import annotations

import random

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from sweeptune.config.study_rules import grows
from sweeptune.report.pareto import box, front, hypervolume, share


def cloud(seed: int, number: int, objectives: int) -> list[tuple[float, ...]]:
    draw = random.Random(seed)
    # Rounded, so that equal values and equal points occur.
    return [tuple(round(draw.random(), 1 + seed % 2) for _ in range(objectives)) for _ in range(number)]


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_the_front_is_what_nothing_beats(seed: int, objectives: int) -> None:
    points = cloud(seed, 40, objectives)
    expected = {
        i
        for i, a in enumerate(points)
        if not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in points)
    }
    found = front(points)
    assert set(found) == expected
    assert [points[i] for i in found] == sorted(points[i] for i in found)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_the_hypervolume_is_optunas(seed: int, objectives: int) -> None:
    points, reference = cloud(seed, 40, objectives), (0.85,) * objectives
    expected = compute_hypervolume(np.array([p for p in points if max(p) < 0.85]), np.array(reference))
    assert hypervolume(points, reference) == pytest.approx(expected)


def test_points_beyond_the_reference_add_nothing() -> None:
    assert hypervolume([(1.0, 4.0), (3.0, 1.0)], (3.0, 3.0)) == 0.0
    assert hypervolume([], (3.0, 3.0)) == 0.0


def test_a_share_is_of_the_whole_box() -> None:
    points = [(1.0, 3.0), (3.0, 1.0)]
    best, worst = box(points)
    assert best == (1.0, 1.0) and worst == pytest.approx((3.2, 3.2))
    assert share([(1.0, 1.0)], best, worst) == pytest.approx(1.0)
    assert 0 < share(points, best, worst) < 1
    assert box([(2.0, 0.0)])[1] == (2.2, 1.0), "one point still spans a box"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("tokens_per_s", True),
        ("speed.loss_tokens_per_s", True),
        ("mfu", True),
        ("eval_loss", False),
        ("step_ms", False),
    ],
)
def test_speeds_grow(name: str, more: bool) -> None:
    assert grows(name) is more
