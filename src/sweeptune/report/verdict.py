"""Which method is better, with what certainty, and what would decide the rest (DESIGN section 4, *A verdict*)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from sweeptune.report.statistics import Interval, Pair, interval, judge_pairs, quantile
from sweeptune.report.studies import MERGED, Confirmation, Study, Trial, swept
from sweeptune.tracking.record import RECORD

BATCH = "train.tokens_per_step"
FOLLOW_BATCH = ("tokens_per_step", "data_order", "budget_tokens")
"""Quality fields that a search over the batch size changes by intent; the budgets may differ by one batch, no more."""
BUDGET_SHARE = 0.02


@dataclass(frozen=True)
class Arm:
    """A method at its best configuration."""

    method: str
    best: Trial | None
    """None where no trial of the method completed inside the constraints."""
    losses: Mapping[int, float]
    """The losses that are judged, by seed."""
    loss: Interval | None
    merged: Mapping[str, Interval] | None
    """QLoRA's eval loss as trained, merged to bf16, and quantised again after that."""
    trials: int
    """What was spent on tuning it: trials, and real tokens over all of them."""
    tokens: int
    missing: tuple[str, ...]
    """Confirmation runs that have not completed, with the reason."""


@dataclass(frozen=True)
class Verdict:
    """The arms, best first, and every pair of them."""

    split: Literal["test", "eval"] | None
    """What is judged: ``test``, of confirmation runs; ``eval``, where each method has one configuration and nothing was
    selected; None: search figures only, which decide nothing."""
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    """Turned so that ``a`` has the lower mean."""

    def arm(self, method: str) -> Arm:
        """The arm of a method."""
        return next(arm for arm in self.arms if arm.method == method)


def judge(study: Study) -> Verdict:
    """Judge a study.

    Args:
        study: What `sweeptune.report.studies.read_study` read, finished or not.

    Example:
        >>> [(pair.a, pair.word, pair.b) for pair in judge(read_study("multirun/tradeoff")).pairs]
        [('lora', 'better', 'full'), ('lora', 'tied', 'dora'), ('dora', 'better', 'full')]
    """
    split, runs = _judged(study)
    losses = {method: {seed: run.loss for seed, run in own.items()} for method, own in runs.items()}
    arms = [_arm(study, method, losses.get(method, {}), split) for method in study.methods]
    arms.sort(key=lambda arm: (arm.loss.mean if arm.loss else math.inf, _search_loss(arm.best)))
    order = {arm.method: losses[arm.method] for arm in arms if losses.get(arm.method)}
    late = {method: why for method in order if split == "test" and (why := _overtaken(study, method))}
    apart = {
        (a, b): why
        for a, b in combinations(order, 2)
        if (why := late.get(a) or late.get(b) or _apart(study, runs[a], runs[b]))
    }
    pairs = [_with_examples(pair, runs) for pair in judge_pairs(order, study.margin, apart)]
    seeds = tuple(sorted({seed for own in order.values() for seed in own}))
    return Verdict(split, seeds, tuple(arms), tuple(pairs))


def _overtaken(study: Study, method: str) -> str | None:
    """Why a confirmation no longer stands for its method: trials came after it, and one of them is better."""
    confirmed, best = study.trial(study.planned.get(method, -1)), _lowest(study, method)
    if confirmed is None or best is None or _search_loss(best) >= _search_loss(confirmed):
        return None
    return (
        f"trial {best.number} of {method} came after trial {confirmed.number} was confirmed and has a lower eval loss, "
        f"{best.eval_loss:.4f}; sweeptune compare {study.folder} --confirm judges it"
    )


def best_of(study: Study, method: str) -> Trial | None:
    """A method's best trial: the one that was confirmed, else the lowest eval loss inside the constraints."""
    return study.trial(study.planned.get(method, -1)) or _lowest(study, method)


def _lowest(study: Study, method: str) -> Trial | None:
    """A method's trial with the lowest eval loss inside the constraints."""
    able = [trial for trial in study.of(method) if trial.eligible and trial.eval_loss is not None]
    return min(able, key=lambda trial: (_search_loss(trial), trial.number), default=None)


def configurations(study: Study, method: str) -> dict[str, list[Trial]]:
    """A method's trials by their settings without the seed, those that failed included."""
    found: dict[str, list[Trial]] = {}
    for trial in study.of(method):
        own = {key: value for key, value in swept(trial).items() if key != "seed"}
        found.setdefault(json.dumps(own, sort_keys=True), []).append(trial)
    return found


@dataclass(frozen=True)
class _Run:
    """One judged run."""

    loss: float
    folder: Path
    examples: str
    """The file of its examples' scores."""
    quality: Mapping[str, Any]


def _judged(study: Study) -> tuple[Literal["test", "eval"] | None, dict[str, dict[int, _Run]]]:
    """The runs that the verdict is made of, by method and seed."""
    confirmed: dict[str, dict[int, _Run]] = {}
    for run in study.confirmed:
        if run.loss is not None and run.seed is not None:
            quality = run.record["fingerprint"]["quality"]
            confirmed.setdefault(run.method, {})[run.seed] = _Run(run.loss, run.folder, "test.jsonl", quality)
    if confirmed:
        return "test", confirmed
    # Where a method had several configurations its best was chosen by the very losses that would judge it.
    if all(len(configurations(study, method)) <= 1 for method in study.methods):
        runs = {method: _searched(study, method) for method in study.methods}
        return "eval", {method: own for method, own in runs.items() if own}
    return None, {}


