"""Tokenized rows on disk, mapped into memory: gigabytes of data take no more RAM than the rows in use.

A store is a folder with a ``meta.json`` and, for each part (train, eval, test), three flat files: token ids, loss mask,
and one record a row. It is written beside its place and renamed when it is whole, so what can be found is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, overload

import numpy as np

from sweeptune.config.errors import ConfigError
from sweeptune.data.tokenize import Row

LAYOUT = 1
"""Raised when the files change their meaning; folders of another layout are not opened."""
META = "meta.json"
BUFFER = 2**20
ID_BYTES = 32
PACKED = struct.Struct("<32s16sqiiqi")
RECORD = np.dtype(
    [
        ("id", "S32"),
        ("digest", "V16"),
        ("begin", "<i8"),
        ("length", "<i4"),
        ("loss_tokens", "<i4"),
        ("loss_bytes", "<i8"),
        ("source", "<i4"),
    ]
)
IDS: dict[str, np.dtype[Any]] = {"H": np.dtype("<u2"), "i": np.dtype("<i4")}
"""How token ids are stored, by the letter that `array` has for them."""


def row_digest(row: Row) -> bytes:
    """Name a row by its id, its tokens and its mask: 16 bytes, the same for a list and for what is mapped."""
    return _digest(row.id, array("i", row.input_ids).tobytes(), bytes(row.loss_mask))


def _digest(name: str, ids: bytes, mask: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join((name.encode(), mask, ids)), digest_size=16).digest()


class TokenStore(Sequence[Row]):
    """Rows that are read from disk when they are asked for; a selection of them is a view that copies none.

    Args:
        tokens: Token ids of all rows, one behind the other.
        mask: bool, whether each token bears loss.
        records: Where each row lies and what is known of it, of dtype `RECORD`.
        chosen: Numbers of the rows that this view shows, in its order; None is all.

    Example:
        >>> store = open_parts(folder)[0]["train"]
        >>> store[0].input_ids, store.lengths.sum(), store.take([5, 3])[1] == store[3]
        ([1, 345, 2], 8191, True)
    """

    def __init__(
        self,
        tokens: np.ndarray[Any, Any],
        mask: np.ndarray[Any, Any],
        records: np.ndarray[Any, Any],
        chosen: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self._tokens, self._mask, self._records, self._chosen = tokens, mask, records, chosen

    def __len__(self) -> int:
        return len(self._records) if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> TokenStore: ...
    def __getitem__(self, index: int | slice) -> Row | TokenStore:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        record = self._records[index if self._chosen is None else self._chosen[index]]
        begin = int(record["begin"])
        end = begin + int(record["length"])
        return Row(
            record["id"].decode(),
            self._tokens[begin:end].tolist(),
            self._mask[begin:end].tolist(),
            int(record["loss_bytes"]),
        )

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenStore) and np.array_equal(self._column("digest"), other._column("digest"))

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> TokenStore:
        """A view of these rows, in this order; a row may stand in it more than once."""
        chosen = np.asarray(indices, dtype=np.int64)
        return TokenStore(
            self._tokens, self._mask, self._records, chosen if self._chosen is None else self._chosen[chosen]
        )

    def _column(self, name: str) -> np.ndarray[Any, Any]:
        column = self._records[name]
        return np.ascontiguousarray(column if self._chosen is None else column[self._chosen])

    @cached_property
    def lengths(self) -> np.ndarray[Any, Any]:
        """int64 [n]: tokens of each row; read once."""
        return _fixed(self._column("length").astype(np.int64))

    @cached_property
    def loss_counts(self) -> np.ndarray[Any, Any]:
        """int64 [n]: tokens of each row that bear loss; read once."""
        return _fixed(self._column("loss_tokens").astype(np.int64))

    @property
    def sources(self) -> np.ndarray[Any, Any]:
        """int64 [n]: number of the dataset that each row comes from."""
        return self._column("source").astype(np.int64)

    @property
    def ids(self) -> np.ndarray[Any, Any]:
        """Bytes [n]: the id of each row."""
        return self._column("id")

    @property
    def digests(self) -> np.ndarray[Any, Any]:
        """uint8 [n, 16]: what `row_digest` gives for each row."""
        return self._column("digest").view(np.uint8).reshape(-1, 16)

    @property
    def content_hash(self) -> str:
        """What `sweeptune.data.hash_rows` gives for these rows, without reading their tokens."""
        return hash_digests([self.digests.tobytes()])


def _fixed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values.setflags(write=False)  # it is handed out again
    return values


def hash_digests(digests: Iterable[bytes]) -> str:
    """Name rows by their digests, in order: 16 hex digits."""
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(digest)
    return whole.hexdigest()[:16]


def lengths_of(rows: Sequence[Row]) -> np.ndarray[Any, Any]:
    """int64 [n]: tokens of each row, of a list or of a store."""
    return rows.lengths if isinstance(rows, TokenStore) else np.array([row.length for row in rows], dtype=np.int64)


def loss_counts_of(rows: Sequence[Row]) -> np.ndarray[Any, Any]:
    """int64 [n]: loss tokens of each row, of a list or of a store."""
    if isinstance(rows, TokenStore):
        return rows.loss_counts
    return np.array([row.loss_tokens for row in rows], dtype=np.int64)


class StoreWriter:
    """Appends rows to the parts of a store; nothing of it can be found before `finish`.

    Args:
        target: The folder that the store becomes; the folder above it must exist.
        parts: Names of the parts.
        vocabulary: Token ids are below this number.

    Raises:
        ConfigError: There is no room on the disk (also from `append` and `finish`).

    Example:
        >>> with StoreWriter(folder / "rows", ["train"], vocabulary=49152) as writer:
        ...     writer.append("train", row)
        ...     writer.finish({"made": "by hand"})
    """

    def __init__(self, target: Path, parts: Sequence[str], vocabulary: int) -> None:
        self.target = target
        self.letter = "H" if vocabulary <= 2**16 else "i"
        self.counts = {name: {"rows": 0, "tokens": 0} for name in parts}
        self._files: dict[str, tuple[IO[bytes], ...]] = {}

    def __enter__(self) -> StoreWriter:
        with self._clear_errors():
            self._work = Path(tempfile.mkdtemp(dir=self.target.parent, prefix=f".{self.target.name}."))
            for name in self.counts:
                self._files[name] = tuple(open_file(path) for path in _paths(self._work, name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._all_files():
            with contextlib.suppress(OSError):  # on a full disk closing fails once more
                file.close()
        shutil.rmtree(self._work, ignore_errors=True)  # it is gone already where the store was finished

    def append(self, part: str, row: Row, source: int = 0) -> None:
        """Add a row.

        Raises:
            OverflowError: A token id does not lie in the vocabulary.
            ValueError: The id is longer than 32 bytes.
        """
        name, count = row.id.encode(), self.counts[part]
        if len(name) > ID_BYTES:
            raise ValueError(f"row id {row.id!r} is longer than {ID_BYTES} bytes")
        ids, mask = array("i", row.input_ids).tobytes(), bytes(row.loss_mask)
        stored = ids if self.letter == "i" else array(self.letter, row.input_ids).tobytes()
        known = _digest(row.id, ids, mask), count["tokens"], len(mask), mask.count(1), row.loss_bytes, source
        try:
            for file, content in zip(self._files[part], (stored, mask, PACKED.pack(name, *known)), strict=True):
                file.write(content)
        except OSError as error:
            self._explain(error)
            raise
        count["rows"] += 1
        count["tokens"] += len(mask)

    def finish(self, meta: dict[str, Any]) -> None:
        """Make the store findable, with JSON values that are kept beside it.

        Where another process was faster, its store stays and this one is dropped; a broken one is replaced.
        """
        about = meta | {"layout": LAYOUT, "ids": self.letter, "parts": self.counts}
        with self._clear_errors():
            for file in self._all_files():
                file.flush()
                os.fsync(file.fileno())  # a rename may outlive a power cut that the content does not
                file.close()
            (self._work / META).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            os.chmod(self._work, 0o755)  # mkdtemp's own folders are closed to everyone else
        try:
            self._work.rename(self.target)
        except OSError:
            if open_parts(self.target) is None:
                remove(self.target)
                self._work.rename(self.target)

    def _all_files(self) -> list[IO[bytes]]:
        return [file for files in self._files.values() for file in files]

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._explain(error)
            raise

    def _explain(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return
        folder = self.target.parent
        raise ConfigError(
            f"{folder}: no room for the tokenized rows ({shutil.disk_usage(folder).free / 2**30:.2f} GiB free). "
            "Free some space (sweeptune cache shows what is kept), keep them elsewhere with "
            "SWEEPTUNE_CACHE=<folder>, or keep them for this run only, in $TMPDIR, with data.cache=false"
        ) from error


def open_file(path: Path) -> IO[bytes]:
    """A new file to write."""
    return path.open("xb", buffering=BUFFER)


def open_parts(folder: Path) -> tuple[dict[str, TokenStore], dict[str, Any]] | None:
    """Map a store into memory.

    Returns:
        Its parts by name, and what was given to `StoreWriter.finish`; None where there is no store or not a whole one.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if meta["layout"] != LAYOUT:
            return None
        ids = IDS[meta["ids"]]
        parts = {}
        for name, count in meta["parts"].items():
            at_ids, at_mask, at_rows = _paths(folder, name)
            tokens, rows = int(count["tokens"]), int(count["rows"])
            mapped = _map(at_ids, ids, tokens), _map(at_mask, np.dtype(bool), tokens), _map(at_rows, RECORD, rows)
            parts[name] = TokenStore(*mapped)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return parts, meta


def _map(path: Path, kind: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    if path.stat().st_size != kind.itemsize * count:
        raise ValueError(f"{path}: {path.stat().st_size} bytes instead of {kind.itemsize * count}")
    # Without numpy's own class for mapped files, whose every slice costs ten times as much; an empty one has no map.
    return np.asarray(np.memmap(path, kind, "r")) if count else np.empty(0, kind)


def _paths(folder: Path, part: str) -> tuple[Path, Path, Path]:
    return folder / f"{part}.ids", folder / f"{part}.mask", folder / f"{part}.rows"


def remove(folder: Path) -> None:
    """Remove a store: out of the way first, so that nobody opens half of it; what has it mapped keeps it."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside / "removed")
    shutil.rmtree(aside, ignore_errors=True)
