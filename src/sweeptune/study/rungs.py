"""Which running trial is clearly behind: finished ones of its method were better at equal tokens, by more than luck.

Optuna refuses pruning with several objectives, and its rules compare steps of unequal cost and know no seeds; hence
this one. Losses are compared inside one method and one schedule, in units of what the seed alone changes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sweeptune.config.schema import StudyConfig

BETTER = 3
"""So many finished trials must be better."""
SPREADS = 2.0
"""By so many standard deviations over seeds."""
ENOUGH = 3
"""Degrees of freedom of a method's own spread; below, it is measured over all methods."""
SAME = 0.02
"""Relative difference up to which token counts are the same: a rung is the first step that reaches its share, and
where steps end depends on the seed a little."""

ALIKE = 0.01
"""Relative difference in memory or speed up to which a trial is not spared for it. None at all would spare every
smaller rank; with 5 % the small ranks, the cheap end of the front, were pruned in the replays of bench/search.py."""


@dataclass(frozen=True)
class Curve:
    """What one run, a trial under one seed, has shown so far."""

    number: int
    """The trial's."""
    method: str
    schedule: str
    """Everything that shapes the learning rate over the tokens; only equal ones are compared."""
    configuration: str
    """Everything but the seed; runs that share it differ by luck."""
    seed: int
    losses: tuple[tuple[int, float], ...]
    """(real tokens trained, eval loss), rising in tokens."""
    finished: bool
    """It completed and keeps the constraints: a reason to stop another one."""
    baseline: bool
    costs: tuple[float, ...] = ()
    """The other objectives where they are known already (memory and speed, from the probe), smaller being better."""


@dataclass(frozen=True)
class Verdict:
    """Why a trial is stopped: what the record's ``pruned_by`` says."""

    rung_tokens: int
    loss: float
    by: tuple[int, ...]
    """Trials that were better at these tokens, the best first."""
    spread: float
    """Standard deviation over seeds at these tokens."""


def loss_at(curve: Curve, tokens: int) -> float | None:
    """Eval loss after so many tokens: of an evaluation within 2 %, else on the line between the two around it, which
    lies above a curve that falls ever more slowly, and so spares rather than prunes. None outside of the evaluations.

    Where a rung lies depends on the seed: a step has the tokens that its samples have, and in a short run one step is
    more than 2 %.

    Example:
        >>> curve = Curve(0, "lora", "cosine", "a", 0, ((0, 3.0), (1010, 2.0), (2000, 1.0)), True, False)
        >>> loss_at(curve, 1000), loss_at(curve, 1505), loss_at(curve, 3000)
        (2.0, 1.5, None)
    """
    near = [(abs(at - tokens), loss) for at, loss in curve.losses if abs(at - tokens) <= SAME * tokens]
    if near:
        return min(near)[1]
    for (before, high), (after, low) in pairwise(curve.losses):
        if before < tokens < after:
            return high + (low - high) * (tokens - before) / (after - before)
    return None


def spread(curves: Iterable[Curve], method: str, schedule: str, rung_tokens: int) -> float | None:
    """Standard deviation over seeds, pooled over the configurations that have several (squares added, weighted by
    their degrees of freedom, as in an analysis of variance).

    Measured inside the method; where too few of its configurations have several seeds, over all methods of the
    schedule.

    Args:
        curves: Of the study.
        method: Whose.
        schedule: Only curves of this schedule count.
        rung_tokens: Where.

    Returns:
        None when no configuration has two seeds that were evaluated there.
    """
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for curve in curves:
        loss = loss_at(curve, rung_tokens)
        if curve.schedule == schedule and loss is not None and math.isfinite(loss):
            groups.setdefault((curve.method, curve.configuration), {})[curve.seed] = loss
    several = {key: list(losses.values()) for key, losses in groups.items() if len(losses) > 1}
    own = [losses for (whose, _), losses in several.items() if whose == method]
    pooled = own if _degrees(own) >= ENOUGH else list(several.values())
    if not pooled:
        return None
    squares = sum(statistics.variance(losses) * (len(losses) - 1) for losses in pooled)
    return math.sqrt(squares / _degrees(pooled))


def _degrees(groups: Sequence[Sequence[float]]) -> int:
    return sum(len(losses) - 1 for losses in groups)


def prune(candidate: Curve, others: Sequence[Curve], settings: StudyConfig) -> Verdict | None:
    """Whether a running trial is stopped at the rung that it has just reached, and by whom.

    It is when at least 3 finished trials of its method and schedule had a loss lower by more than twice the spread over
    seeds at equal tokens, while costing no more where costs are known. A baseline is never stopped. A method's last
    survivor never is, since those three have survived.

    Args:
        candidate: The trial so far; its last evaluation is the rung.
        others: All other curves of the study, of every method and seed.
        settings: The study's; nothing is pruned unless ``prune``.

    Returns:
        None to let it run.
    """
    if not settings.prune or candidate.baseline or not candidate.losses:
        return None
    tokens, loss = candidate.losses[-1]
    deviation = spread([*others, candidate], candidate.method, candidate.schedule, tokens)
    if tokens == 0 or deviation is None or math.isnan(loss):
        return None
    better: dict[int, float] = {}
    for other in others:
        peer = (other.method, other.schedule) == (candidate.method, candidate.schedule)
        if not other.finished or not peer or other.number == candidate.number or not _costs_no_more(other, candidate):
            continue
        # Of a trial with several seeds the one that saw the same data counts, else the worst.
        known = [c for c in others if c.number == other.number and c.seed == candidate.seed] or [other]
        found = loss_at(known[0], tokens)
        if found is not None and found < loss - SPREADS * deviation:
            better[other.number] = max(found, better.get(other.number, -math.inf))
    if len(better) < BETTER:
        return None
    return Verdict(tokens, loss, tuple(sorted(better, key=lambda number: (better[number], number))), deviation)


def _costs_no_more(other: Curve, candidate: Curve) -> bool:
    """Unknown costs are no reason to keep a trial, nor is a small advantage."""
    pairs = zip(other.costs, candidate.costs, strict=False)
    return not any(mine > theirs + ALIKE * abs(theirs) for mine, theirs in pairs)  # also where one is no number
