"""A table of texts that fits its terminal: columns leave by their importance, never by a broken figure."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeptune.report.cells import escape, markdown_row

GAP = 2
"""Characters between two columns."""
WRAPPED_WIDTH = 18
"""The least that a column of words gets before others leave."""


PLAIN = {"±": "+-", "│": "|", "└": "+", "─": "-"}
"""What stands for signs that a terminal lacks."""


@dataclass(frozen=True)
class Cell:
    """One cell; a text may have several lines."""

    text: str
    style: str = ""
    """A rich style, for terminals."""
    strong: bool = False
    """Bold in Markdown."""


@dataclass(frozen=True)
class Column:
    """A column of a sheet."""

    heading: str
    right: bool = False
    wrap: bool = False
    """Whether its words may take several lines."""
    leaves: int = 0
    """0 stays; else the columns with the largest number leave a narrow terminal first."""


@dataclass(frozen=True)
class Sheet:
    """A titled table and the remarks below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    styles: tuple[str, ...] = field(default=())
    """A style for each row; none by default."""


def print_sheet(console: Console, sheet: Sheet) -> list[str]:
    """Print a sheet.

    Args:
        console: Where; its width decides which columns are shown.
        sheet: What.

    Returns:
        Headings of the columns that did not fit.
    """
    kept = _fitting(sheet, console.width)
    console.print(Text(portable(console, sheet.title), style="bold"))
    if sheet.rows:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, pad_edge=False)
        tallest = max(_heading(sheet.columns[place]).count("\n") for place in kept)
        for place in kept:
            column = sheet.columns[place]
            heading = _aligned(sheet, place, _heading(column))
            # Headings stand at the bottom and cells at the top, for which rich has one setting only.
            heading = "\n" * (tallest - heading.count("\n")) + heading
            table.add_column(Text(heading), no_wrap=not column.wrap, overflow="fold", vertical="top")
        for row, style in zip(sheet.rows, sheet.styles or [""] * len(sheet.rows), strict=True):
            cells = [Text(portable(console, _aligned(sheet, p, row[p].text)), style=row[p].style) for p in kept]
            table.add_row(*cells, style=style)
        console.print(table)
    for note in sheet.notes:
        print_words(console, note, style="dim")
    console.print()
    return [column.heading for place, column in enumerate(sheet.columns) if place not in kept]


def print_words(console: Console, text: str, style: str = "") -> None:
    """Print a sentence; where there is a terminal it is broken between words, with the rest indented."""
    words = Text(portable(console, text), style=style)
    if not console.is_terminal:
        console.print(words, soft_wrap=True)
        return
    first, *rest = words.wrap(console, console.width) or [words]
    console.print(first, soft_wrap=True)
    if rest:
        remaining = Text(" ").join(rest)
        for line in remaining.wrap(console, max(console.width - 2, 20)):
            console.print(Text("  ").append_text(line), soft_wrap=True)


def sheet_markdown(sheet: Sheet) -> str:
    """The sheet with all its columns, for a report."""
    lines = [f"### {escape(sheet.title)}", ""]
    if sheet.rows:
        lines.append(markdown_row([column.heading for column in sheet.columns]))
        lines.append("|" + "".join(" ---: |" if column.right else " --- |" for column in sheet.columns))
        lines += ["| " + " | ".join(map(_markdown, row)) + " |" for row in sheet.rows]
        lines.append("")
    for note in sheet.notes:
        lines += [escape(note), ""]
    return "\n".join(lines)


def portable(console: Console, text: str) -> str:
    """The text in characters that the terminal has."""
    if console.encoding.lower().startswith("utf"):
        return text
    for sign, plain in PLAIN.items():
        text = text.replace(sign, plain)
    return text.encode("ascii", "replace").decode()


def _markdown(cell: Cell) -> str:
    text = "<br>".join(escape(line.strip()) for line in cell.text.split("\n"))
    return f"**{text}**" if cell.strong else text


def _fitting(sheet: Sheet, width: int) -> list[int]:
    """Places of the columns that fit."""
    kept = list(range(len(sheet.columns)))
    while sum(_width(sheet, place, least=True) + GAP for place in kept) - GAP > width:
        leaving = max(kept, key=lambda place: (sheet.columns[place].leaves, place))
        if not sheet.columns[leaving].leaves:
            break
        kept.remove(leaving)
    return kept


def _width(sheet: Sheet, place: int, least: bool = False) -> int:
    column = sheet.columns[place]
    texts = [_heading(column), *(row[place].text for row in sheet.rows)]
    widest = max(cell_len(line) for text in texts for line in text.split("\n"))
    return min(widest, WRAPPED_WIDTH) if least and column.wrap else widest


def _heading(column: Column) -> str:
    """Short lines instead of a long one."""
    first, _, rest = column.heading.partition(" ")
    return "\n".join([first, *([rest.replace(", ", ",\n")] if rest else [])])


def _aligned(sheet: Sheet, place: int, text: str) -> str:
    """Right-align here, because rich would strip the space that stands for a missing mark."""
    if not sheet.columns[place].right:
        return text
    return "\n".join(line.rjust(_width(sheet, place)) for line in text.split("\n"))
