"""A study for people and programs: its tables and its verdict in words; also Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.text import Text

from sweeptune.config.study_rules import grows
from sweeptune.report.cells import escape, no_formula, stdout_console
from sweeptune.report.findings import find_failures, find_front, find_predictions
from sweeptune.report.remarks import clean
from sweeptune.report.scatter import Dot, letters, scatter
from sweeptune.report.sheet import portable, print_sheet, print_words, sheet_markdown
from sweeptune.report.studies import Study, Trial, swept
from sweeptune.report.study_sheets import FRONT, MANY, endings, objective, sheets, title
from sweeptune.report.verdict import Arm, judge
from sweeptune.report.words import verdict_words

FEWEST = 8
"""Points below which a drawing says no more than the table."""


def render_study(study: Study, form: str = "table", brief: bool = False) -> None:
    """Print a study to stdout.

    Args:
        study: What `sweeptune.report.studies.read_study` read.
        form: ``table``, ``markdown``, ``csv`` (a line a trial) or ``json`` (everything).
        brief: The methods' best and the verdict only; what a sweep ends with.

    Example:
        >>> render_study(read_study("multirun/demo"), "markdown")
    """
    if form != "table":
        forms = {"markdown": study_markdown, "csv": study_csv, "json": study_json}
        sys.stdout.write(forms[form](study))
        return
    console = stdout_console()
    verdict = judge(study)
    print_words(console, title(study), style="bold")
    print_words(console, endings(study))
    console.print()
    hidden: dict[str, None] = {}
    for sheet in sheets(study, verdict, MANY)[: 1 if brief else None]:
        hidden |= dict.fromkeys(print_sheet(console, sheet))
        if sheet.title.startswith(FRONT):
            _print_scatter(console, study)
    if hidden:
        print_words(console, f"not shown at this width: {', '.join(hidden)} (--markdown has all)", style="dim")
    print_words(console, "Verdict", style="bold")
    for line in verdict_words(study, verdict):
        print_words(console, line, style="bold" if line.startswith(("to decide", "to go on")) else "")


def _print_scatter(console: Console, study: Study) -> None:
    """Draw the completed trials over the first two objectives, where there are enough to show a shape."""
    found = find_front(study)
    if len(study.objectives) < 2 or found.considered < FEWEST:
        return
    names, front = letters(study.methods), {trial.number for trial in found.trials}
    first, second = study.objectives[:2]
    points = [(t, t.values.get(second), t.values.get(first)) for t in study.trials if t.eligible]
    dots = [
        Dot(x, y, names.get(trial.method, "x"), trial.number in front)
        for trial, x, y in points
        if x is not None and y is not None
    ]
    lines, outside = scatter(dots, min(console.width, 100), 14)
    beyond = f"; {outside} far worse ones are not drawn" if outside else ""
    legend = ", ".join(f"{letter} {name}" for name, letter in names.items())
    axes = [f"{objective(name)}{' (more is better)' if grows(name) else ''}" for name in (first, second)]
    for line in [", over ".join(axes), *lines]:
        console.print(Text(portable(console, line)), soft_wrap=True)
    print_words(console, f"{legend}; capitals are the front{beyond}", style="dim")
    console.print()


def study_markdown(study: Study) -> str:
    """The same for a report, with all rows and columns."""
    verdict = judge(study)
    lines = [f"## {escape(title(study))}", "", escape(endings(study)), ""]
    lines += [f"- {escape(line)}" for line in verdict_words(study, verdict)]
    lines.append("")
    return "\n".join([*lines, *(sheet_markdown(sheet) for sheet in sheets(study, verdict))])


def study_csv(study: Study) -> str:
    """One line a trial, full precision, for a spreadsheet; swept settings have columns of their own."""
    keys = list(dict.fromkeys(key for trial in study.trials for key in swept(trial)))
    plain_fields = [
        f.name for f in fields(Trial) if f.name not in ("params", "values", "constraints", "pruned_by", "seeds")
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    front = {trial.number for trial in find_front(study).trials}
    writer.writerow([*plain_fields, "pareto", *map(no_formula, keys)])
    for trial in study.trials:
        cells = [getattr(trial, name) for name in plain_fields]
        cells += [trial.number in front, *(swept(trial).get(key) for key in keys)]
        writer.writerow([no_formula(clean(c)) if isinstance(c, str) else c for c in cells])
    return out.getvalue()


def study_json(study: Study) -> str:
    """Everything, for programs: ``study``, ``verdict``, ``words``, ``front``, ``failures``, ``memory``, ``trials``."""
    verdict, front, memory = judge(study), find_front(study), find_predictions(study)
    value: dict[str, Any] = {
        "study": {**study.header, "folder": str(study.folder)},
        "verdict": {
            "split": verdict.split,
            "seeds": verdict.seeds,
            "margin": study.margin,
            "arms": [_arm_json(arm) for arm in verdict.arms],
            "pairs": [asdict(pair) for pair in verdict.pairs],
        },
        "words": verdict_words(study, verdict),
        "front": asdict(front) | {"trials": [trial.number for trial in front.trials]},
        "failures": [asdict(failure) for failure in find_failures(study)],
        "memory": {
            "points": [asdict(point) | {"error": point.error} for point in memory.points],
            "median_error": memory.median_error,
            "misfits": memory.misfits,
            "out_of_memory_against_prediction": [point.number for point in memory.surprises],
        },
        "trials": [asdict(trial) for trial in study.trials],
    }
    return json.dumps(value, indent=2) + "\n"


def _arm_json(arm: Arm) -> dict[str, Any]:
    best = None if arm.best is None else arm.best.number
    return asdict(arm) | {"best": best, "losses": {str(seed): loss for seed, loss in arm.losses.items()}}
