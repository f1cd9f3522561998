"""What to train with, inside a limit of memory and speed: the method, what to expect, and the line that does it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.report.statistics import Interval, Pair, interval, quantile
from sweeptune.report.studies import Study, Trial
from sweeptune.report.verdict import Arm, Verdict, judge

UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6, "": 2**30}
"""Bytes; a number alone is GiB."""


@dataclass(frozen=True)
class Candidate:
    """A configuration that keeps the limits, and what to expect of it."""

    trial: Trial
    loss: Interval
    """Nats a token; without bounds where one seed is all there is."""
    split: str
    """``test`` for a confirmed configuration, else ``eval``, whose figure the search chose."""
    peak_gib: tuple[float, float] | None
    """Smallest and largest over its runs; None where it was not measured."""
    tokens_per_s: tuple[float, float] | None
    runs: int
    """How many runs measured its memory."""


@dataclass(frozen=True)
class Recommendation:
    """The configuration to use, and the best one of another method beside it."""

    memory_gib: float | None
    min_tokens_per_s: float | None
    chosen: Candidate
    runner_up: Candidate | None
    pair: Pair | None
    """What the verdict says of the two, where both are judged."""
    why: str
    fitting: int
    measured: int
    """How many configurations were measured, fitting or not."""
    command: str


def parse_memory(text: str) -> float:
    """A size in GiB.

    Args:
        text: Such as ``8GiB``, ``24GB``, ``500 MiB``; a number alone is GiB.

    Raises:
        ConfigError: It is no size above 0.

    Example:
        >>> parse_memory("24GB")
        22.351741790771484
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b?)\s*", text, re.IGNORECASE)
    unit = UNITS.get(match[2].lower() + ("ib" if match[2].lower() in ("g", "m") else "")) if match else None
    if match is None or unit is None or not float(match[1]):
        raise ConfigError(f"--memory {text}: give a size such as 8GiB, 24GB or 500MiB")
    return float(match[1]) * unit / 2**30


def recommend(study: Study, memory_gib: float | None = None, min_tokens_per_s: float | None = None) -> Recommendation:
    """Choose among a study's completed configurations.

    Of each method the confirmed configuration stands for it where it keeps the limits, else its lowest eval loss that
    does. Of the confirmed ones the lowest test loss is chosen, and of those tied with it the fastest. One that is not
    confirmed takes its place when its eval loss of the search is lower by more than ``study.margin``.

    Args:
        study: What `sweeptune.report.studies.read_study` read.
        memory_gib: Most peak memory; None: any.
        min_tokens_per_s: Least speed; None: any.

    Raises:
        ConfigError: No configuration keeps the limits; says which ones come closest.

    Example:
        >>> recommend(read_study("multirun/tradeoff"), memory_gib=8).chosen.trial.method
        'lora'
    """
    verdict = judge(study)
    able = [trial for trial in study.trials if trial.eligible and trial.eval_loss is not None]
    fitting = [trial for trial in able if _keeps(study, trial, memory_gib, min_tokens_per_s)]
    if not fitting:
        raise ConfigError(_nothing(study, able, memory_gib, min_tokens_per_s))
    found = [_of_method(study, verdict, arm, fitting) for arm in verdict.arms]
    candidates = [candidate for candidate in found if candidate is not None]
    chosen, why = _choose(study, verdict, candidates)
    others = [candidate for candidate in candidates if candidate is not chosen]
    runner_up = min(others, key=_evidence, default=None)
    pair = None if runner_up is None else _between(verdict, chosen, runner_up)
    return Recommendation(
        memory_gib=memory_gib,
        min_tokens_per_s=min_tokens_per_s,
        chosen=chosen,
        runner_up=runner_up,
        pair=pair,
        why=why,
        fitting=len(fitting),
        measured=len(able),
        command=chosen.trial.command,
    )


def _keeps(study: Study, trial: Trial, memory_gib: float | None, min_tokens_per_s: float | None) -> bool:
    """Whether every run of the configuration did, and of those that cost the same."""
    peaks, speeds = _ends(study.peaks(trial)), _ends(_speeds(study, trial))
    small = memory_gib is None or (peaks is not None and peaks[1] <= memory_gib)
    fast = min_tokens_per_s is None or (speeds is not None and speeds[0] >= min_tokens_per_s)
    return small and fast


def _repeats(study: Study, trial: Trial) -> list[Mapping[str, Any]]:
    """Records of the runs that confirmed a trial."""
    if study.planned.get(trial.method) != trial.number:
        return []
    return [c.record for c in study.confirmed if c.method == trial.method and c.loss is not None]


def _speeds(study: Study, trial: Trial) -> list[float | None]:
    alone = [record["speed"] for record in _repeats(study, trial) if record["speed"]["exclusive"]]
    return [trial.tokens_per_s, *(speed["tokens_per_s"] for speed in alone)]


