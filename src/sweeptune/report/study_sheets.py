"""The tables of a study: the methods' best, every pair, the front, the trials, memory and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sweeptune.config.study_rules import grows
from sweeptune.report.cells import SHARED, UNKNOWN, clock, count, figure, plain, span, speed
from sweeptune.report.findings import Predictions, find_failures, find_front, find_predictions, why_none
from sweeptune.report.remarks import clean
from sweeptune.report.sheet import Cell, Column, Sheet
from sweeptune.report.statistics import Interval, Pair
from sweeptune.report.studies import MERGED, Study, Trial, swept
from sweeptune.report.verdict import Arm, Verdict
from sweeptune.report.words import bounds
from sweeptune.tracking.record import WARMUP_STEPS

FRONT = "Pareto front"
NOT_ALONE = f"{SHARED}: something else used the device meanwhile, so it is no measure of speed"
FEW = 10
"""Timed steps below which a speed is not to be trusted."""
MANY = 20
"""Rows of one table on a terminal; the other forms have all."""
STYLES = {"better": "bold green", "worse": "bold red", "tied": "cyan", "undecided": "yellow"}
FIGURES = {
    "eval_loss": (".4f", "eval loss"),
    "peak_memory_gib": (".2f", "peak GiB"),
    "tokens_per_s": (",.0f", "tokens/s"),
}
"""How objectives are written, and their headings."""
MERGED_WORDS = dict(zip(MERGED, ("as trained", "merged bf16", "requantized"), strict=True))


def sheets(study: Study, verdict: Verdict, most: int | None = None) -> list[Sheet]:
    """The tables of a study, those without rows left out.

    Args:
        study: The study.
        verdict: What `judge` said of it.
        most: Longest table; the rest is counted in a note.
    """
    made = [methods_sheet(study, verdict), pairs_sheet(study, verdict), front_sheet(study, most)]
    made += [memory_sheet(study), failures_sheet(study, most)]
    if sum(trial.counts for trial in study.trials) <= (most or 0):
        made.insert(3, trials_sheet(study))  # of a large one --csv has them
    return [sheet for sheet in made if sheet.rows]


def title(study: Study) -> str:
    """``multirun/demo: 33 trials, 4 of them baselines, of full, lora; model tiny, data pydocs``"""
    counted = [trial for trial in study.trials if trial.counts]
    baselines = sum(trial.kind == "baseline" for trial in counted)
    of = f", {baselines} of them baselines," if baselines else ""
    shared = [f"{key} {study.fixed[f'{key}.name']}" for key in ("model", "data") if f"{key}.name" in study.fixed]
    names = ", ".join(study.methods)
    return clean(f"{study.folder}: {_number(len(counted), 'trial')}{of} of {names}; {', '.join(shared)}".rstrip("; "))


def endings(study: Study) -> str:
    """``27 completed, 5 pruned, 1 oom; 2 predicted not to fit were not run``"""
    found = Counter(trial.status for trial in study.trials if trial.counts)
    words = ", ".join(f"{number} {status}" for status, number in found.most_common()) or "no trial has ended yet"
    kinds = Counter(trial.kind for trial in study.trials)
    apart = [f"{kinds['misfit']} predicted not to fit, so never run"] if kinds["misfit"] else []
    apart += [f"{kinds['duplicate']} asked twice, so not run again"] if kinds["duplicate"] else []
    spent = sum(trial.tokens for trial in study.trials), sum(trial.seconds for trial in study.trials)
    return "; ".join(
        [words, *apart, f"{count(spent[0]).replace(' ', '')} tokens in {clock(spent[1])} of trials' wall time"]
    )


def methods_sheet(study: Study, verdict: Verdict) -> Sheet:
    """The best of each method, with intervals."""
    judged = f"{verdict.split} loss" if verdict.split else None
    columns = [Column("method"), Column("trial", right=True), Column("settings", wrap=True)]
    columns += [Column(judged, right=True)] if judged else []
    columns += [Column("search eval loss", right=True), Column("bits/byte", right=True, leaves=3)]
    columns += [
        Column("peak GiB", right=True),
        Column("tokens/s", right=True),
        Column("trainable", right=True, leaves=2),
    ]
    columns += [Column("tuning trials, tokens", right=True, leaves=1)]
    rows = []
    leader = next((arm for arm in verdict.arms if arm.losses), None)
    for arm in verdict.arms:
        rows.append(tuple(_arm_cells(study, arm, judged is not None, arm is leader and _leads(verdict, arm))))
    return Sheet("Best of each method", tuple(columns), tuple(rows), tuple(_methods_notes(study, verdict)))


def _arm_cells(study: Study, arm: Arm, judged: bool, leads: bool) -> list[Cell]:
    best = arm.best
    if best is None:
        cells = [Cell(arm.method), Cell(UNKNOWN), Cell(why_none(study, arm.method), "dim")]
        return [*cells, *[Cell(UNKNOWN)] * (judged + 5), Cell(_tuned(arm))]
    strong = "bold green" if leads else ""
    cells = [Cell(arm.method, strong, leads), Cell(str(best.number)), Cell(settings(best))]
    if judged:
        cells.append(Cell(_interval(arm.loss), strong, leads))
    cells.append(Cell(_search(best, arm.merged)))
    cells += [Cell(figure(best.bits_per_byte, ".3f")), Cell(span(study.peaks(best), ".2f"))]
    return [*cells, Cell(speed(best.tokens_per_s, best.shared)), Cell(count(best.trainable)), Cell(_tuned(arm))]


def _methods_notes(study: Study, verdict: Verdict) -> list[str]:
    notes = []
    if verdict.split == "test":
        seeds = ", ".join(map(str, verdict.seeds))
        notes.append(
            f"test loss: retrained with {_number(len(verdict.seeds), 'seed')} that the search never used ({seeds})"
        )
    elif verdict.split == "eval" and not verdict.seeds:
        notes.append("no method has a finished trial")
    elif verdict.split == "eval":
        seeds = ", ".join(map(str, verdict.seeds))
        notes.append(f"eval loss: {_number(len(verdict.seeds), 'seed')} ({seeds}); each method had one configuration")
    if any(arm.loss and arm.loss.half is not None for arm in verdict.arms):
        notes.append("±: 95 % t-interval over seeds; a seed's luck is shared, so compare pairs, not these")
    shared = any(arm.best and arm.best.shared for arm in verdict.arms)
    if verdict.split != "eval":
        alone = "" if shared else "; peak and speed are measured alone on the device"
        notes.append(f"search: the lowest of several, so it flatters{alone}")
    notes += [NOT_ALONE] if shared else []
    if any(arm.best and len(study.peaks(arm.best)) > 1 for arm in verdict.arms):
        notes.append(
            "peak: of the search, to the highest of the confirmation runs that cost the same: rows in another order"
        )
    notes += _timing(study)
    if any(arm.merged for arm in verdict.arms):
        notes.append("qlora: eval loss as trained, merged to bf16, and quantised to NF4 again")
    return notes


def pairs_sheet(study: Study, verdict: Verdict) -> Sheet:
    """Every pair with its interval and its word."""
    columns = (
        Column("pair"),
        Column("is", wrap=False),
        Column("difference nat", right=True),
        Column("interval over seeds", right=True),
        Column("± over examples", right=True, leaves=1),
        Column("p Holm", right=True, leaves=2),
    )
    rows = []
    for pair, adjusted in zip(verdict.pairs, _adjusted(verdict.pairs), strict=True):
        cells = [Cell(f"{pair.a} - {pair.b}"), Cell(pair.word, STYLES[pair.word], pair.word != "undecided")]
        cells += [Cell(figure(pair.difference, "+.4f")), Cell(bounds(pair))]
        rows.append((*cells, Cell(figure(pair.examples, ".4f")), Cell(_p(adjusted))))
    notes = ["intervals: paired over seeds, 95 % for all pairs together (Holm); below 0 the first method is better"]
    notes.append(f"tied: the whole interval within ±{study.margin:g} nat (study.margin)")
    return Sheet("Pair by pair", columns, tuple(rows), tuple(notes))


def front_sheet(study: Study, most: int | None) -> Sheet:
    """The Pareto front over the objectives, and the hypervolume."""
    found = find_front(study)
    if len(study.objectives) < 2 or not found.trials:
        return Sheet(FRONT, (), ())
    columns = [Column("trial", right=True), Column("method"), Column("settings", wrap=True)]
    columns += [Column(objective(name), right=True) for name in study.objectives]
    columns += [Column(FIGURES[n][1], right=True, leaves=1) for n in ("tokens_per_s",) if n not in study.objectives]
    shown = _spread(found.trials, most)
    rows = []
    for trial in shown:
        values = [trial.values[name] for name in study.objectives]
        cells = [Cell(str(trial.number)), Cell(trial.method), Cell(settings(trial))]
        cells += [Cell(figure(value, _form(name))) for name, value in zip(study.objectives, values, strict=True)]
        cells += [] if "tokens_per_s" in study.objectives else [Cell(speed(trial.tokens_per_s, trial.shared))]
        rows.append(tuple(cells))
    notes = (
        [f"{len(found.trials) - len(shown)} more between these: --markdown"] if len(shown) < len(found.trials) else []
    )
    if found.covered is not None:
        corner = ", ".join(f"{objective(name)} {figure(v, _form(name))}" for name, v in found.reference.items())
        alone = "" if found.by_baselines is None else f", the baselines alone {100 * found.by_baselines:.1f} %"
        notes.append(f"hypervolume: {100 * found.covered:.1f} % of the box up to {corner}{alone}")
    notes.append(
        f"search figures: not beaten in all objectives by any of {_number(found.considered, 'completed trial')}"
    )
    return Sheet(
        f"{FRONT}: {' against '.join(map(objective, study.objectives))}",
        tuple(columns),
        tuple(rows),
        tuple(notes),
    )


def trials_sheet(study: Study) -> Sheet:
    """Every trial of a small study, in its order."""
    columns = (
        Column("trial", right=True),
        Column("method"),
        Column("settings", wrap=True),
        Column("status"),
        Column("eval loss", right=True),
        Column("peak GiB", right=True),
        Column("tokens/s", right=True, leaves=1),
        Column("time", right=True, leaves=2),
    )
    rows, styles = [], []
    for trial in (trial for trial in study.trials if trial.counts):
        cells = [str(trial.number), trial.method, settings(trial), trial.status, figure(trial.eval_loss, ".4f")]
        cells += [figure(trial.peak_memory_gib, ".2f"), speed(trial.tokens_per_s, trial.shared), clock(trial.seconds)]
        rows.append(tuple(map(Cell, cells)))
        styles.append("" if trial.status == "completed" else "dim")
    return Sheet("Trials of the search", columns, tuple(rows), styles=tuple(styles))


def memory_sheet(study: Study) -> Sheet:
    """Predicted against measured peak memory, by method."""
    found = find_predictions(study)
    columns = (
        Column("method"),
        Column("kinds", right=True),
        Column("predicted GiB", right=True),
        Column("measured GiB", right=True),
        Column("median error", right=True),
        Column("worst error", right=True),
    )
    rows = []
    for method in study.methods:
        own = [point for point in found.points if point.method == method]
        errors = sorted((point.error for point in own if point.error is not None), key=abs)
        if errors:
            cells = [method, str(len(own)), span([point.predicted_gib for point in own], ".2f")]
            cells += [span([p.measured_gib for p in own if p.measured_gib is not None], ".2f")]
            cells += [f"{100 * median(map(abs, errors)):.1f} %", f"{100 * errors[-1]:+.1f} %"]
            rows.append(tuple(map(Cell, cells)))
    return Sheet("Peak memory, predicted against measured", columns, tuple(rows), tuple(_memory_notes(found)))


def _memory_notes(found: Predictions) -> list[str]:
    notes, worst = [], found.worst
    if worst and found.median_error is not None:
        kinds = _number(len(found.errors), "kind")
        figures = f"{worst.predicted_gib:.2f} predicted, {figure(worst.measured_gib, '.2f')} measured"
        notes.append(
            f"median error {100 * found.median_error:.1f} % over {kinds} of configuration; worst "
            f"{100 * (worst.error or 0):+.1f} % (trial {worst.number}: {figures})"
        )
    gone = ", ".join(f"trial {point.number}" for point in found.surprises[:MANY]) or "none"
    notes.append(f"ran out of memory against the prediction: {gone}; predicted misfits: {found.misfits}")
    return notes


def failures_sheet(study: Study, most: int | None) -> Sheet:
    """What failed and why, those that failed alike in one row."""
    found = find_failures(study)
    columns = (
        Column("times", right=True),
        Column("status"),
        Column("method"),
        Column("trials"),
        Column("reason", wrap=True),
    )
    rows = []
    for failure in found[:most]:
        numbers = ", ".join(map(str, failure.numbers[:3])) + (" ..." if len(failure.numbers) > 3 else "")
        cells = [str(len(failure.numbers)), failure.status, failure.method, numbers, clean(failure.reason)]
        rows.append(tuple(map(Cell, cells)))
    notes = [f"{len(found) - len(rows)} more kinds of failure: --markdown"] if len(rows) < len(found) else []
    return Sheet("Failures", columns, tuple(rows), tuple(notes))


def settings(trial: Trial) -> str:
    """A trial's own settings in few characters: ``lr=4.44e-6 rank=16``; ``recommended`` for a baseline without any."""
    words = " ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in swept(trial).items())
    return clean(words) or ("recommended" if trial.kind == "baseline" else UNKNOWN)


