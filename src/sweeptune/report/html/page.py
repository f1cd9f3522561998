"""What the page of a study shows, as plain values: read once, computed by the modules that the terminal uses, too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeptune.report.cells import plain
from sweeptune.report.findings import Front, find_front, find_predictions, why_none
from sweeptune.report.html import records
from sweeptune.report.remarks import clean
from sweeptune.report.statistics import Pair
from sweeptune.report.studies import Study, Trial, swept
from sweeptune.report.study_sheets import endings, settings, title
from sweeptune.report.verdict import Arm, Verdict, judge
from sweeptune.report.words import verdict_words

FLIPPED = {"better": "worse", "worse": "better", "tied": "tied", "undecided": "undecided"}
COMMANDS = ("to decide: ", "to decide ", "to see ", "to go on: ")
"""How a line of the verdict begins that ends in a command."""


@dataclass(frozen=True)
class Page:
    """What is written into the page: values for its script, and the study for the tables made here."""

    study: Study
    verdict: Verdict
    data: dict[str, Any]
    """JSON; all of its texts but commands are free of invisible characters."""


def make_page(study: Study) -> Page:
    """Everything that a page shows.

    Args:
        study: What `sweeptune.report.studies.read_study` read, finished or not.

    Example:
        >>> make_page(read_study("multirun/demo")).data["words"][0]["text"]
        'undecided: full, lora, qlora. These are search figures of one seed: ...'
    """
    verdict, front = judge(study), find_front(study)
    chosen = {arm.method: arm.best for arm in verdict.arms if arm.best}
    found = {method: records.read(study.folder / trial.folder) for method, trial in chosen.items()}
    predictions = find_predictions(study)
    data = {
        "name": clean(study.name),
        "heading": title(study),
        "endings": endings(study),
        "facts": _facts(study, found),
        "words": [_line(text) for text in verdict_words(study, verdict)],
        "split": verdict.split,
        "seeds": list(verdict.seeds),
        "margin": study.margin,
        "methods": methods(study),
        "objectives": [clean(name) for name in study.objectives],
        "limits": {clean(key): value for key, value in study.limits.items() if records.number(value) is not None},
        "gpu": records.on_gpu(study, list(found.values())),
        "shared": _sharing(study),
        "arms": _arms(study, verdict, found),
        "pairs": [_pair(pair) for pair in verdict.pairs],
        "front": [trial.number for trial in front.trials] if len(study.objectives) > 1 else [],
        "trials": [_trial(trial, front) for trial in study.trials],
        "curves": _curves(study),
        "phases": [{"method": clean(m), "phases": p} for m in chosen if (p := _phases(study, chosen[m], found[m]))],
        "predictions": [_prediction(point) for point in predictions.points],
        "runs": [_run(method, chosen[method], record) for method, record in found.items()],
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
    }
    return Page(study, verdict, data)


def methods(study: Study) -> list[str]:
    """The study's methods in its order, then any other that a trial names."""
    return [clean(name) for name in dict.fromkeys([*study.methods, *(trial.method for trial in study.trials)])]


def reference(verdict: Verdict, order: Sequence[str]) -> str | None:
    """The method that the others are compared with: full fine-tuning, else the study's first, that has a result."""
    able = [arm.method for arm in verdict.arms if arm.best]
    wanted = ["full", *order]
    return next((method for method in wanted if method in able), None)


def visible(value: Any) -> Any:
    """JSON whose texts and keys have no invisible characters, and whose numbers are finite."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): visible(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible(item) for item in value]
    if isinstance(value, float):
        found = records.number(value)
        return None if found is None else records.short(found)
    return value if isinstance(value, int | bool) or value is None else clean(str(value))


def _line(text: str) -> dict[str, str | None]:
    """A sentence, and the command in it, which can be copied."""
    if text.startswith(COMMANDS):
        head, _, command = text.partition(": ")
        return {"text": clean(head), "command": command}
    return {"text": clean(text), "command": None}


def _facts(study: Study, found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What is said below the title."""
    facts = [[key, plain(study.fixed[f"{key}.name"])] for key in ("model", "data") if f"{key}.name" in study.fixed]
    devices = [records.part(record, "environment").get("device") for record in found.values()]
    facts += [["device", str(name)] for name in dict.fromkeys(devices) if name]
    created = records.number(study.header.get("created"))
    facts += [["begun", time.strftime("%Y-%m-%d %H:%M", time.localtime(created))]] if created and created > 1e9 else []
    return [[key, clean(value)] for key, value in facts]


def _sharing(study: Study) -> int:
    """How many trials shared a device."""
    found = (study.header.get("study") or {}).get("trials_per_gpu")
    return found if isinstance(found, int) and found > 1 else 1


