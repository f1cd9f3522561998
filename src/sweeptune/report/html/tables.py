"""The parts of the page that are there without a script: verdict and tables, every text of a user escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweeptune.report.cells import UNKNOWN, count, figure, span, speed
from sweeptune.report.html.markup import MINUS, NONE, cell_html, notes_html, safe, table_html
from sweeptune.report.html.page import Page
from sweeptune.report.html.run_tables import FIELDS, fields_table, ledger_table, phases_table, proofs_table
from sweeptune.report.sheet import Sheet
from sweeptune.report.study_sheets import failures_sheet, front_sheet, memory_sheet, methods_sheet, pairs_sheet

SCALES = {"K": 1e3, "M": 1e6, "B": 1e9}
CAPTIONS = {
    "pairs": "Every pair, its interval and what that makes it",
    "failures": "Trials that neither completed nor were pruned, those that ended alike together",
}
"""Where the terminal's title would repeat the heading above it."""
TITLES = {
    "pairs": "Pair by pair",
    "front": "Pareto front",
    "memory": "Memory, predicted and measured",
    "failures": "Failures",
    "proofs": "Proofs and ledger",
    "environment": "Environment and fingerprints",
}
MERGED = {"as_trained": "as trained", "merged_bf16": "merged bf16", "merged_requantized": "requantized"}


def pieces(page: Page) -> dict[str, str]:
    """What the template's places are filled with: HTML, or text that is escaped."""
    data, study, verdict = page.data, page.study, page.verdict
    first, *rest = data["words"] or [{"text": "nothing to decide yet", "command": None}]
    tables = {
        "pairs": pairs_sheet(study, verdict),
        "front": front_sheet(study, None),
        "memory": memory_sheet(study),
        "failures": failures_sheet(study, None),
    }
    return {
        "title": safe(f"{data['name']}: sweeptune report"),
        "name": safe(data["name"]),
        "heading": safe(data["heading"]),
        "endings": safe(data["endings"]),
        "facts": "".join(f"<div><dt>{safe(k)}</dt><dd>{safe(v)}</dd></div>" for k, v in data["facts"]),
        "verdict": _words(first),
        "words": "".join(f"<li>{_words(line)}</li>" for line in rest),
        "basis": safe(_basis(data)),
        "methods": methods_table(data),
        "methods_notes": notes_html(_method_notes(data, methods_sheet(study, verdict).notes)),
        **{key: _titled(key, sheet_table(sheet, key, CAPTIONS.get(key))) for key, sheet in tables.items()},
        "phases": phases_table(data),
        "proofs": _titled("proofs", proofs_table(data) + ledger_table(data)),
        "environment": _titled("environment", "".join(fields_table(data, *about) for about in FIELDS)),
        "command": safe(study.header.get("command") or ""),
        "written": safe(data["written"]),
    }


def _titled(key: str, content: str) -> str:
    """What a section holds, below its heading; nothing where it holds nothing."""
    return f'<h2 id="h-{key}">{TITLES[key]}</h2><div>{content}</div>' if content else ""


def _words(line: Mapping[str, str | None]) -> str:
    text = safe(line["text"])
    return f"{text}: {_command(line['command'])}" if line["command"] else text


def _command(command: str | None) -> str:
    return f'<code class="command">{safe(command or "")}</code>'


def _basis(data: Mapping[str, Any]) -> str:
    """What the verdict rests on, in a few words."""
    seeds = len(data["seeds"])
    if data["split"] == "test":
        return f"Judged on test data with {seeds} unseen seed{'s' if seeds != 1 else ''}"
    if data["split"] == "eval" and seeds:
        return f"Judged on eval data with {seeds} seed{'s' if seeds != 1 else ''}"
    return "Search figures only: nothing is confirmed yet"


# The table by method


def methods_table(data: Mapping[str, Any]) -> str:
    """The methods, best first, each figure with its difference to the reference below it."""
    loss = {"test": "Test loss", "eval": "Eval loss"}.get(data["split"] or "", "Eval loss of the search")
    hours = "GPU\N{NON-BREAKING HYPHEN}hours" if data["gpu"] else "hours"
    reference = next((row["method"] for row in data["arms"] if row["reference"]), None)
    against = [f"Against {reference}, nat"] if reference and len(data["arms"]) > 1 else []
    numbers = [loss, *against, "Bits per byte", "Peak memory, GiB", "Tokens/s", "MFU", "Trainable"]
    numbers += [f"One training, {hours}", f"Its tuning, {hours}"]
    caption = "The best configuration of each method"
    caption += f"; small: differences to {reference}" if against else ""
    rows = [_method_row(data, row, numbers) for row in data["arms"]]
    return table_html(caption, [("Method", ""), *((head, "num") for head in numbers)], rows, "methods", "cards")


