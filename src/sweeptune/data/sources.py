"""Where conversations come from: files and folders, mixtures of them, the hub, and what Python itself carries.

Rows are read one after the other, so that their number does not matter, and every malformed one is named.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeptune.config.datafiles import files_of, kind
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig
from sweeptune.data import hub
from sweeptune.data.conversation import Conversation, Message, conversation
from sweeptune.data.files import file_rows, open_bytes, unreadable
from sweeptune.data.formats import BadRow, detect, other_format, to_conversation
from sweeptune.data.pydocs import load_pydocs, modules
from sweeptune.data.topics import load_topics

log = logging.getLogger("sweeptune")

SHOWN = 5
LOOK_ON, LOOK_ON_STREAM = 100_000, 1_000
"""How many rows are still looked at, to show and count malformed ones, once there is one and the run will stop."""
VERSION = 1
"""Raised when the same bytes are read to other conversations: what was kept on disk is then made anew."""


@dataclass
class Found:
    """What was found while reading; complete when the last row is read.

    Attributes:
        format: The formats of the rows, joined by `` + `` where files have different ones.
        rows: Rows read, malformed ones included.
        bad_rows: Malformed ones.
        left_out: Files in folders that are hidden or of an ending that is not known or not wanted.
    """

    format: str = ""
    rows: int = 0
    bad_rows: int = 0
    left_out: int = 0

    def saw(self, form: str) -> None:
        """Add a format, once."""
        if form not in self.format.split(" + "):
            self.format = f"{self.format} + {form}" if self.format else form


@dataclass(frozen=True)
class _Part:
    """One dataset of a mixture, or the only one."""

    number: int
    name: str
    form: str
    files: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()


def read(data: DataConfig, found: Found) -> Iterator[Conversation]:
    """Read and check every row.

    Args:
        data: Where the rows are.
        found: Is filled on the way.

    Yields:
        The good rows in order, equal ones as often as they stand there. When a malformed row stops the run, the rest is
        only looked through for others.

    Raises:
        ConfigError: A file cannot be read; a dataset has no usable row; or rows are malformed (unless
            ``data.on_bad_row=skip``): the first five with place and reason.

    Example:
        >>> found = Found()
        >>> rows = list(read(compose(["data=jsonl", "data.path=chats.jsonl"]).data, found))
        >>> found.format, found.rows, found.bad_rows
        ('sharegpt', 120, 0)
    """
    if data.name in EMBEDDED:
        yield from _embedded(data, found)
        return
    stops = data.on_bad_row == "error"
    bad: list[str] = []
    behind = 0  # rows looked at behind the first malformed one
    for part in _parts(data):
        before, good = found.rows, 0
        found.left_out += len(part.left_out)
        _tell_left_out(part)
        for form, item in _items(data, part):
            found.rows += 1
            if isinstance(item, BadRow):
                found.bad_rows += 1
                bad += [str(item)] if len(bad) < SHOWN else []
            elif not (stops and bad):
                good += 1
                found.saw(form)
                yield item
            behind += bool(bad)
            if stops and behind > (LOOK_ON_STREAM if data.streaming else LOOK_ON):
                raise ConfigError(_malformed(data, bad, found.bad_rows - len(bad), "at least "))
        if not good and not (stops and bad):
            raise ConfigError(f"{part.name}: has no usable row ({_why_none(found.rows - before)})")
    if stops and bad:
        raise ConfigError(_malformed(data, bad, found.bad_rows - len(bad)))


def content_digest(data: DataConfig) -> str | None:
    """Name the content of what `read` would give: the same for the same bytes, wherever the files are.

    Returns:
        64 hex digits; None where the content is not known before reading, as for streamed hub data.

    Raises:
        ConfigError: A file cannot be read.
    """
    digest = hashlib.sha256(repr((VERSION, data.name)).encode())
    if data.name == "pydocs":
        for path, name in modules():
            digest.update(repr((name, _bytes_digest(path))).encode())
    elif data.name == "pydocs_text":
        for item in load_topics():
            digest.update(item.id.encode())
    elif data.name == "hub":
        content = hub.fingerprint(data)
        if content is None:
            return None
        digest.update(repr((data.path, data.subset, data.split, data.format, content)).encode())
    else:
        for part in _parts(data):
            digest.update(repr((part.number, part.form)).encode())
            for file in part.files:
                digest.update(repr((kind(file), _bytes_digest(file))).encode())
    return digest.hexdigest()


def _bytes_digest(path: Path) -> str:
    try:
        with open_bytes(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(unreadable(path, error)) from error


def _embedded(data: DataConfig, found: Found) -> Iterator[Conversation]:
    form, load = EMBEDDED[data.name]
    found.saw(form)
    for item in load():
        found.rows += 1
        yield item


def _tell_left_out(part: _Part) -> None:
    if part.left_out:
        names = ", ".join(file.name for file in part.left_out[:SHOWN])
        more = ", ..." if len(part.left_out) > SHOWN else ""
        count = len(part.left_out)
        log.info("%s: files read: %d, left out: %d (%s%s)", part.name, len(part.files), count, names, more)


def _parts(data: DataConfig) -> list[_Part]:
    """The datasets to read, in order; a hub dataset is one without files."""
    if data.name == "hub":
        return [_Part(0, f"data.path={data.path}", data.format, ())]
    if data.mix is not None:
        given = [(f"data.mix[{n}].path={p.path}", p.path, p.format) for n, p in enumerate(data.mix)]
    else:
        path: Any = data.path or []
        shown = path if isinstance(path, str) else ",".join(path)
        given = [(f"data.path={shown}", path, data.format)]
    parts = []
    for number, (name, path, form) in enumerate(given):
        form = "text" if data.name == "text" and form == "auto" else form
        files, left_out = files_of(path, texts=form == "text")
        parts.append(_Part(number, name, form, tuple(files), tuple(left_out)))
    return parts


def _items(data: DataConfig, part: _Part) -> Iterator[tuple[str, Conversation | BadRow]]:
    """Every row with its format: the first row of a file that has one decides for the others, unless it is given."""
    if data.name == "hub":
        tables = iter([hub.hub_rows(data)])
    else:
        tables = (file_rows(file, alone=len(part.files) == 1) for file in part.files)
    for rows in tables:
        form = part.form
        for place, value in rows:
            try:
                form, item = _item(value, form, part, place)
                yield form, item
            except BadRow as error:
                yield form, BadRow(f"{place}: {error}")


def _item(value: Any, form: str, part: _Part, place: str) -> tuple[str, Conversation]:
    if isinstance(value, BadRow):
        raise value
    if isinstance(value, Message):
        if form not in ("auto", "text"):
            raise BadRow(f"is a text file, and data.format={form} is for rows")
        return "text", conversation([value], source=part.number, place=place)
    form = detect(value) if form == "auto" else form
    try:
        return form, to_conversation(value, form, source=part.number, place=place)
    except BadRow as error:
        other = other_format(value, form)
        if other is None:
            raise
        wanted = f"data.format={form}" if part.form == form else f"the first row of its source is {form}"
        raise BadRow(f"{error}. It looks like {other}, and {wanted}") from None


def _malformed(data: DataConfig, bad: list[str], more: int, least: str = "") -> list[str]:
    name = data.path if isinstance(data.path, str) else "data.mix" if data.mix else "data.path"
    rest = [f"{name}: {least}{more} more rows are malformed"] if more > 0 else []
    listed = [*bad, *rest]
    return [*listed[:-1], f"{listed[-1]} (data.on_bad_row=skip leaves such rows out and counts them)"]


def _why_none(read: int) -> str:
    return f"{read} read, all malformed" if read else "it is empty"


EMBEDDED: dict[str, tuple[str, Callable[[], list[Conversation]]]] = {
    "pydocs": ("qa", load_pydocs),
    "pydocs_text": ("text", load_topics),
}
