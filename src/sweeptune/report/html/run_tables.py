"""Tables of what run folders say: memory by phase, proofs, the loss ledger, environment and fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeptune.report.cells import UNKNOWN, figure
from sweeptune.report.html.markup import NONE, breakable, cell_html, safe, table_html

FIELDS = (
    ("environment", "What the best run of each method ran on"),
    ("quality", "Quality: losses are compared only where these agree"),
    ("cost", "Cost: memory and speed are compared only where these agree"),
)


def phases_table(data: Mapping[str, Any]) -> str:
    """Peak memory of each phase, for those who cannot see the bars."""
    kinds = list(dict.fromkeys(kind for own in data["phases"] for p in own["phases"] for kind, _ in p["pieces"]))
    rows = []
    for own in data["phases"]:
        for phase in own["phases"]:
            sizes = dict(phase["pieces"])
            cells = "".join(cell_html(sizes.get(kind), figure(sizes.get(kind), ".2f")) for kind in kinds)
            total = sum(sizes.values())
            name = f'<th scope="row">{safe(own["method"])}</th><td>{safe(phase["phase"])}</td>'
            rows.append(f"<tr>{name}{cells}{cell_html(total, figure(total, '.2f'))}</tr>")
    heads = [("method", ""), ("phase", ""), *((f"{kind} GiB", "num") for kind in kinds), ("peak GiB", "num")]
    if not rows:
        return ""
    made = table_html("Peak memory by phase of each method's best", heads, rows, "phases")
    return f"<details><summary>As a table</summary>{made}</details>"


def proofs_table(data: Mapping[str, Any]) -> str:
    """What the best run of each method proved of itself."""
    names = list(dict.fromkeys(name for run in data["runs"] for name, _ in run["proofs"]))
    rows = []
    for run in data["runs"]:
        said = dict(run["proofs"])
        cells = "".join(f'<td class="wrap">{safe(said.get(name, NONE))}</td>' for name in names)
        trial = f'<td class="num" data-v="{run["trial"]}">{run["trial"]}</td>'
        rows.append(f'<tr><th scope="row">{safe(run["method"])}</th>{trial}{cells}</tr>')
    heads = [("method", ""), ("trial", "num"), *((name, "") for name in names)]
    return table_html("What each method's best run proved of itself", heads, rows, "proofs") if names else ""


def ledger_table(data: Mapping[str, Any]) -> str:
    """Which tokens were learned from, by role; all runs of a study have the same."""
    found: list[list[Any]] = next((run["ledger"] for run in data["runs"] if run["ledger"]), [])
    rows = []
    for template, role, tokens, learned, share in found:
        cells = cell_html(tokens, f"{tokens:,}") + cell_html(learned, f"{learned:,}")
        cells += cell_html(share, UNKNOWN if share is None else f"{100 * share:.1f} %")
        rows.append(f'<tr><th scope="row">{safe(role)}</th><td>{safe(template)}</td>{cells}</tr>')
    heads = [("role", ""), ("template", ""), ("tokens", "num"), ("with loss", "num"), ("share of the loss", "num")]
    return table_html("The loss ledger: what is learned", heads, rows, "ledger") if rows else ""


def fields_table(data: Mapping[str, Any], key: str, caption: str) -> str:
    """Fields of the best runs side by side; where methods differ the row says so, and one column does where none do."""
    runs = [run for run in data["runs"] if run[key]]
    fields = list(dict.fromkeys(field for run in runs for field in run[key]))
    table = [[_text(run[key].get(field)) for run in runs] for field in fields]
    alike = all(len(set(values)) == 1 for values in table)
    rows = []
    for field, values in zip(fields, table, strict=True):
        differs = len(set(values)) > 1
        cells = "".join(f'<td class="wrap">{safe(value)}</td>' for value in (values[:1] if alike else values))
        mark = '<span class="tag">differs</span>' if differs else ""
        rows.append(
            f'<tr{" class=differs" if differs else ""}><th scope="row">{breakable(field)}{mark}</th>{cells}</tr>'
        )
    names = [", ".join(run["method"] for run in runs)] if alike else [run["method"] for run in runs]
    return table_html(caption, [("field", ""), *((name, "") for name in names)], rows, key) if rows else ""


def _text(value: Any) -> str:
    if value is None:
        return NONE
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
