"""How figures and names are written in every table and form."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

UNKNOWN = "-"
SHARED = "~"
"""Before a speed that was not measured alone on the device."""
WIDE = 140
"""Characters a line where the output is no terminal, so that a log holds the whole table."""


def figure(value: float | None, form: str) -> str:
    """A number in a format, or a dash: ``figure(2.5, ".3f")`` is ``2.500``."""
    return UNKNOWN if value is None else format(value, form)


def span(values: Sequence[float], form: str) -> str:
    """From the smallest to the largest, once where they look alike: ``6.68 to 9.15``; a dash where there is none."""
    if not values:
        return UNKNOWN
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def speed(tokens_per_s: float | None, shared: bool) -> str:
    """Tokens a second, marked where something else used the device: ``~2,821``."""
    return (SHARED if shared and tokens_per_s is not None else "") + figure(tokens_per_s, ",.0f")


def plain(value: Any) -> str:
    """A setting's value as it is typed, without digits that say nothing: ``0.0001``, ``[q_proj,v_proj]``, ``null``."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(plain, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def count(number: int | None) -> str:
    """Three digits that count: ``921.6 K``, ``4.88 M``, ``134.5 M``, ``7.24 B``."""
    if number is None:
        return UNKNOWN
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.{1 if number >= 100 * size else 2}f} {unit}"
    return str(number)


def clock(seconds: float | None) -> str:
    """``1:02:03`` or ``2:03``."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def no_formula(text: str) -> str:
    """Text for a spreadsheet: what looks like a formula begins with an apostrophe."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def markdown_row(cells: list[str]) -> str:
    """One line of a Markdown table, its cells escaped."""
    return "| " + " | ".join(map(escape, cells)) + " |"


def escape(text: str) -> str:
    r"""Keep text from being Markdown or HTML: ``a|b<c`` -> ``a\|b&lt;c``."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(" -> ", " → ").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in text)


def stdout_console() -> Console:
    """Where tables go: the terminal as it is, or lines of `WIDE` characters without colours for a file or a program."""
    terminal = Console(file=sys.stdout)
    return terminal if terminal.is_terminal else Console(file=sys.stdout, width=WIDE, color_system=None)
