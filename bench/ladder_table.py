"""What bench/ladder.py says of its runs: a table for each ladder, and the section of bench/RESULTS.md around it."""

from __future__ import annotations

import time
from typing import Any

from common import gib, head, line
from ladder_rungs import LADDERS, before
from peers_table import brief

Run = dict[str, Any]
"""Ladder, rung and status; where it completed, the parts of its record that the table shows."""
PHASES = ("load", "proof", "first_step", "steady", "eval")
COLUMNS = (
    "technique",
    "tokens/s",
    "step ms",
    "peak GiB",
    *(f"{phase.replace('_', ' ')} GiB" for phase in PHASES),
    "host GiB: steady, pinned",
    "speed",
    "peak",
    "eval loss",
)


def table(ladder: str, runs: list[Run]) -> list[str]:
    """The runs of a ladder as a markdown table; rungs that have not run are left out, failures stay."""
    found = {run["rung"]: run for run in runs if run["ladder"] == ladder}
    lines = head(COLUMNS)
    for rung in LADDERS[ladder]:
        if rung.name not in found:
            continue
        run = found[rung.name]
        if run["status"] != "completed":
            cells = [rung.what, f"**{run['status']}**: {brief(run['reason'])}", *["-"] * (len(COLUMNS) - 2)]
        else:
            cells = [rung.what, *figures(run, found.get(before(ladder, rung.name) or ""))]
        lines.append(line(cells))
    return lines


def figures(run: Run, last: Run | None) -> list[str]:
    """The cells of a run that completed, with its change to the rung before."""
    speed, memory = run["speed"], run["memory"]
    phases = memory["phases"] or {}
    steady = phases.get("steady", {})
    rate, step = speed["tokens_per_s"], speed["step_ms"]
    shared = "" if speed["exclusive"] else " (device shared)"
    allocated = [gib(phases.get(phase, {}).get("allocated_gib")) for phase in PHASES]
    faster, less = "-", "-"
    if last is not None and last["status"] == "completed":
        former, peak = last["speed"]["tokens_per_s"], last["memory"]["peak_memory_gib"]
        faster = f"x {rate / former:.2f}" if rate and former else "-"
        less = f"{memory['peak_memory_gib'] - peak:+.2f}" if peak is not None else "-"
    return [
        f"{rate:,.0f}{shared}" if rate else "-",
        f"{step:.0f}" if step else "-",
        gib(memory["peak_memory_gib"]),
        *allocated,
        f"{gib(steady.get('host_gib'))}, {gib(run.get('pinned_gib'))}",
        faster,
        less,
        f"{run['eval']['loss']:.4f}" if run["eval"]["loss"] is not None else "-",
    ]


def section(ladder: str, runs: list[Run], command: str, conditions: str) -> str:
    """A ladder's part of the results."""
    mine = [run for run in runs if run["ladder"] == ladder]
    done = [run for run in mine if run.get("versions")]
    versions = ", ".join(f"{name} {number}" for name, number in (done[-1]["versions"] if done else {}).items())
    cards = " and ".join(sorted({run["card"] for run in done if run.get("card")})) or "CPU"
    compared = [
        f"*{rung.what}* with *{next(each.what for each in LADDERS[ladder] if each.name == rung.before)}*"
        for rung in LADDERS[ladder]
        if rung.before
    ]
    return "\n".join(
        [
            f"## Ladder: {ladder}",
            "",
            "```",
            command,
            "```",
            "",
            f"{time.strftime('%Y-%m-%d')}, {cards}; {versions}.",
            "",
            f"{conditions} *Peak GiB* is what is compared: the most that the allocator reserved, and what is paged, "
            "over steady steps and evaluation; the phases are the most that was allocated in each. *Speed* and *peak* "
            "are the changes to the line above" + (f" ({'; '.join(compared)})." if compared else "."),
            "",
            *table(ladder, mine),
            "",
        ]
    )
