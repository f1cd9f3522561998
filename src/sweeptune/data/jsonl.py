"""``data=jsonl``: a user's own file, one JSON object a line (a ``.json`` file with one array works too)."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.formats import BadRow, detect, to_conversation

SHOWN = 5


def load_jsonl(data: DataConfig) -> tuple[list[Conversation], dict[str, Any]]:
    """Read and check every row.

    Returns:
        The conversations, exact duplicates once, and what was found: format, rows, bad rows, duplicates.

    Raises:
        ConfigError: The file cannot be read, or rows are malformed (unless ``data.on_bad_row=skip``): the first five
            with line and reason.
    """
    path = Path(str(data.path or "")).expanduser()
    form: str = data.format
    found: dict[str, Conversation] = {}
    bad: list[str] = []
    rows = 0
    for place, value in _rows(path):
        rows += 1
        try:
            row = _decode(value) if isinstance(value, bytes) else value
            form = detect(row) if form == "auto" else form
            item = to_conversation(row, form)
            found.setdefault(item.id, item)
        except BadRow as error:
            bad.append(f"{place}: {error}")
    if bad and data.on_bad_row == "error":
        more = [f"{path}: {len(bad) - SHOWN} more rows are malformed"] if len(bad) > SHOWN else []
        raise ConfigError([*bad[:SHOWN], *more, "data.on_bad_row=skip leaves such rows out and counts them"])
    if not found:
        raise ConfigError(f"data.path={data.path}: has no usable row ({rows} read, {len(bad)} malformed)")
    stats = {"format": form, "rows": rows, "bad_rows": len(bad), "duplicates": rows - len(bad) - len(found)}
    return list(found.values()), stats


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and content of every row: lines that are not blank, as bytes, or the elements of one JSON array."""
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ConfigError(
            f"data.path={path}: cannot be read ({error.strerror}); relative paths start at {Path.cwd()}"
        ) from error
    if path.suffix == ".json" and content.lstrip().startswith(b"["):
        try:
            elements = _decode(content)
        except BadRow as error:
            raise ConfigError(f"data.path={path}: {error}") from error
        yield from ((f"{path}, element {number}", element) for number, element in enumerate(elements, 1))
        return
    # Only \n ends a line: text that is split as text would also break at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadRow(f"is not JSON: {error.msg} ({line}column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise BadRow(f"is JSON that Python cannot hold: {error}") from None
