"""A comparison for people and programs: a table on the terminal, Markdown, CSV or JSON, always on stdout.

Names and reasons come from files that others may have written, so they are shown as plain text: no markup, no control
characters, no spreadsheet formulas.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sweeptune.report.cells import clock, count, escape, figure, markdown_row, no_formula, plain, speed, stdout_console
from sweeptune.report.compare import Comparison, Run
from sweeptune.report.remarks import BEST, clean, remarks

Form = Literal["table", "markdown", "csv", "json"]

CONSTANT = ("model", "data", "seed", "steps", "tokens")
"""What gets a column only when it differs between the runs; else it stands once, above them."""
DROPPED = ("time", "tokens", "steps", "bits/byte", "%", "trainable")
"""What a narrow terminal does without, in this order; the other forms always have everything."""
GAP = 2
"""Characters between two columns."""
WRAPPED = ("run", "settings", "model", "data")
"""What may take several lines when there is too little room."""


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    heading: str
    cell: Callable[[Run], str]
    metric: str | None = None
    """The figure that is ranked, whose best value gets a mark."""
    right: bool = False


def render(comparison: Comparison, form: str = "table") -> None:
    """Print a comparison to stdout.

    Args:
        comparison: What `sweeptune.report.compare.load` found.
        form: ``table``, ``markdown``, ``csv`` or ``json``.

    Example:
        >>> render(load("multirun/demo"), "markdown")
    """
    if form != "table":
        forms = {"markdown": to_markdown, "csv": to_csv, "json": to_json}
        sys.stdout.write(forms[form](comparison))
        return
    console = stdout_console()
    columns, hidden = _fitting(comparison, console.width)
    console.print(_title(comparison), style="bold", markup=False, highlight=False)
    console.print(_rich(comparison, columns))
    # Long reasons would squeeze the other columns, so they stand below.
    lines = [f"{run.name} {run.status}: {run.reason}" for run in comparison.runs if run.reason]
    lines = [*map(clean, lines), *remarks(comparison)]
    if hidden:
        lines.append(f"not shown at this width: {', '.join(hidden)} (a wider window, --markdown and --csv have all)")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def to_json(comparison: Comparison) -> str:
    """Everything, for programs: ``runs``, ``groups``, ``differences``, ``ranked``, ``unfinished``, ``remarks``."""
    ranked: dict[str, list[dict[str, Any]]] = {}
    for ranking in comparison.rankings:
        ranked.setdefault(ranking.metric, []).append({k: v for k, v in asdict(ranking).items() if k != "metric"})
    value = {
        "runs": [asdict(run) for run in comparison.runs],
        "groups": [
            {"kind": kind, "group": group, "runs": names}
            for kind in ("quality", "cost")
            for group, names in comparison.groups(kind).items()
        ],
        "differences": [asdict(difference) for difference in comparison.differences],
        "ranked": ranked,
        "unfinished": comparison.unfinished,
        "remarks": remarks(comparison),
    }
    return json.dumps(value, indent=2) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line a run, full precision, for a spreadsheet; text that looks like a formula begins with an apostrophe."""
    out = io.StringIO()
    rows = [asdict(run) | {"settings": _settings(run)} for run in comparison.runs]
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: no_formula(clean(value)) if isinstance(value, str) else value for key, value in row.items()}
        )
    return out.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """A table for a report; the best value of every set that may be ranked is bold."""
    columns = _columns(comparison)
    if any(run.reason for run in comparison.runs):
        columns.append(Column("reason", lambda run: clean(run.reason or "")))
    lines = [escape(_title(comparison)), "", markdown_row([column.heading for column in columns])]
    lines.append("|" + "".join(" ---: |" if column.right else " --- |" for column in columns))
    for run in comparison.runs:
        cells = [(escape(column.cell(run)), _is_best(comparison, column, run)) for column in columns]
        lines.append("| " + " | ".join(f"**{text}**" if best else text for text, best in cells) + " |")
    lines += [text for line in remarks(comparison, best="bold") for text in ("", escape(line))]
    return "\n".join(lines) + "\n"