def _leads(verdict: Verdict, arm: Arm) -> bool:
    own = [pair for pair in verdict.pairs if arm.method in (pair.a, pair.b)]
    return bool(own) and all(pair.word == "better" and pair.a == arm.method for pair in own)


def _short(value: Any) -> str:
    """Three digits that count: ``1.18e-4``, ``0.05``."""
    if not isinstance(value, float) or not value or abs(value) >= 1e-3:
        return plain(float(f"{value:.3g}") if isinstance(value, float) else value)
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return UNKNOWN
    return f"{found.mean:.4f} " + ("one seed" if found.half is None else f"±{found.half:.4f}")


def _search(best: Trial, merged: Mapping[str, Interval] | None) -> str:
    first = figure(best.eval_loss, ".4f")
    own = [f"{MERGED_WORDS[key]} {found.mean:.4f}" for key, found in (merged or {}).items()]
    return "\n".join([first, *own])


def _tuned(arm: Arm) -> str:
    return f"{arm.trials:,}, {count(arm.tokens).replace(' ', '')}"


def _adjusted(pairs: Sequence[Pair]) -> list[float | None]:
    """Holm's p of each pair: the k-th smallest of n times n - k + 1, and never below that of a smaller one."""
    order = sorted((place for place, pair in enumerate(pairs) if pair.p is not None), key=lambda i: pairs[i].p or 0.0)
    found: list[float | None] = [None] * len(pairs)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (pairs[place].p or 0.0) * (len(order) - rank)))
        found[place] = highest
    return found


def _p(adjusted: float | None) -> str:
    if adjusted is None:
        return UNKNOWN
    return "<0.0001" if adjusted < 1e-4 else f"{adjusted:.4f}"


def objective(name: str) -> str:
    """An objective as a heading: ``peak GiB``."""
    return FIGURES[name][1] if name in FIGURES else clean(name)


def _form(name: str) -> str:
    return FIGURES[name][0] if name in FIGURES else ",.0f" if grows(name) else ".4f"


def _timing(study: Study) -> list[str]:
    """Where probes were so short that their speed says little."""
    steps = (study.header.get("study") or {}).get("probe_steps")
    if not isinstance(steps, int) or not WARMUP_STEPS < steps < WARMUP_STEPS + FEW:
        return []
    timed = _number(steps - WARMUP_STEPS, "timed step")
    return [f"tokens/s: of {timed} a probe (study.probe_steps={steps}, {WARMUP_STEPS} warm up), too few to rank by"]


def _spread(trials: tuple[Trial, ...], most: int | None) -> list[Trial]:
    """At most so many, evenly along the front, with both ends."""
    if most is None or len(trials) <= most:
        return list(trials)
    return [trials[round(place * (len(trials) - 1) / (most - 1))] for place in range(most)]


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