def _method_row(data: Mapping[str, Any], row: Mapping[str, Any], heads: Sequence[str]) -> str:
    delta = row["delta"] or {}
    loss = row["search"] if row["loss"] is None else row["loss"]
    spread = f" ±{row['half']:.4f}" if row["half"] is not None else ""
    searched = row["loss"] is not None and row["search"] is not None and data["split"] == "test"
    cells = [cell_html(loss, f"{figure(loss, '.4f')}{spread}", f"search {row['search']:.4f}" if searched else "")]
    cells += [_against(delta.get("loss"))] if any(head.startswith("Against") for head in heads) else []
    cells += [
        cell_html(row["bits"], figure(row["bits"], ".3f"), _signed(delta.get("bits"), 3)),
        cell_html(row["peak"], _peaks(row), _percent(delta.get("peak"))),
        cell_html(row["speed"], speed(row["speed"], row["shared"]), _percent(delta.get("speed"))),
        cell_html(row["mfu"], UNKNOWN if row["mfu"] is None else _mfu(row["mfu"]), _percent(delta.get("mfu"))),
        cell_html(row["trainable"], count(row["trainable"]), _share(delta.get("trainable"))),
        cell_html(row["hours"], _hours(row["hours"]), _percent(delta.get("hours"))),
        cell_html(row["tuning"], _hours(row["tuning"]), f"{row['trials']:,} trial{'' if row['trials'] == 1 else 's'}"),
    ]
    labelled = (
        cell.replace("<td", f'<td data-label="{safe(head)}"', 1) for cell, head in zip(cells, heads, strict=True)
    )
    return f"<tr>{_method_head(data, row)}{''.join(labelled)}</tr>"


def _peaks(row: Mapping[str, Any]) -> str:
    """The peak of the search, to the highest of the confirmation runs."""
    return span([value for value in (row["peak"], row["peak_high"]) if value is not None], ".2f")


def _method_head(data: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The method's mark and name, its trial, and what QLoRA's adapter loses when it is merged."""
    mark = f'<span class="mark" data-method="{data["methods"].index(row["method"])}"></span>'
    tag = '<span class="tag">reference</span>' if row["reference"] else ""
    own = "" if row["settings"] in (None, UNKNOWN) else f": {row['settings']}"
    lines = [safe(row["none"] if row["trial"] is None else f"trial {row['trial']}{own}")]
    merged = [f"{MERGED[key]} {value:.4f}" for key, value in row["merged"].items() if key in MERGED]
    lines += [f"eval loss {', '.join(merged)}"] if merged else []
    # The script knows the command: as an attribute it could hold what no file can.
    offer = f'<span class="offer" data-arm="{data["arms"].index(row)}"></span>' if row["command"] else ""
    name = f'{mark}<span class="name">{safe(row["method"])}</span>{tag}'
    small = "".join(f"<small>{line}</small>" for line in lines)
    return f'<th scope="row" class="arm" data-v="{safe(row["method"])}">{name}{offer}{small}</th>'


def _against(found: Mapping[str, Any] | None) -> str:
    """The difference of the losses, the verdict's word for it, and its interval."""
    if not found:
        return cell_html(None, UNKNOWN)
    word = f'<span class="word {found["word"].split()[0]}">{safe(found["word"])}</span>'
    bounds = "" if found["low"] is None else f"<br>{_signed(found['low'])} to {_signed(found['high'])}"
    return cell_html(found["difference"], _signed(found["difference"]), word + bounds)


def _signed(value: float | None, places: int = 4) -> str:
    """With a true minus, which is as wide as a plus; nothing where nothing is known."""
    return "" if value is None else f"{value:+.{places}f}".replace("-", MINUS)


def _percent(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{100 * (ratio - 1):+.0f} %".replace("-", MINUS) if ratio < 10 else f"{ratio:.0f} times"


def _share(ratio: float | None) -> str:
    if ratio is None or ratio == 1:
        return ""
    return f"{100 * ratio:.2g} %" if ratio < 1 else f"{ratio:.3g} times"


def _mfu(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 0.001 else "<0.1 %"


def _hours(value: float | None) -> str:
    """Three decimals below an hour, so that columns align; two above."""
    if value is None:
        return UNKNOWN
    return "<0.001" if 0 < value < 0.0005 else f"{value:,.3f}" if value < 1 else f"{value:,.2f}"


def _method_notes(data: Mapping[str, Any], notes: Sequence[str]) -> list[str]:
    kind = "GPU-hours, time times GPUs" if data["gpu"] else "hours"
    shared = f"; {data['shared']} trials shared a device, so alone each would be faster" if data["shared"] > 1 else ""
    cost = "one training is its loop with evaluations, tuning the wall time of all trials, loading and probes included"
    return [*notes, f"{kind}: {cost}{shared}"]


# Any sheet


def sheet_table(sheet: Sheet, key: str, caption: str | None = None) -> str:
    """A table as the terminal has it, with its notes."""
    if not sheet.rows:
        return ""
    heads = [(column.heading, "num" if column.right else "") for column in sheet.columns]
    rows = []
    for row in sheet.rows:
        cells = []
        for place, (cell, column) in enumerate(zip(row, sheet.columns, strict=True)):
            text = "<br>".join(safe(line) for line in _typeset(cell.text, column.right).split("\n"))
            kind = "num" if column.right else "wrap" if column.wrap else ""
            value = sort_value(cell.text) if column.right else None
            tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
            sort = "" if value is None else f' data-v="{value!r}"'
            cells.append(f'<{tag}{scope} class="{kind}"{sort}>{text}</{tag}>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return table_html(caption or sheet.title, heads, rows, key) + notes_html(sheet.notes)


def _typeset(text: str, number: bool) -> str:
    """What a terminal writes with hyphens: a missing figure and minus signs."""
    if text == UNKNOWN:
        return NONE
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text) if number else text


def sort_value(text: str) -> float | None:
    """The number that a cell begins with: ``4.88 M`` -> 4880000.0; None where there is none.

    Example:
        >>> sort_value("1,946"), sort_value("<0.0001"), sort_value("-")
        (1946.0, 0.0001, None)
    """
    match = re.match(r"[<±]?([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s?([KMB])?\b", text)
    return float(match[1].replace(",", "")) * SCALES.get(match[2] or "", 1.0) if match else None