def _searched(study: Study, method: str) -> dict[int, _Run]:
    """The completed runs of a method's only configuration, seed by seed."""
    runs: dict[int, _Run] = {}
    for trial in (trial for trial in study.of(method) if trial.eligible):
        folder = study.folder / trial.folder
        record = _record(folder)
        quality = (record.get("fingerprint") or {}).get("quality") or {}
        losses = {one["seed"]: one["loss"] for one in record.get("replicates") or ()}
        if not losses and trial.seeds and trial.eval_loss is not None:
            losses = {trial.seeds[0]: trial.eval_loss}
        for seed, loss in losses.items():
            own = folder / f"seed-{seed}" if len(losses) > 1 else folder
            if loss is not None:
                runs[seed] = _Run(loss, own, "eval.jsonl", quality)
    return runs


def _arm(study: Study, method: str, losses: Mapping[int, float], split: str | None) -> Arm:
    own, best = study.of(method), best_of(study, method)
    confirmed = [run for run in study.confirmed if run.method == method]
    missing = [f"{run.folder.name}: {run.status}" for run in confirmed if run.loss is None]
    if split == "test" and method in study.planned:
        there = {run.seed for run in confirmed}
        missing += [f"{method}-{seed}: not run yet" for seed in study.confirm_seeds if seed not in there]
    elif split == "test" and best is not None:
        missing.append(f"{method}: not run yet")  # its trial ended behind an earlier confirmation
    return Arm(
        method=method,
        best=best,
        losses=losses,
        loss=interval(list(losses.values())) if losses else None,
        merged=_merged(study, own, confirmed) if method == "qlora" else None,
        trials=len(own),
        tokens=sum(trial.tokens for trial in own),
        missing=tuple(missing),
    )


def _merged(study: Study, own: Sequence[Trial], confirmed: Sequence[Confirmation]) -> dict[str, Interval] | None:
    """The three losses of the confirmation runs; where there are none, of the first trial that has them."""
    records = [run.record for run in confirmed if run.status == "completed"]
    completed = [trial for trial in own if trial.status == "completed" and trial.kind == "baseline"]
    records = records or [_record(study.folder / trial.folder) for trial in completed[:1]]
    found: dict[str, list[float]] = {key: [] for key in MERGED}
    for record in records:
        for key in MERGED:
            value = (record.get("eval") or {}).get(key)
            found[key] += [float(value)] if isinstance(value, int | float) else []
    return {key: interval(values) for key, values in found.items() if values} or None


def _apart(study: Study, a: Mapping[int, _Run], b: Mapping[int, _Run]) -> str | None:
    """Why two arms may not be compared: a quality field that differs at one of their seeds."""
    by_batch = any(BATCH in trial.params for trial in study.trials)
    for seed in sorted(a.keys() & b.keys()):
        one, other = a[seed].quality, b[seed].quality
        for field in sorted(one.keys() | other.keys()):
            left, right = one.get(field), other.get(field)
            if left == right or (
                by_batch and field in FOLLOW_BATCH and (field != "budget_tokens" or near(left, right))
            ):
                continue
            return f"not comparable: quality.{field} differs at seed {seed}: {left} against {right}"
    return None


def near(a: Any, b: Any) -> bool:
    """Whether two budgets differ by no more than what the last batch of another size makes."""
    return isinstance(a, int) and isinstance(b, int) and abs(a - b) <= BUDGET_SHARE * max(a, b)


def _with_examples(pair: Pair, runs: Mapping[str, Mapping[int, _Run]]) -> Pair:
    """Add how far other test rows could move the difference, with these very runs.

    The difference is a ratio, sum of nll differences over sum of tokens, so its error is the one of a ratio estimator
    (Cochran 1977, section 2.11), at 95 %.
    """
    a, b = (_examples([runs[name][seed] for seed in pair.seeds]) for name in (pair.a, pair.b))
    ids = a.keys() & b.keys()
    tokens = math.fsum(a[i][1] for i in ids)
    if len(ids) < 2 or not tokens:
        return pair
    ratio = math.fsum(a[i][0] - b[i][0] for i in ids) / tokens
    rest = math.fsum((a[i][0] - b[i][0] - ratio * a[i][1]) ** 2 for i in ids)
    error = math.sqrt(rest * len(ids) / (len(ids) - 1)) / tokens
    return replace(pair, examples=quantile(0.975, len(ids) - 1) * error)


def _examples(runs: Sequence[_Run]) -> dict[str, tuple[float, float]]:
    """Nll in nats, averaged over the runs, and loss tokens of every example that all runs have."""
    sums: dict[str, tuple[float, float, int]] = {}
    for run in runs:
        path = run.folder / run.examples
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            row = json.loads(line)
            nll, _, count = sums.get(row["id"], (0.0, 0.0, 0))
            sums[row["id"]] = (nll + row["nll"], row["loss_tokens"], count + 1)
    return {key: (nll / count, tokens) for key, (nll, tokens, count) in sums.items() if count == len(runs)}


def _record(folder: Path) -> dict[str, Any]:
    """A record as it is, with the keys that only studies write; empty where there is none."""
    try:
        value = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _search_loss(trial: Trial | None) -> float:
    return math.inf if trial is None or trial.eval_loss is None else trial.eval_loss
