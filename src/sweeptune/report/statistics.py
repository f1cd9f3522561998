"""How sure a difference between methods is: the seed is the unit, and pairs share their knowledge of the noise.

The design is one of complete blocks: each seed gives every method the same data in the same order, so a seed's luck
falls out of the differences. `judge_pairs` decides every pair; `seeds_needed` says what would decide an open one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from scipy.special import nctdtr, stdtr, stdtrit  # what scipy.stats.t calls, without the second that its import takes

Word = Literal["better", "worse", "tied", "undecided"]

ALPHA = 0.05
"""How often a study of methods that do not differ may declare a difference between any two of them."""
POWER = 0.8
CLEARLY = 1.1
"""A pair's own variance above this many times the pooled one keeps its own degrees of freedom. In simulated studies of
three seeds without a difference, one or two methods up to 20 times as noisy as the others, that holds errors below
5 %; at 1.15 six methods reach 5.2 %, and at 1 four equally noisy methods show three deviations in 82 %, not 84 %."""
MOST_SEEDS = 50
"""Beyond this many seeds nobody is told to train more."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and where it lies with 95 % confidence; without bounds for one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def half(self) -> float | None:
        """Half the width."""
        return None if self.low is None else self.mean - self.low


@dataclass(frozen=True)
class Pair:
    """Two methods, seed by seed."""

    a: str
    b: str
    seeds: tuple[int, ...] = ()
    """The seeds that both have."""
    difference: float | None = None
    """Mean over seeds of a's loss minus b's, in nats: below 0, a is better."""
    low: float | None = None
    high: float | None = None
    """Ends of the interval; all words follow from it, because its level is the one of Holm's step for this pair."""
    p: float | None = None
    """Two-sided, before Holm."""
    deviation: float | None = None
    """Standard deviation of a per-seed difference that the interval uses."""
    freedom: int | None = None
    divisor: int = 1
    """Holm's: the interval's level is 1 - 0.05 / divisor."""
    examples: float | None = None
    """Half a 95 % interval over the examples, for these very runs: what other test rows would have changed."""
    word: Word = "undecided"
    """What ``a`` is, seen from ``b``."""
    reason: str | None = None
    """Why the pair cannot be judged, where it cannot."""


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of independent values.

    Args:
        values: At least one.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        Interval(mean=2.0, low=-0.484..., high=4.484..., seeds=3)
    """
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Interval(mean, None, None, count)
    half = quantile(1 - ALPHA / 2, count - 1) * math.sqrt(_variance(values) / count)
    return Interval(mean, mean - half, mean + half, count)


def judge_pairs(
    losses: Mapping[str, Mapping[int, float]], margin: float, apart: Mapping[tuple[str, str], str] | None = None
) -> list[Pair]:
    """Judge every pair of methods.

    A t-interval over paired per-seed differences, Holm over the pairs (Holm 1979). With three seeds a pair alone has
    two degrees of freedom, which finds next to nothing. So its variance is the mean over all pairs, that is the
    residual variance of the block design with (methods - 1)(seeds - 1) degrees of freedom, as R's pairwise.t.test
    pools; where the pair's own is larger, that one counts, and where it is clearly larger, with its own degrees of
    freedom, so that a noisy method cannot borrow a quiet one's certainty. Two seeds are too few to show that a method
    is noisier: nothing is pooled.

    Args:
        losses: Loss in nats a token by seed, by method.
        margin: Differences inside +- this many nats count as none.
        apart: Pairs that may not be compared, and why.

    Returns:
        One pair for each two methods, in the given order; ``undecided`` where they share fewer than two seeds.

    Example:
        >>> quiet = {0: 1.0, 1: 1.02, 2: 1.01}
        >>> judge_pairs({"lora": quiet, "full": {s: x + 0.5 + s / 100 for s, x in quiet.items()}}, 0.01)[0].word
        'better'
    """
    pooled, freedom = _pooled(losses)
    refused = apart or {}
    pairs = [
        Pair(a, b, reason=refused[a, b]) if (a, b) in refused else _pair(a, b, losses, pooled, freedom)
        for a, b in combinations(losses, 2)
    ]
    divisors = holm([pair.p for pair in pairs if pair.p is not None])
    tested = iter(divisors)
    return [pair if pair.p is None else _with_word(replace(pair, divisor=next(tested)), margin) for pair in pairs]


def holm(ps: Sequence[float], alpha: float = ALPHA) -> list[int]:
    """By what each test's share of alpha is divided.

    Step down: the smallest p is compared with alpha / n, the next with alpha / (n - 1), until one fails; that one and
    all after it keep its divisor, so that an interval at 1 - alpha / divisor excludes 0 exactly where Holm rejects.

    Args:
        ps: p-values, in any order.
        alpha: Family-wise error.

    Example:
        >>> holm([0.04, 0.001, 0.3])
        [2, 3, 2]
    """
    divisors, failed = [0] * len(ps), 0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        divisors[index] = failed or len(ps) - place
        if not failed and ps[index] > alpha / divisors[index]:
            failed = divisors[index]
    return divisors


def power(effect: float, seeds: int, methods: int, divisor: int = 1) -> float:
    """How often a true difference is found.

    Args:
        effect: The difference in standard deviations of a per-seed difference.
        seeds: Seeds of each method, at least 2.
        methods: Methods in the study, at least 2, equally noisy.
        divisor: Holm's for the pair.

    Example:
        >>> round(power(3.0, seeds=3, methods=2), 2)
        0.75
    """
    freedom = (methods - 1) * (seeds - 1)
    shift, critical = effect * math.sqrt(seeds), quantile(1 - ALPHA / (2 * divisor), freedom)
    return float(1 - nctdtr(freedom, shift, critical) + nctdtr(freedom, shift, -critical))


def smallest_found(pair: Pair) -> float | None:
    """The smallest true difference, in nats, that this pair would have shown in 80 % of studies; None: cannot say."""
    if not pair.deviation or pair.freedom is None:
        return None
    both = quantile(1 - ALPHA / (2 * pair.divisor), pair.freedom) + quantile(POWER, pair.freedom)
    return both * pair.deviation / math.sqrt(len(pair.seeds))


def seeds_needed(pair: Pair, methods: int, margin: float) -> int | None:
    """How many seeds in all would probably decide a pair, if the difference and the noise are as seen.

    Args:
        pair: An undecided pair.
        methods: Methods in the study.
        margin: Differences inside +- this many nats count as none.

    Returns:
        The smallest number above the present one that finds the difference in 80 % of cases or shows it to be inside
        the margin; None where there is no noise to reckon with, or more than `MOST_SEEDS` would be needed.
    """
    if not pair.deviation or pair.difference is None:
        return None
    size = abs(pair.difference)
    # A pair that is noisier than the others is taken to stay so, and then shares its freedom with nobody; of two seeds
    # that is not known.
    alone = pair.freedom == len(pair.seeds) - 1 > 1
    sharing = 2 if alone else methods
    for seeds in range(len(pair.seeds) + 1, MOST_SEEDS + 1):
        found = power(size / pair.deviation, seeds, sharing, pair.divisor) >= POWER
        freedom = (sharing - 1) * (seeds - 1)
        half = quantile(1 - ALPHA / (2 * pair.divisor), freedom) * pair.deviation / math.sqrt(seeds)
        if found or size + half < margin:
            return seeds
    return None


def quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t."""
    return float(stdtrit(freedom, share))


