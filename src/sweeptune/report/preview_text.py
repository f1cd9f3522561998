"""A preview on the terminal: what is learned on green, every other token on another shade, markup bold.

Without colour a bar stands where tokens meet, and what is learned between [loss] and [/loss].
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeptune.data.excerpt import escape
from sweeptune.data.ledger import Ledger
from sweeptune.data.ledger_words import costs, ends, percent, summary
from sweeptune.report.preview import Preview, ShownRow, Token

WIDE = 140
"""Characters a line where the output is no terminal."""
MOST = 600
"""Pieces shown of a row; the HTML file shows more."""
SHADES = {  # foreground and background together, so that both light and dark terminals can be read
    (False, False): ("black on #d8d8d8", "black on #c2c2c2"),
    (True, False): ("black on #a5e8a5", "black on #82d482"),
    (False, True): ("bold bright_white on #6b6b6b", "bold bright_white on #575757"),
    (True, True): ("bold bright_white on #1e7d32", "bold bright_white on #166227"),
}
"""By learned and special: the shades of even and odd tokens."""
LEGEND = ("learned", "learned markup", "not learned", "markup")
NEWLINE = "↵\n"


def render(preview: Preview, console: Console | None = None) -> None:
    """Print a preview to stdout.

    Args:
        preview: From `sweeptune.report.preview.preview`.
        console: Another terminal.
    """
    terminal = console or Console(file=sys.stdout)
    if console is None and not terminal.is_terminal:
        terminal = Console(file=sys.stdout, width=WIDE, color_system=None)
    coloured = terminal.color_system is not None and not terminal.no_color
    _line(terminal, preview.title, "bold")
    terminal.print(_table(preview.ledger))
    for text in remarks(preview.ledger):
        _line(terminal, text)
    if coloured:
        legend = zip(LEGEND, ((True, False), (True, True), (False, False), (False, True)), strict=True)
        terminal.print(Text("\n") + Text("  ").join(Text(f" {word} ", SHADES[kind][0]) for word, kind in legend))
    else:
        _line(terminal, "\n[loss]learned[/loss], and a | where tokens meet")
    for number, row in enumerate(preview.rows, 1):
        _line(terminal, f"\n{heading(row, number, preview.split)}", "bold")
        cut = False
        for label, stretch, omitted in shortened(row):
            if omitted:
                _line(terminal, f"... {omitted:,} not shown ...", "italic")
            tokens = _coloured(stretch) if coloured else Text(_plain(stretch, cut))
            cut = stretch[-1].cut
            if tokens.plain.endswith("\n"):
                tokens.right_crop(1)
            terminal.print(Text.assemble((f"{label} ", "bold cyan"), tokens))
    if not preview.rows:
        _line(terminal, f"\nno row of {preview.split} to show")


def remarks(ledger: Ledger) -> list[str]:
    """What stands below the table: one line on each dataset, how answers begin and end, what was lost."""
    found: list[str] = []
    for key in sorted(ledger.parts):
        found += [summary(ledger, ledger.parts[key]), *(f"  {line}" for line in ends(ledger.parts[key]))]
    return found + costs(ledger)


def table_cells(ledger: Ledger) -> tuple[list[str], list[list[str]]]:
    """The ledger as a heading and rows: role by role, with the share of all loss that falls on each answer."""
    parts = [ledger.parts[key] for key in sorted(ledger.parts)]
    turns = sorted({turn for part in parts for cells in part.roles.values() for turn in cells})
    several = len({part.source for part in parts}) > 1
    heading = [*(["dataset"] if several else []), "template", "role", "tokens", "with loss", "of the loss"]
    heading += ["answer 1", *turns[1:]] if len(turns) > 1 else []
    rows = []
    for part in parts:
        for role, cells in sorted(part.roles.items()):
            tokens, learned = (sum(cell[i] for cell in cells.values()) for i in (0, 1))
            row = [str(part.source + 1)] if several else []
            row += [part.template, role, f"{tokens:,}", f"{learned:,}", percent(learned, part.loss_tokens)]
            if len(turns) > 1:
                row += [percent(cells.get(turn, [0, 0])[1], part.loss_tokens) for turn in turns]
            rows.append([escape(cell) for cell in row])
    return heading, rows


def heading(row: ShownRow, number: int, split: str) -> str:
    """One line on a row."""
    share = percent(row.loss_tokens, row.tokens)
    counted = f"{row.tokens:,} tokens, {row.loss_tokens:,} with loss ({share})"
    return f"{split} row {number}, {escape(row.place)}: {counted}{f'; {row.note}' if row.note else ''}"


def shortened(row: ShownRow) -> Iterator[tuple[str, tuple[Token, ...], int]]:
    """Owner, pieces and the number left out before them, of the first and the last pieces of a row."""
    count = sum(len(stretch.tokens) for stretch in row.stretches)
    first, last = (count, count) if count <= MOST else (3 * MOST // 4, count - MOST // 4)
    at = omitted = 0
    for stretch in row.stretches:
        kept, label = stretch.tokens, f"{escape(stretch.owner)}:"
        head, tail = kept[: max(0, first - at)], kept[max(0, last - at) :]
        omitted += stretch.omitted
        if head:
            yield label, head, omitted
            omitted = 0
        omitted += len(kept) - len(head) - len(tail)
        if tail:
            yield label, tail, omitted
            omitted = 0
        at += len(kept)


def _coloured(tokens: tuple[Token, ...]) -> Text:
    text = Text()
    for at, token in enumerate(tokens):
        style = SHADES[token.learned, token.special][at % 2]
        for line in _visible(token.text).splitlines(keepends=True):
            # The background ends before the line does, or it would colour the rest of the terminal's line.
            text.append(line.rstrip("\n"), f"{style} strike" if token.cut else style)
            text.append("\n" if line.endswith("\n") else "")
    return text


def _plain(tokens: tuple[Token, ...], cut: bool) -> str:
    shown: list[str] = []
    learned = False
    for at, token in enumerate(tokens):
        if token.learned != learned:
            shown.append("[loss]" if token.learned else "[/loss]")
            learned = token.learned
        elif at:
            shown.append("|")
        if token.cut and not cut:
            shown.append("[cut here]")
        cut = token.cut
        shown.append(_visible(token.text))
    return "".join([*shown, "[/loss]" if learned else ""])


def _visible(text: str) -> str:
    """Escaped, but that lines break where they do."""
    return NEWLINE.join(map(escape, text.split("\n")))


def _table(ledger: Ledger) -> Table:
    heading, rows = table_cells(ledger)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, pad_edge=False)
    left = ("dataset", "template", "role")
    for word in heading:
        table.add_column(Text(word), justify="left" if word in left else "right", no_wrap=word in left)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _line(terminal: Console, text: str, style: str = "") -> None:
    terminal.print(Text(text, style), soft_wrap=True)
