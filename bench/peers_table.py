"""What bench/peers.py says of its runs: the table, and the section of bench/RESULTS.md around it."""

from __future__ import annotations

import statistics
import textwrap
import time
from typing import Any

from common import gib, head, line
from peers_job import MULTIPLE
from peers_rows import LR, WARMUP, Row, Visit, work_of

Run = dict[str, Any]
"""Stack, round, number of rows and of passes, with what its worker left."""

COLUMNS = (
    "stack",
    "rows",
    "setting",
    "trains",
    "tokens/s, by round",
    "against the best peer",
    "allocated GiB",
    "reserved GiB",
    "host GiB: resident, pinned",
    "loss: first step, timed",
    "gradient norm: first step, timed",
)


def table(runs: list[Run]) -> list[str]:
    """The runs as a markdown table: a line for every stack, number of rows and of passes, failures too."""
    cases = list(dict.fromkeys(case_of(run) for run in runs))
    passes = any(parts > 1 for _, _, parts in cases)
    speeds = {case: speed(runs, case) for case in cases}
    peers = [found for (stack, _, _), found in speeds.items() if found and work_of(stack) != "sweeptune"]
    best = max(peers, default=None)
    lines = head(COLUMNS)
    for case in cases:
        mine = [run for run in runs if case_of(run) == case]
        stack, rows, parts = case
        named = (stack, f"{rows} in {parts} {'pass' if parts == 1 else 'passes'}" if passes else rows)
        good = [run for run in mine if run["status"] == "completed"]
        if not good:
            lines.append(line((*named, f"**{mine[0]['status']}**: {brief(mine[0].get('reason'))}", *["-"] * 8)))
            continue
        last, found = good[-1], speeds[case]
        ratio = f"{found / best:.2f}" if found and best else "-"
        shown = " / ".join(f"{run['tokens_per_s']:,.0f}" if run["tokens_per_s"] else "-" for run in good)
        failed = [run for run in mine if run["status"] != "completed"]
        shown += "".join(f" / {run['status']}" for run in failed)
        resident, pinned = worst(good, "rss_gib"), worst(good, "pinned_gib")
        lines.append(
            line(
                (
                    *named,
                    brief(last.get("notes")),
                    f"{last['trainable'] / 1e6:,.2f} M, {last['adapter_dtype']}",
                    shown,
                    ratio,
                    gib(worst(good, "allocated_gib")),
                    gib(worst(good, "reserved_gib")),
                    f"{gib(resident)}, {gib(pinned)}",
                    series(last["losses"]),
                    series(last["norms"]),
                )
            )
        )
    return lines


def case_of(run: Run) -> tuple[str, int, int]:
    """What a line of the table is about."""
    return run["stack"], run["rows"], run["parts"]


def speed(runs: list[Run], case: tuple[str, int, int]) -> float | None:
    """Mean over the rounds."""
    found = [run["tokens_per_s"] for run in runs if case_of(run) == case and run.get("tokens_per_s")]
    return statistics.fmean(found) if found else None


def worst(runs: list[Run], key: str) -> float | None:
    """The largest over the rounds."""
    return max((run[key] for run in runs if run.get(key) is not None), default=None)


def series(values: list[float]) -> str:
    """The first step, and the first and the last of the timed ones."""
    if len(values) <= WARMUP:
        return " -> ".join(f"{value:.4f}" for value in values[:1] + values[1:][-1:])
    return f"{values[0]:.4f}, {values[WARMUP]:.4f} -> {values[-1]:.4f}"


def brief(text: str | None) -> str:
    """Fits a cell."""
    return textwrap.shorten(str(text or "-").replace("|", "/"), 160, placeholder=" ...")


def section(visit: Visit, runs: list[Run], command: str) -> str:
    """The row's part of the results, with its conditions."""
    row = visit.row
    done = [run for run in runs if run.get("versions")]
    packages = {name: number for run in done for name, number in run["versions"].items()}
    card = next((run["card"] for run in done if run.get("card")), "CPU")
    size = " or ".join(f"{rows} x {row.length}" for rows in row.rows)
    rows = "GSM8K at its real lengths, " + size if row.real else f"full rows, {size}"
    conditions = [
        f"{row.method} on the shape of {row.model}, random weights stored in {row.dtype}, {rows} tokens a step",
        "gradient checkpointing" if row.checkpointing else "no checkpointing",
        *([f"an enforced cap of {row.cap_gib:g} GiB"] if row.cap_gib else []),
        f"AdamW fused, linear schedule from {LR:g}, clipping at 1.0, loss and gradient norm of every step, DataLoader",
        *(["rank 16, alpha 32, seven linears, dropout 0"] if row.method != "full" else []),
        f"{visit.steps} steps, {visit.steps - WARMUP} of them timed",
    ]
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    return "\n".join(
        [
            f"## Against peers: {visit.name}",
            "",
            "```",
            command,
            "```",
            "",
            f"{time.strftime('%Y-%m-%d')}, {card}; {versions}.",
            "",
            "; ".join(conditions) + ". Every run is a process of its own, one at a time; the next one's imports go on "
            "beside it, on other cores. Ratios compare means of the rounds of this visit; peaks are the larger of the "
            "rounds, over the timed steps.",
            "",
            *([real_lengths(row), ""] if row.real else []),
            *table(runs),
            "",
        ]
    )


def real_lengths(row: Row) -> str:
    """How the stacks are given samples of many lengths."""
    parts = " or ".join(str(each) for each in sorted(row.parts))
    return (
        "Ours packs samples into rows and runs as train.py does for everybody. Peers pad: a step's samples, sorted by "
        f"length into {parts} passes (whichever a stack was fastest with in the first round), which pads less than "
        f"random batches do; widths are multiples of {MULTIPLE}; padding is on the right, so that causal attention "
        "needs no mask and none is given (TRL's collator gives one). Stacks named `_free` get our packed rows and keep "
        "samples apart by positions, with sdpa: Liger all rows in one pass, TRL a row a pass, Unsloth the rows behind "
        "each other in one pass. With peers every shape of pass runs once, forward and backward, before "
        "the first step: plans, compilation and tuning for a shape are in no timed step."
    )


def with_section(text: str, found: str) -> str:
    """A document with a section put in the place of the one with the same heading, or at the end."""
    heading = found.partition("\n")[0]
    lines = text.splitlines(keepends=True)
    begin = next((i for i, each in enumerate(lines) if each.rstrip("\n") == heading), None)
    if begin is None:
        return text.rstrip("\n") + "\n\n" + found.rstrip("\n") + "\n"
    behind = next((i for i in range(begin + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
    rest = "".join(lines[behind:])
    return "".join(lines[:begin]) + found.rstrip("\n") + "\n" + ("\n" + rest if rest else "")