def _pooled(losses: Mapping[str, Mapping[int, float]]) -> tuple[float | None, int]:
    """Variance of a per-seed difference, averaged over the pairs, and its degrees of freedom.

    In complete blocks the mean of the pairs' own variances is twice the residual mean square of methods and seeds.
    None for fewer than three seeds that all methods share.
    """
    methods = [own for own in losses.values() if len(own) > 1]
    shared = sorted(set.intersection(*(set(own) for own in methods))) if methods else []
    if len(methods) < 2 or len(shared) < 3:
        return None, 0
    own = [_variance([a[seed] - b[seed] for seed in shared]) for a, b in combinations(methods, 2)]
    return math.fsum(own) / len(own), (len(methods) - 1) * (len(shared) - 1)


def _pair(a: str, b: str, losses: Mapping[str, Mapping[int, float]], pooled: float | None, pooled_freedom: int) -> Pair:
    seeds = tuple(sorted(losses[a].keys() & losses[b].keys()))
    pair = Pair(a, b, seeds)
    if not seeds:
        return replace(pair, reason="they share no seed")
    differences = [losses[a][seed] - losses[b][seed] for seed in seeds]
    pair = replace(pair, difference=math.fsum(differences) / len(seeds))
    if len(seeds) < 2:
        return replace(pair, reason="one seed")
    if all(len({losses[name][seed] for seed in seeds}) == 1 for name in (a, b)):
        return replace(pair, reason="the seeds gave identical losses, so they count as one")
    variance, freedom = _variance(differences), len(seeds) - 1
    if pooled is not None and variance <= CLEARLY * pooled:
        variance, freedom = max(variance, pooled), pooled_freedom
    error = math.sqrt(variance / len(seeds))
    t = abs(pair.difference or 0.0) / error if error else math.inf
    p = 2 * float(stdtr(freedom, -t)) if error or pair.difference else 1.0
    return replace(pair, p=p, deviation=math.sqrt(variance), freedom=freedom)


def _with_word(pair: Pair, margin: float) -> Pair:
    assert pair.difference is not None and pair.deviation is not None and pair.freedom is not None
    half = quantile(1 - ALPHA / (2 * pair.divisor), pair.freedom) * pair.deviation / math.sqrt(len(pair.seeds))
    low, high = pair.difference - half, pair.difference + half
    # Inside the margin comes first: a difference that is certain and too small to matter counts as none.
    word: Word = "undecided"
    if -margin <= low and high <= margin:
        word = "tied"
    elif high < 0:
        word = "better"
    elif low > 0:
        word = "worse"
    return replace(pair, low=low, high=high, word=word)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
