"""bench/search.py: what it charges, what it counts, and what it finds on the recorded curves."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import search  # noqa: E402

CURVES = sorted((BENCH / "curves").glob("*.csv"))


def small(path: Path, losses: dict[tuple[str, int | None, float], float]) -> Path:
    """A recorded file: 100 tokens a run, evaluated at 0, 25, 50 and 100; a baseline of each method with two seeds."""
    rows = []
    for run, ((method, rank, rate), final) in enumerate(losses.items()):
        seeds = (0, 1) if rate == 1e-3 and rank in (None, 4) else (0,)
        for seed in seeds:
            rows += [
                {"run": 100 * seed + run, "method": method, "rank": rank, "lr": rate, "seed": seed,
                 "baseline": len(seeds) > 1, "status": "completed", "peak_memory_gib": 2 if rank is None else 1,
                 "tokens": tokens, "eval_loss": 3.0 - (3.0 - final - seed / 1000) * (tokens / 100) ** 0.5}
                for tokens in (0, 25, 50, 100)
            ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_hypervolume() -> None:
    assert search.hypervolume([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)], (3.0, 3.0)) == 3.0
    assert search.hypervolume([(4.0, 1.0), (1.0, 4.0)], (3.0, 3.0)) == 0.0
    assert search.hypervolume([], (3.0, 3.0)) == 0.0


def test_every_token_is_charged_and_what_was_pruned_is_not_found(tmp_path: Path) -> None:
    losses = {
        ("lora", 4, rate): loss for rate, loss in zip((1e-3, 2e-3, 3e-3, 4e-3), (2.0, 2.01, 2.02, 2.03), strict=True)
    }
    losses |= {("lora", 4, 1e-5 * n): 2.9 for n in range(1, 9)}
    grid = search.read(small(tmp_path / "small.csv", losses))
    assert (len(grid.runs), grid.tokens) == (12, 1200) and len(grid.repeats) == 1
    replay = search.sweeptune(grid, 10_000, seed=0)
    assert replay.pruned > 0 and {("lora", 4, 1e-3)} <= replay.found
    ended = [each for each in replay.lines if each["kind"] == "trial"]
    assert {each["tokens"] for each in ended} == {200, 100, 25}, (
        "the baseline has two seeds, pruning comes at a quarter"
    )
    assert len(replay.found) == sum(each["status"] == "completed" for each in ended)
    assert replay.spent == sum(each["tokens"] for each in ended) + 100 * search.PROBE
    assert all(each["pruned_by"] for each in ended if each["status"] == "pruned")


def test_no_strategy_exceeds_its_tokens(tmp_path: Path) -> None:
    losses = {("lora", rank, 1e-3 * n): 2.0 + n / rank for rank in (4, 8) for n in (1, 2, 3)}
    losses |= {("full", None, 1e-3 * n): 1.9 + n / 10 for n in (1, 2, 3)}
    grid = search.read(small(tmp_path / "small.csv", losses))
    for seed in range(3):
        assert search.sweeptune(grid, 500, seed).spent <= 500
        assert len(search.at_random(grid, 500, seed)) == 5
        assert len(search.plain_tpe(grid, 500, seed)) == 5
        # 8 start, 4 pass a quarter, 2 a half: 200 + 100 + 100.
        assert len(search.halving(grid, 400, seed)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", CURVES, ids=[path.stem for path in CURVES])
def test_the_front_is_found_with_two_fifths_of_the_grids_tokens(path: Path) -> None:
    grid = search.read(path)
    worth = [grid.worth(search.sweeptune(grid, search.SHARE * grid.tokens, seed).found) for seed in range(20)]
    assert sum(each >= 0.99 for each in worth) >= 18, worth


def test_at_least_a_hundred_curves_are_recorded() -> None:
    grids = [search.read(path) for path in CURVES]
    assert sum(len(grid.runs) + sum(map(len, grid.repeats.values())) for grid in grids) >= 100


def test_without_pruning_no_seed_is_charged_twice(tmp_path: Path) -> None:
    grid = search.read(small(tmp_path / "small.csv", {("lora", 4, 1e-3 * n): 2.0 + n for n in (1, 2, 3)}))
    replay = search.sweeptune(grid, 10_000, 0, replace(search.SETTINGS, prune=False))
    assert replay.pruned == 0 and len(replay.found) == 3
    assert replay.spent == 300 + 100 * search.PROBE
