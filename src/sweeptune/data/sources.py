"""Where conversations come from: Python's own docstrings, or the files of ``data.path`` and ``data.mix``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.formats import BadRow, detect, to_conversation
from sweeptune.data.jsonl import SHOWN, _decode, load_jsonl
from sweeptune.data.pydocs import load_pydocs


@dataclass
class Found:
    """What reading met; filled on the way."""

    format: str = ""
    rows: int = 0
    bad_rows: int = 0


def read(data: DataConfig, found: Found) -> Iterator[Conversation]:
    """Every good row in order, duplicates included.

    Raises:
        ConfigError: The data cannot be read, or rows are malformed (unless ``data.on_bad_row=skip``).
    """
    if data.name == "pydocs":
        rows = load_pydocs()
        found.format, found.rows = "qa", len(rows)
        yield from rows
        return
    parts = [replace(data, path=part.path, format=part.format, mix=None) for part in data.mix or []] or [data]
    for source, part in enumerate(parts):
        for row in _lines(part, found) if str(part.path).endswith(".jsonl") else _whole(part, found):
            yield replace(row, source=source)


def _whole(data: DataConfig, found: Found) -> Iterator[Conversation]:
    rows, stats = load_jsonl(data)
    found.format = stats["format"]
    found.rows += stats["rows"] - stats["duplicates"]
    found.bad_rows += stats["bad_rows"]
    yield from rows


def _lines(data: DataConfig, found: Found) -> Iterator[Conversation]:
    path, form, bad = Path(str(data.path)).expanduser(), str(data.format), []
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"data.path={path}: cannot be read ({error.strerror})") from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            found.rows += 1
            try:
                value = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                form = found.format = detect(value) if form == "auto" else form
                yield to_conversation(value, form)
            except BadRow as error:
                found.bad_rows += 1
                bad.append(f"{path}:{number}: {error}")
    if bad and data.on_bad_row == "error":
        raise ConfigError([*bad[:SHOWN], "data.on_bad_row=skip leaves such rows out and counts them"])


def content_digest(data: DataConfig) -> str | None:
    """Name the content of what would be read; None where it cannot be known before."""
    if data.name == "pydocs":
        return hashlib.sha256(f"pydocs {sys.version}".encode()).hexdigest()
    whole = hashlib.sha256()
    for path in [part.path for part in data.mix or []] or [str(data.path)]:
        try:
            with Path(path).expanduser().open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            return None
    return whole.hexdigest()