def _arms(study: Study, verdict: Verdict, found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The row of each method, best first, with its differences to the reference."""
    base = reference(verdict, study.methods)
    rows = [_arm(study, arm, found.get(arm.method, {})) for arm in verdict.arms]
    reference_row = next((row for arm, row in zip(verdict.arms, rows, strict=True) if arm.method == base), None)
    for arm, row in zip(verdict.arms, rows, strict=True):
        row["reference"] = arm.method == base
        row["against"] = clean(base) if base else None
        row["delta"] = None
        if reference_row and arm.best and arm.method != base:
            row["delta"] = {"loss": _loss_difference(verdict, arm.method, base or "", row, reference_row)}
            ratios = ("peak", "speed", "mfu", "trainable", "hours")
            row["delta"] |= {key: _ratio(row[key], reference_row[key]) for key in ratios}
            known = row["bits"] is not None and reference_row["bits"] is not None
            row["delta"]["bits"] = row["bits"] - reference_row["bits"] if known else None
    return rows


def _arm(study: Study, arm: Arm, record: Mapping[str, Any]) -> dict[str, Any]:
    best = arm.best
    confirmed = [run.record for run in study.confirmed if run.method == arm.method and run.loss is not None]
    bits = [b for run in confirmed if (b := records.number((run["test"] or {}).get("bits_per_byte"))) is not None]
    each = records.gpus(study, record)
    return {
        "method": clean(arm.method),
        "trial": best.number if best else None,
        "none": None if best else why_none(study, arm.method),
        "settings": settings(best) if best else None,
        "command": best.command if best else None,
        "loss": arm.loss.mean if arm.loss else None,
        "half": arm.loss.half if arm.loss else None,
        "seeds": arm.loss.seeds if arm.loss else 0,
        "search": best.eval_loss if best else None,
        "bits": statistics.fmean(bits) if bits else best.bits_per_byte if best else None,
        "peak": best.peak_memory_gib if best else None,
        "peak_high": max(study.peaks(best), default=None) if best else None,
        "speed": best.tokens_per_s if best else None,
        "shared": best is not None and best.shared,
        "mfu": best.mfu if best else None,
        "trainable": best.trainable if best else None,
        "hours": records.training_hours(study, best, record) if best else None,
        "tuning": sum(trial.seconds for trial in study.of(arm.method)) * each / records.HOUR,
        "trials": arm.trials,
        "tokens": arm.tokens,
        "merged": {key: found.mean for key, found in (arm.merged or {}).items()},
    }


def _loss_difference(
    verdict: Verdict, method: str, base: str, row: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, Any] | None:
    """In nats, with the verdict's interval where it judged the two."""
    for pair in verdict.pairs:
        if {pair.a, pair.b} == {method, base} and pair.difference is not None:
            own = _pair(pair)
            if pair.a != method:
                low, high = own["low"], own["high"]
                own |= {"difference": -pair.difference, "word": FLIPPED[pair.word]}
                own |= {"low": None if high is None else -high, "high": None if low is None else -low}
            return {key: own[key] for key in ("difference", "low", "high", "word")}
    if verdict.split or row["search"] is None or other["search"] is None:
        return None
    return {"difference": row["search"] - other["search"], "low": None, "high": None, "word": "search only"}


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "a": clean(pair.a),
        "b": clean(pair.b),
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
        "word": pair.word,
        "reason": clean(pair.reason) if pair.reason else None,
    }


def _trial(trial: Trial, front: Front) -> dict[str, Any]:
    """A trial with short keys, because there are thousands; `page.js` names them again."""
    figures = {
        "l": trial.eval_loss,
        "b": trial.bits_per_byte,
        "g": trial.peak_memory_gib,
        "v": trial.tokens_per_s,
        "u": trial.mfu,
        "q": trial.predicted_gib,
        "d": trial.seconds,
    }
    known = {key: records.short(value) for key, value in figures.items() if records.number(value) is not None and value}
    texts = {"n": trial.number, "k": trial.kind, "s": trial.status, "m": clean(trial.method), "t": trial.tokens}
    made = texts | known | {"x": settings(trial), "p": visible(swept(trial)), "c": trial.command}
    made |= {"r": clean(trial.reason)} if trial.reason else {}
    made |= {"e": 1} if trial.eligible else {}
    made |= {"o": 1} if trial.shared else {}
    return made | ({"f": 1} if trial in front.trials else {})


def _curves(study: Study) -> list[list[Any]]:
    """Number, tokens and losses of each trial that was evaluated at least twice."""
    found = []
    for trial in study.trials:
        points = records.curve(records.run_folder(study, trial)) if trial.counts else []
        if points and len(points[0]) > 1:
            found.append([trial.number, *points])
    return found


def _phases(study: Study, trial: Trial, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the probe, which had the device to itself and gives the peak that is compared, else of the trial."""
    probe = records.read(study.folder / "probes" / trial.cost_class) if trial.cost_class else {}
    return records.phases(probe) or records.phases(record)


def _prediction(point: Any) -> dict[str, Any]:
    return {
        "n": point.number,
        "m": clean(point.method),
        "predicted": point.predicted_gib,
        "measured": point.measured_gib,
    }


def _run(method: str, trial: Trial, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a method's best trial says of itself: proofs, ledger, environment, fingerprints."""
    environment = visible(records.part(record, "environment"))
    packages = environment.pop("packages", None) or {}
    return {
        "method": clean(method),
        "trial": trial.number,
        "proofs": records.proof_rows(record),
        "ledger": records.ledger_rows(record),
        "environment": environment | (packages if isinstance(packages, dict) else {}),
        "quality": visible(records.part(record, "fingerprint", "quality")),
        "cost": visible(records.part(record, "fingerprint", "cost")),
    }
