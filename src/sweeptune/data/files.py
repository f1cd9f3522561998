"""The rows of one file, in order, each with its place: lines of JSON, a JSON array, a table, or a text.

A file is read piece by piece, so its size does not matter. A row that cannot be decoded is given as the `BadRow` that
says why, and the next one follows.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from sweeptune.config.datafiles import KNOWN, TEXTS, ZIPPED, kind
from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import TEXT, Message
from sweeptune.data.formats import KNOWN_KEYS, BadRow
from sweeptune.data.jsonarray import JsonText, NotJson
from sweeptune.data.turns import text_of

Placed = Iterator[tuple[str, Any]]
MAX_FIELD = 16 * 2**20  # characters of a table's field; a quote that is never closed swallows the rest of the file
SECTIONS = 128
MIN_SECTION, MAX_SECTION = 4 * 2**10, 2**20  # bytes
WHOLE = 8 * 2**20  # bytes; a longer text is read in sections even where there are others beside it


def file_rows(path: Path, *, alone: bool = False) -> Placed:
    """Read a file as its ending says.

    Args:
        path: A file whose ending is known, with ``.gz`` behind or not.
        alone: Whether it is the only file. A text that is alone is read in sections, or there would be one document
            and nothing to hold out.

    Yields:
        Where the row stands and what it is: a decoded value, a `Message` with raw text, or a `BadRow`.

    Raises:
        ConfigError: The file cannot be read, or is broken in a way that hides where its next row begins.
    """
    ending = kind(path)
    if ending is None:
        raise ConfigError(f"data.path={path}: unknown file ending; known are {KNOWN}")
    try:
        yield from (_texts(path, alone) if ending in TEXTS else READERS[ending](path))
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """What to say where the system does not give a file."""
    reason = getattr(error, "strerror", None) or error
    return f"data.path={path}: cannot be read ({reason}); relative paths start at {Path.cwd()}"


def decode(content: bytes) -> Any:
    """Decode one JSON value.

    Raises:
        BadRow: It is not JSON.
    """
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise BadRow(f"is not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise BadRow(f"is JSON that Python cannot hold: {error}") from None


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unzipped."""
    return gzip.open(path) if path.suffix.lower() == ZIPPED else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends, without a byte order mark.

    Only \\n ends a line: text that is split as text would also break at U+2028, which JSON allows inside a string.
    """
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _json_lines(path: Path) -> Placed:
    with open_bytes(path) as file:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield f"{path}:{number}", _or_bad(decode, line.removesuffix(b"\n"))


def _json(path: Path) -> Placed:
    """One array of rows, or an object that holds one; else lines."""
    with open_bytes(path) as file:
        number = 0
        try:
            text = JsonText(file)
            inside = text.peek() == "{" and text.row_list(KNOWN_KEYS)
            if inside or text.peek() == "[":
                for number, value in enumerate(text.elements(), 1):
                    yield f"{path}, element {number}", value
                text.end(inside=inside)
                return
        except NotJson as error:
            behind = f"behind element {number}: " if number else ""
            raise ConfigError(f"data.path={path}: {behind}{error}") from error
    yield from _json_lines(path)


def _table(path: Path) -> Placed:
    """The rows of a csv or tsv file, by the names in its first line; the place is the line in which a row begins."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    with open_bytes(path) as file:
        lines = (line.decode("utf-8", "surrogateescape") for line in _lines(file))
        reader = csv.reader(lines, delimiter="\t" if kind(path) == ".tsv" else ",", strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise ConfigError(f"data.path={path}: the first line names no columns: {error}") from error
        if header and (not all(header) or len({*header}) < len(header)):
            raise ConfigError(f"data.path={path}: the first line has to name every column, each by a name of its own")
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield place, BadRow(f"is no row of a table: {error}")
                continue
            if fields:
                yield place, _or_bad(_named, header, fields)


def _named(header: list[str], fields: list[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise BadRow(f"has {len(fields)} fields, and the first line names {len(header)}")
    if any("\udc80" <= char <= "\udcff" for field in fields if not field.isascii() for char in field):
        raise BadRow("is not UTF-8")
    return dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> Placed:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"data.path={path}: parquet files are read by pyarrow. Install it: pip install pyarrow"
        ) from error
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            columns = [name for name in table.schema_arrow.names if name in KNOWN_KEYS]
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=columns or None):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", without_nulls(row)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"data.path={path}: is no parquet file that can be read: {error}") from error


def without_nulls(value: Any) -> Any:
    """A row of a typed table without the nulls that fill up what an object does not have."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _unzipped_size(path: Path) -> int:
    """Bytes of the text, which decide its sections: how well a file is compressed must not."""
    if path.suffix.lower() != ZIPPED:
        return path.stat().st_size
    with open_bytes(path) as file:
        return sum(map(len, iter(lambda: file.read(2**20), b"")))


def _texts(path: Path, alone: bool) -> Placed:
    """A text file as one document, or in sections that end at blank lines and together are the file.

    What goes on from the section before, or in the next one, says so in ``extra``: ``opens`` or ``closes`` is false
    there, and no token that separates documents belongs between them.
    """
    size = _unzipped_size(path)
    section = min(max(size // SECTIONS, MIN_SECTION), MAX_SECTION)
    if size <= (MIN_SECTION if alone else WHOLE):
        with open_bytes(path) as file:
            content = file.read().removeprefix(codecs.BOM_UTF8)
        yield str(path), _or_bad(_document, content, None)
        return
    with open_bytes(path) as file:
        held = None
        for number, content in enumerate(_sections(_lines(file), section), 1):
            if held is not None:
                yield held[0], _section(held[1], first=number == 2, last=False)
            held = f"{path}, section {number}", content
        if held is not None:
            yield held[0], _section(held[1], first=number == 1, last=True)


def _section(content: bytes, *, first: bool, last: bool) -> Message | BadRow:
    extra = {key: False for key, missing in (("opens", not first), ("closes", not last)) if missing}
    result: Message | BadRow = _or_bad(_document, content, extra or None)
    return result


def _document(content: bytes, extra: dict[str, Any] | None) -> Message:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    return Message(TEXT, text_of({"text": text}, "text"), None, extra)


def _sections(lines: Iterable[bytes], section: int) -> Iterator[bytes]:
    """Lines put together to about ``section`` bytes, to the next blank line if there is one before twice as many."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and size >= section and (size >= 2 * section or (not held[-1].strip() and line.strip())):
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"".join(held)


def _or_bad(make: Callable[..., Any], *given: Any) -> Any:
    try:
        return make(*given)
    except BadRow as error:
        return error


READERS: dict[str, Callable[[Path], Placed]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
