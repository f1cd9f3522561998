"""``data=jsonl``: a user's own file, one JSON object a line (a ``.json`` file with one array works too)."""

from __future__ import annotations

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
        ConfigError: Rows are malformed (unless ``data.on_bad_row=skip``): the first five with line and reason.
    """
    path = Path(data.path or "").expanduser()
    form = data.format
    found: dict[str, Conversation] = {}
    bad: list[str] = []
    rows = 0
    for line, text in _rows(path):
        rows += 1
        try:
            row = _decode(text) if isinstance(text, str) else text
            form = detect(row) if form == "auto" else form
            item = to_conversation(row, form)
            found.setdefault(item.id, item)
        except BadRow as error:
            bad.append(f"{path}:{line}: {error}")
    if bad and data.on_bad_row == "error":
        more = [f"{path}: {len(bad) - SHOWN} more rows are malformed"] if len(bad) > SHOWN else []
        raise ConfigError([*bad[:SHOWN], *more, "data.on_bad_row=skip leaves such rows out and counts them"])
    if not found:
        raise ConfigError(f"data.path={data.path}: has no usable row ({rows} read, {len(bad)} malformed)")
    stats = {"format": form, "rows": rows, "bad_rows": len(bad), "duplicates": rows - len(bad) - len(found)}
    return list(found.values()), stats


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and text of every line that is not blank; the elements, where the file is one JSON array."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix == ".json" and file.read(1) == "[":
                file.seek(0)
                yield from enumerate(json.load(file), 1)
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.path={path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"is not JSON: {error.msg} (column {error.colno})") from None
