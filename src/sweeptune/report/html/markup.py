"""Pieces of HTML that all tables are made of; every text of a user goes through `safe`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sweeptune.report.cells import UNKNOWN
from sweeptune.report.remarks import clean

MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"


def safe(value: Any) -> str:
    """Text that is no markup and holds nothing invisible."""
    return escape(clean(str(value)), quote=True)


def breakable(name: str) -> str:
    """`safe`, and a long name may go on in the next line behind each of its parts."""
    return safe(name).replace("_", "_<wbr>")


def cell_html(value: float | None, text: str, below: str = "") -> str:
    """A figure, what it sorts by, and HTML below it."""
    if text == UNKNOWN:
        return f'<td class="num none">{NONE}</td>'
    small = f"<small>{below}</small>" if below else ""
    sort = "" if value is None else f' data-v="{value!r}"'
    return f'<td class="num"{sort}>{safe(text)}{small}</td>'


def table_html(caption: str, heads: Sequence[tuple[str, str]], rows: Iterable[str], key: str, kind: str = "") -> str:
    """A table that the script makes sortable; its caption names it for those who cannot see where it stands."""
    head = "".join(f'<th scope="col" class="{css}">{safe(text)}</th>' for text, css in heads)
    return (
        f'<div class="wide {kind}"><table data-table="{key}"><caption>{safe(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def notes_html(texts: Iterable[str]) -> str:
    found = "".join(f"<li>{safe(note)}</li>" for note in texts)
    return f'<ul class="notes">{found}</ul>' if found else ""
