"""What a study found beside its verdict: the front, the failures, and how well memory was predicted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sweeptune.config.study_rules import grows
from sweeptune.report.pareto import Point, box, front, share
from sweeptune.report.studies import Study, Trial

MISFIT = "misfit"


@dataclass(frozen=True)
class Front:
    """Trials that no other trial beats in all objectives."""

    trials: tuple[Trial, ...]
    """By the first objective, best first."""
    covered: float | None
    """Hypervolume as a share of the box from the best value of each objective to a tenth beyond the worst one."""
    by_baselines: float | None
    """What the baselines alone cover of the same box; None where there are none."""
    considered: int
    """How many trials completed inside the constraints."""
    reference: dict[str, float]
    """The box's worst corner, by objective."""


@dataclass(frozen=True)
class Failure:
    """Trials that ended alike."""

    status: str
    reason: str
    method: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """Predicted against measured peak memory of one kind of configuration (cost class)."""

    cost_class: str
    method: str
    number: int
    """The first trial of that kind."""
    predicted_gib: float
    measured_gib: float | None
    """None where it ran out of memory."""

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        return None if self.measured_gib is None else self.predicted_gib / self.measured_gib - 1


@dataclass(frozen=True)
class Predictions:
    """How well peak memory was predicted."""

    points: tuple[Prediction, ...]
    misfits: int
    """Configurations that were predicted not to fit, and therefore never run."""

    @property
    def errors(self) -> list[float]:
        """Absolute errors as shares, of the kinds that were measured."""
        return [abs(point.error) for point in self.points if point.error is not None]

    @property
    def median_error(self) -> float | None:
        """Median absolute error as a share."""
        return median(self.errors) if self.errors else None

    @property
    def worst(self) -> Prediction | None:
        """The measured kind with the largest error."""
        measured = [point for point in self.points if point.error is not None]
        return max(measured, key=lambda point: abs(point.error or 0.0), default=None)

    @property
    def surprises(self) -> tuple[Prediction, ...]:
        """Kinds that were predicted to fit and ran out of memory."""
        return tuple(point for point in self.points if point.measured_gib is None)


def find_front(study: Study) -> Front:
    """The Pareto front over the study's objectives, of the trials that completed inside the constraints.

    Example:
        >>> [trial.number for trial in find_front(read_study("multirun/tradeoff")).trials]
        [17, 4, 22]
    """
    able = [trial for trial in study.trials if trial.eligible and _point(study, trial) is not None]
    points = [point for trial in able if (point := _point(study, trial)) is not None]
    if not points:
        return Front((), None, None, 0, {})
    best, worst = box(points)
    baselines = [point for trial, point in zip(able, points, strict=True) if trial.kind == "baseline"]
    return Front(
        trials=tuple(able[index] for index in front(points)),
        covered=share(points, best, worst),
        by_baselines=share(baselines, best, worst) if baselines else None,
        considered=len(able),
        reference={name: -value if grows(name) else value for name, value in _named(study, worst)},
    )


def find_failures(study: Study) -> list[Failure]:
    """Trials that did not complete, those that ended alike together, the most frequent first.

    Reasons are alike when they differ in numbers only; the first one stands for all.
    """
    found: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in study.trials:
        if trial.counts and trial.status not in ("completed", "pruned"):
            alike = re.sub(r"\d+(\.\d+)?", "#", trial.reason or "")
            found.setdefault((trial.status, trial.method, alike), []).append(trial)
    groups = sorted(found.items(), key=lambda item: (-len(item[1]), item[1][0].number))
    return [
        Failure(status, trials[0].reason or "no reason recorded", method, tuple(trial.number for trial in trials))
        for (status, method, _), trials in groups
    ]


def find_predictions(study: Study) -> Predictions:
    """Predicted against measured peak memory, once for each cost class that was run; the probe's figure counts."""
    points: dict[str, Prediction] = {}
    misfits = 0
    for trial in study.trials:
        misfits += trial.kind == MISFIT
        if trial.predicted_gib is None or trial.kind == MISFIT:
            continue
        key = trial.cost_class or f"trial {trial.number}"
        status, peak = study.probed.get(key, (trial.status, trial.peak_memory_gib))
        measured = peak if peak is not None else trial.peak_memory_gib
        if status == "oom" or measured:
            known = None if status == "oom" else measured
            points.setdefault(key, Prediction(key, trial.method, trial.number, trial.predicted_gib, known))
    return Predictions(tuple(points.values()), misfits)


def why_none(study: Study, method: str) -> str:
    """Why a method has no best trial."""
    if study.of(method):
        return "nothing completed inside the constraints" if study.limits else "no trial completed"
    misfit = any(trial.kind == MISFIT and trial.method == method for trial in study.trials)
    return "predicted not to fit" if misfit else "no finished trial"


def _point(study: Study, trial: Trial) -> Point | None:
    """The trial's objectives, turned so that less is better; None where one is unknown."""
    values = [trial.values.get(name) for name in study.objectives]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return tuple(-value if grows(name) else value for name, value in _named(study, known))


def _named(study: Study, values: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip(study.objectives, values, strict=True))
