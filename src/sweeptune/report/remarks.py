"""What is said below a comparison: what is not ranked and why, what the marks mean, what one seed is worth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sweeptune.report.cells import SHARED
from sweeptune.report.compare import ABSENT, Comparison

BEST = "*"
"""The best figure of its set, in a mark that reads without colour."""


def remarks(comparison: Comparison, best: str = BEST) -> list[str]:
    """The lines below the table: what is not ranked and why, what the marks mean, what one seed is worth.

    Args:
        comparison: What `sweeptune.report.compare.load` found.
        best: How the form marks the best value.
    """
    done = [run for run in comparison.runs if run.status == "completed"]
    lines = []
    if comparison.rankings:
        lines.append(f"{best}: best of the runs that it may be compared with")
    if any(run.tokens_per_s is not None and run.exclusive is not True for run in comparison.runs):
        lines.append(
            f"{SHARED}: the run did not have the device to itself (exclusive: false), so its speed is not ranked"
        )
    lines += [line for kind in ("quality", "cost") for line in _separations(comparison, kind)]
    if not comparison.rankings:
        reason = "one run has completed" if len(done) == 1 else "no two of them may be compared" if done else ""
        lines.append(f"nothing is ranked: {reason or 'no run has completed'}")
    seeds = comparison.seeds()
    if len(seeds) > 1:
        lines.append(
            f"{len(seeds)} seeds: losses are ranked seed by seed; only a difference that holds across seeds counts"
        )
    arms: dict[tuple[str | None, ...], set[int | None]] = {}
    for run in done:
        arm = (run.method, run.model, json.dumps(run.settings, sort_keys=True, default=str))
        arms.setdefault(arm, set()).add(run.seed)
    if len(done) > 1 and all(len(own) == 1 for own in arms.values()):
        lines.append(
            "one seed per method: differences are undecided until repeated with other seeds, "
            "e.g. python train.py --multirun ... seed=0,1,2"
        )
    return lines


def _separations(comparison: Comparison, kind: str) -> Iterator[str]:
    """Why runs are not ranked together: every field that differs, with its values."""
    subject = {"quality": "losses", "cost": "memory and speed"}[kind]
    groups = comparison.groups(kind)
    if len(groups) < 2:
        return
    silent = {names[0] for names in groups.values() if _silent(comparison, names[0], kind)}
    for difference in comparison.differences:
        values = {name: value for name, value in difference.values.items() if name not in silent}
        if difference.field.startswith(f"{kind}.") and len(set(map(_text, values.values()))) > 1:
            yield f"{subject} not ranked together because {clean(difference.field)} differs: {_values(values)}"
    for name in sorted(silent):
        yield f"{subject} of {clean(name)} are not ranked: its record has no {kind} fingerprint"


def clean(text: str) -> str:
    """One line without control characters (such as the escape sequences of a terminal)."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _silent(comparison: Comparison, name: str, kind: str) -> bool:
    own = [d.values[name] for d in comparison.differences if d.field.startswith(f"{kind}.")]
    return all(value == ABSENT for value in own)


def _text(value: Any) -> str:
    return ABSENT if value == ABSENT else json.dumps(value, sort_keys=True)


def _values(values: dict[str, Any]) -> str:
    """``"x" (0, 1) vs "y" (2)``"""
    runs: dict[str, list[str]] = {}
    for name, value in values.items():
        runs.setdefault(_text(value), []).append(clean(name))
    return " vs ".join(f"{clean(value)} ({', '.join(names)})" for value, names in runs.items())