def _columns(comparison: Comparison) -> list[Column]:
    columns = [
        Column("run", lambda run: clean(run.name)),
        Column("method", lambda run: clean(run.method or "?")),
    ]
    if any(run.settings for run in comparison.runs):
        columns.append(Column("settings", _settings))
    differing = [key for key in CONSTANT if len(_shared(comparison, key)) > 1]
    columns += [Column(key, _field(key)) for key in differing if key in ("model", "data", "seed")]
    columns += [
        Column("status", lambda run: run.status),
        Column("loss before -> after", _loss, "loss", right=True),
        Column("bits/byte", lambda run: figure(run.bits_per_byte, ".3f"), "bits_per_byte", right=True),
        Column("peak GiB", lambda run: figure(run.peak_memory_gib, ".2f"), "peak_memory_gib", right=True),
        Column("tokens/s", _speed, "tokens_per_s", right=True),
        Column("trainable", lambda run: count(run.trainable), right=True),
        Column("%", _percent, right=True),
        Column("time", lambda run: clock(run.seconds), right=True),
    ]
    columns += [Column(key, _field(key, ","), right=True) for key in differing if key in ("steps", "tokens")]
    for kind, heading in (("quality", "loss group"), ("cost", "cost group")):
        if len(comparison.groups(kind)) > 1:
            columns.append(Column(heading, _field(f"{kind}_group")))
    return columns


def _fitting(comparison: Comparison, width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit without a broken figure, and the headings of those left out."""
    columns, hidden = _columns(comparison), []
    for heading in DROPPED:
        if sum(_width(comparison, column) + GAP for column in columns) <= width:
            break
        hidden += [column.heading for column in columns if column.heading == heading]
        columns = [column for column in columns if column.heading != heading]
    return columns, hidden


def _width(comparison: Comparison, column: Column) -> int:
    """Characters that a column takes; long settings may be wrapped."""
    texts = [*_heading(column).split("\n"), *(column.cell(run) for run in comparison.runs)]
    widest = max(map(cell_len, texts)) + (column.metric is not None)
    return min(widest, 24) if column.heading == "settings" else widest


def _heading(column: Column) -> str:
    """Two short lines instead of a long one."""
    first, _, rest = column.heading.partition(" ")
    return f"{first}\n{rest}" if rest else first


def _rich(comparison: Comparison, columns: list[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, pad_edge=False)
    for column in columns:
        heading = Text(_aligned(comparison, column, _heading(column)))
        table.add_column(heading, no_wrap=column.heading not in WRAPPED, overflow="fold", vertical="bottom")
    for run in comparison.runs:
        cells = []
        for column in columns:
            best = _is_best(comparison, column, run)
            # Every cell of a ranked column ends with a mark or a space, so that the digits stay aligned.
            text = column.cell(run) + ("" if column.metric is None else BEST if best else " ")
            cells.append(Text(_aligned(comparison, column, text), style="bold green" if best else ""))
        table.add_row(*cells, style="" if run.status == "completed" else "dim")
    return table


def _aligned(comparison: Comparison, column: Column, text: str) -> str:
    """Right-align here, because rich would strip the space that stands for a missing mark."""
    if not column.right:
        return text
    return "\n".join(line.rjust(_width(comparison, column)) for line in text.split("\n"))


def _is_best(comparison: Comparison, column: Column, run: Run) -> bool:
    return any(ranking.metric == column.metric and run.name in ranking.best for ranking in comparison.rankings)


def _shared(comparison: Comparison, key: str) -> set[Any]:
    """The values that the runs have; one that never trained has none and contradicts nobody."""
    return {value for run in comparison.runs if (value := getattr(run, key)) is not None}


def _title(comparison: Comparison) -> str:
    """What all runs share; it needs no column."""
    shared = {key: next(iter(values)) for key in CONSTANT if len(values := _shared(comparison, key)) == 1}
    words = [f"{shared[key]:,} {key}" if key in ("steps", "tokens") else f"{key} {shared[key]}" for key in shared]
    return clean(f"{comparison.root}: {', '.join(words)}" if words else str(comparison.root))


def _settings(run: Run) -> str:
    return clean(" ".join(f"{key.rpartition('.')[2]}={plain(value)}" for key, value in run.settings.items()))


def _loss(run: Run) -> str:
    if run.loss_before is None and run.loss is None:
        return "-"
    return f"{figure(run.loss_before, '.3f')} -> {figure(run.loss, '.3f')}"


def _speed(run: Run) -> str:
    return speed(run.tokens_per_s, run.exclusive is not True)


def _percent(run: Run) -> str:
    if run.trainable is None or not run.parameters:
        return "-"
    return f"{100 * run.trainable / run.parameters:.1f}"


def _field(key: str, form: str = "") -> Callable[[Run], str]:
    def cell(run: Run) -> str:
        value = getattr(run, key)
        return "-" if value is None else clean(format(value, form))

    return cell