def _nothing(study: Study, able: Sequence[Trial], memory_gib: float | None, speed: float | None) -> list[str]:
    """Why nothing fits, with what comes closest."""
    if not able:
        return [
            f"{study.folder}: no trial has completed inside the study's constraints, so there is nothing to recommend"
        ]
    problems = []
    smallest = min((t for t in able if t.peak_memory_gib), key=lambda t: t.peak_memory_gib or 0.0, default=None)
    fastest = max((t for t in able if t.tokens_per_s), key=lambda t: t.tokens_per_s or 0.0, default=None)
    if memory_gib is not None and (smallest is None or not _keeps(study, smallest, memory_gib, None)):
        least = "none was measured" if smallest is None else f"the smallest needs {smallest.peak_memory_gib:.2f} GiB"
        whose = "" if smallest is None else f" (trial {smallest.number}, {smallest.method})"
        problems.append(f"--memory {memory_gib:.2f}GiB: no completed configuration fits; {least}{whose}")
    if speed is not None and (fastest is None or not _keeps(study, fastest, None, speed)):
        most = "none was timed" if fastest is None else f"the fastest has {fastest.tokens_per_s:,.0f}"
        whose = "" if fastest is None else f" (trial {fastest.number}, {fastest.method})"
        problems.append(f"--min-tokens-per-s {speed:g}: no completed configuration is so fast; {most}{whose}")
    return problems or [f"no completed configuration keeps {memory_gib:.2f} GiB and {speed:g} tokens/s together"]


def _of_method(study: Study, verdict: Verdict, arm: Arm, fitting: Sequence[Trial]) -> Candidate | None:
    own = [trial for trial in fitting if trial.method == arm.method]
    if not own:
        return None
    if verdict.split == "test" and arm.loss is not None and arm.best in own:
        assert arm.best is not None
        return _candidate(study, arm.best, arm.loss, "test")
    best = min(own, key=lambda trial: (trial.eval_loss or 0.0, trial.number))
    if verdict.split == "eval" and arm.loss is not None:  # one configuration: its mean over seeds, not its luckiest one
        return _candidate(study, best, arm.loss, "eval")
    return _candidate(study, best, _expected(best, arm), "eval")


def _expected(trial: Trial, arm: Arm) -> Interval:
    """A search figure with its spread over seeds: its own, else the one that the method's confirmation showed."""
    assert trial.eval_loss is not None
    count = len(trial.seeds)
    if trial.loss_sd is not None and count > 1:
        half = quantile(0.975, count - 1) * trial.loss_sd / count**0.5
        return Interval(trial.eval_loss, trial.eval_loss - half, trial.eval_loss + half, count)
    shown = interval(list(arm.losses.values())) if len(arm.losses) > 1 else None
    if shown is None or shown.half is None:
        return Interval(trial.eval_loss, None, None, max(count, 1))
    half = shown.half * shown.seeds**0.5  # of one run, not of the mean
    return Interval(trial.eval_loss, trial.eval_loss - half, trial.eval_loss + half, max(count, 1))


def _candidate(study: Study, trial: Trial, loss: Interval, split: str) -> Candidate:
    """With the range that memory and speed had over the trial and, where it is confirmed, its confirmation runs."""
    peaks = study.peaks(trial)
    return Candidate(trial, loss, split, _ends(peaks), _ends(_speeds(study, trial)), len(peaks))


def _ends(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _choose(study: Study, verdict: Verdict, candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The candidate to use, and why."""
    confirmed = sorted((c for c in candidates if c.split == "test"), key=_evidence)
    searched = min((c for c in candidates if c.split != "test"), key=_evidence, default=None)
    if not confirmed:
        assert searched is not None  # there is at least one candidate
        return searched, "the lowest eval loss of the search that fits; a search figure flatters"
    chosen, why = _fastest_tied(verdict, confirmed)
    if searched is not None:
        lead = (chosen.trial.eval_loss or 0.0) - (searched.trial.eval_loss or 0.0)
        if lead > study.margin:
            return (
                searched,
                f"in the search {lead:.4f} nat below the confirmed {chosen.trial.method}; not itself confirmed",
            )
    return chosen, why


def _evidence(candidate: Candidate) -> tuple[bool, float, int]:
    """Sort key: confirmed ones first, then by loss."""
    return candidate.split != "test", candidate.loss.mean, candidate.trial.number


def _fastest_tied(verdict: Verdict, candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The leader, or the fastest of those tied with it; candidates ascend by their loss."""
    leader = candidates[0]
    tied = [other for other in candidates[1:] if _word(verdict, leader, other) == "tied"]
    chosen = max([leader, *tied], key=lambda candidate: candidate.tokens_per_s[0] if candidate.tokens_per_s else 0.0)
    if chosen is not leader:
        return chosen, f"tied with {leader.trial.method}, which has the lowest test loss, and faster"
    if tied:
        return (
            chosen,
            f"the lowest test loss, tied with {', '.join(t.trial.method for t in tied)}, and the fastest of them",
        )
    opened = [other.trial.method for other in candidates[1:] if _word(verdict, leader, other) == "undecided"]
    doubt = f", although undecided against {', '.join(opened)}" if opened else ""
    return chosen, f"the lowest test loss of what fits{doubt}"


def _word(verdict: Verdict, a: Candidate, b: Candidate) -> str:
    pair = _between(verdict, a, b)
    return "undecided" if pair is None else pair.word


def _between(verdict: Verdict, a: Candidate, b: Candidate) -> Pair | None:
    """What the verdict says of two confirmed candidates."""
    if {a.split, b.split} != {"test"}:
        return None
    names = {a.trial.method, b.trial.method}
    return next((pair for pair in verdict.pairs if {pair.a, pair.b} == names), None)
