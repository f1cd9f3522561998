"""The verdict's statistics: against scipy's, on fake studies without a difference, and on planted ones."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from sweeptune.report.statistics import holm, interval, judge_pairs, power, seeds_needed, smallest_found

Losses = dict[str, dict[int, float]]
METHODS = ("full", "lora", "qlora", "dora")


def noisy(draw: random.Random, methods: int, seeds: int, effect: float = 0.0, sd: float = 1.0) -> Losses:
    """Losses whose per-seed *differences* have a deviation of 0.01; the first method is ``effect`` of them better."""
    luck = [draw.gauss(0, 0.05) for _ in range(seeds)]  # of a seed, shared by all methods
    one = 0.01 / 2**0.5
    return {
        name: {s: 2.0 + luck[s] + draw.gauss(0, one * (sd if not place else 1)) for s in range(seeds)}
        if place
        else {s: 2.0 - effect * 0.01 + luck[s] + draw.gauss(0, one * sd) for s in range(seeds)}
        for place, name in enumerate(METHODS[:methods])
    }


def test_an_interval_is_scipys() -> None:
    values = [1.93, 1.91, 1.96, 1.90]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert interval([1.5]).low is None


def test_two_methods_are_scipys_paired_t_test() -> None:
    losses = noisy(random.Random(1), 2, 5, effect=1.0)
    a, b = (list(own.values()) for own in losses.values())
    pair = judge_pairs(losses, margin=0.0)[0]
    expected = stats.ttest_rel(a, b)
    assert pair.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (pair.low, pair.high) == pytest.approx((low, high))


def test_the_pooled_deviation_is_the_residual_of_the_block_design() -> None:
    losses = noisy(random.Random(2), 3, 4)
    table = [list(own.values()) for own in losses.values()]
    rows, columns = [sum(row) / 4 for row in table], [sum(column) / 3 for column in zip(*table, strict=True)]
    rest = sum(
        (x - rows[i] - columns[j] + sum(rows) / 3) ** 2 for i, row in enumerate(table) for j, x in enumerate(row)
    )
    pairs = judge_pairs(losses, margin=0.0)
    least = min(pair.deviation or 0 for pair in pairs)
    assert least**2 == pytest.approx(2 * rest / (2 * 3))
    assert [pair.freedom for pair in pairs] == [6 if pair.deviation == least else 3 for pair in pairs]


@pytest.mark.parametrize(
    ("ps", "divisors"),
    [
        ([0.001, 0.02, 0.04], [3, 2, 1]),  # 0.02 <= 0.05 / 2, 0.04 <= 0.05 / 1
        ([0.02, 0.001, 0.06], [2, 3, 1]),
        ([0.02, 0.02, 0.02], [3, 3, 3]),  # the first fails, so no later one may pass
        ([], []),
    ],
)
def test_holm_steps_down_and_stops(ps: list[float], divisors: list[int]) -> None:
    assert holm(ps) == divisors


@pytest.mark.parametrize("seed", range(20))
def test_words_and_intervals_say_the_same_as_holm(seed: int) -> None:
    pairs = judge_pairs(noisy(random.Random(seed), 4, 3, effect=4.0), margin=0.0)
    ordered = sorted(pairs, key=lambda pair: pair.p or 0)
    rejecting = True
    for place, pair in enumerate(ordered):
        rejecting = rejecting and (pair.p or 0) <= 0.05 / (len(ordered) - place)
        assert (pair.word in ("better", "worse")) == rejecting
        assert ((pair.low or 0) > 0 or (pair.high or 0) < 0) == rejecting


@pytest.mark.parametrize("methods", [2, 3, 4])
def test_no_difference_is_declared_where_there_is_none(methods: int) -> None:
    draw = random.Random(methods)
    studies = [judge_pairs(noisy(draw, methods, 3), margin=0.0) for _ in range(2000)]
    wrong = sum(any(pair.word != "undecided" for pair in pairs) for pairs in studies)
    # 5 % of 2,000, and two standard deviations of such a count (2 x 9.7): two methods have exactly 5 %.
    assert wrong <= 100 + 20, f"{wrong} of 2000 studies declare a difference"


@pytest.mark.parametrize(("methods", "sd"), [(2, 3.0), (3, 3.0), (4, 3.0), (4, 1 / 3)])
def test_a_method_of_other_noise_does_not_make_differences(methods: int, sd: float) -> None:
    draw = random.Random(11)
    studies = [judge_pairs(noisy(draw, methods, 3, sd=sd), margin=0.0) for _ in range(2000)]
    assert sum(any(pair.word != "undecided" for pair in pairs) for pairs in studies) <= 100 + 20


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("sds", [(0.001, 0.001, 0.02), (0.001, 0.001, 0.001, 0.009)], ids=["of 3", "of 4"])
def test_one_far_noisier_method_does_not_make_differences(sds: tuple[float, ...], seeds: int) -> None:
    draw = random.Random(21)
    wrong = 0
    for _ in range(2000):
        losses = {
            name: {seed: 2.0 + draw.gauss(0, sd) for seed in range(seeds)}
            for name, sd in zip(METHODS, sds, strict=False)
        }
        wrong += any(pair.word != "undecided" for pair in judge_pairs(losses, margin=0.0))
    assert wrong <= 100, f"{wrong} of 2000 studies declare a difference"


@pytest.mark.parametrize(("methods", "seeds"), [(4, 3), (3, 4), (2, 4)])
def test_three_deviations_are_found(methods: int, seeds: int) -> None:
    """Found: the planted method is better than another one. Fewer than four methods need a fourth seed: with three,
    73 to 75 %."""
    draw = random.Random(5)
    studies = [judge_pairs(noisy(draw, methods, seeds, effect=3.0), margin=0.0) for _ in range(400)]
    found = sum(any(pair.a == "full" and pair.word == "better" for pair in pairs) for pairs in studies)
    assert found >= 0.8 * 400, f"found in {found / 4:.1f} %"


def test_the_power_formula_agrees_with_counting() -> None:
    draw = random.Random(6)
    studies = [judge_pairs(noisy(draw, 2, 3, effect=3.0), margin=0.0)[0] for _ in range(2000)]
    counted = sum(pair.word == "better" for pair in studies) / 2000
    assert counted == pytest.approx(power(3.0, seeds=3, methods=2), abs=0.03)
    assert power(3.0, seeds=3, methods=2) == pytest.approx(0.745, abs=0.001)


def test_one_seed_is_undecided_however_large_the_difference() -> None:
    pair = judge_pairs({"full": {0: 3.0}, "lora": {0: 1.0}}, margin=0.01)[0]
    assert (pair.word, pair.reason, pair.difference, pair.low) == ("undecided", "one seed", 2.0, None)


def test_only_seeds_that_both_have_are_paired() -> None:
    pair = judge_pairs({"full": {0: 2.0, 1: 2.1, 2: 9.0}, "lora": {0: 1.0, 1: 1.1, 3: 0.0}}, margin=0.01)[0]
    assert pair.seeds == (0, 1)
    assert pair.difference == pytest.approx(1.0)
    assert judge_pairs({"full": {0: 2.0}, "lora": {1: 1.0}}, margin=0.01)[0].reason == "they share no seed"


def test_a_difference_inside_the_margin_is_a_tie_even_when_it_is_certain() -> None:
    a = {0: 2.0, 1: 2.1, 2: 2.2}
    pair = judge_pairs({"full": a, "lora": {s: x + 0.002 + s * 1e-5 for s, x in a.items()}}, margin=0.01)[0]
    assert pair.p is not None and pair.p < 0.001
    assert pair.word == "tied"


def test_seeds_that_change_nothing_are_one_seed() -> None:
    same = {0: 2.0, 1: 2.0, 2: 2.0}
    pair = judge_pairs({"full": same, "lora": {s: x + 0.5 for s, x in same.items()}}, margin=0.01)[0]
    assert pair.word == "undecided" and "identical" in (pair.reason or "")


def test_pairs_apart_are_not_judged_and_cost_the_others_nothing() -> None:
    losses = noisy(random.Random(3), 3, 3, effect=8.0)
    pairs = judge_pairs(losses, margin=0.0, apart={("full", "lora"): "other data"})
    assert (pairs[0].word, pairs[0].reason, pairs[0].p) == ("undecided", "other data", None)
    assert max(pair.divisor for pair in pairs) == 2


def test_more_seeds_are_counted_until_they_decide() -> None:
    open_pair = judge_pairs({"full": {0: 2.0, 1: 2.1, 2: 2.05}, "lora": {0: 1.99, 1: 2.06, 2: 2.03}}, margin=0.01)[0]
    assert open_pair.word == "undecided"
    needed = seeds_needed(open_pair, 2, margin=0.01)
    assert needed is not None and open_pair.deviation and open_pair.difference
    effect = abs(open_pair.difference) / open_pair.deviation
    assert power(effect, needed, 2) >= 0.8 > power(effect, needed - 1, 2)
    assert (smallest_found(open_pair) or 0) > abs(open_pair.difference)
    same = judge_pairs({"full": {0: 2.0, 1: 2.1}, "lora": {0: 2.1, 1: 2.0}}, margin=0.0)[0]
    assert seeds_needed(same, 2, margin=0.0) is None, "no number of seeds finds nothing"
