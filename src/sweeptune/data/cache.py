"""Where tokenized rows are kept between runs, and how they are found, made once, listed and removed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sweeptune.data.store import META, StoreWriter, TokenStore, open_parts, remove
from sweeptune.models.fetch import cache_dir

log = logging.getLogger("sweeptune")

KINDS = ("tokens", "models", "hashes")
"""What the cache holds, each in a folder of this name: tokenized rows, fetched models, known content hashes."""
NO_LOCKS = -1


@dataclass(frozen=True)
class Kept:
    """A store that is open.

    Attributes:
        parts: Its rows.
        meta: What its writer kept beside them.
        folder: Where it is kept; None when it goes with the process.
        fresh: Whether it was made just now.
    """

    parts: dict[str, TokenStore]
    meta: dict[str, Any]
    folder: Path | None
    fresh: bool


def key_of(values: dict[str, Any]) -> str:
    """The name of what depends on these JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def keep(
    key: str | None, parts: Sequence[str], vocabulary: int, write: Callable[[StoreWriter], dict[str, Any]]
) -> Kept:
    """Open the store of this key, making it where there is none that is whole.

    Of several processes that ask for it at once (the ranks of a run) one makes it and the others wait.

    Args:
        key: Names the content; None keeps it for this process only.
        parts: The parts of a store that has to be made.
        vocabulary: Token ids are below this number.
        write: Appends all rows, and returns what is kept beside them.

    Raises:
        ConfigError: There is no room, or ``write`` raises it; nothing is left behind then.
    """
    folder = _place(key)
    if folder is None:
        return _for_now(parts, vocabulary, write)
    with _lock(folder) as locked:
        found = open_parts(folder)
        if found is None:
            if folder.exists():
                log.warning("%s: is not whole, so its rows are tokenized again", folder)
            if locked:
                _sweep(folder.parent, own=folder.name)
            with StoreWriter(folder, parts, vocabulary) as writer:
                writer.finish(write(writer))
            found, fresh = open_parts(folder), True
        else:
            fresh = False
    if found is None:  # somebody removed it between two lines; the next attempt is alone again
        return _for_now(parts, vocabulary, write)
    return Kept(*found, folder, fresh)


def _place(key: str | None) -> Path | None:
    """Where a store of this key belongs, or None where it cannot be kept."""
    if key is None:
        return None
    root = cache_dir() / "tokens"
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK)
    except OSError as error:
        log.warning("%s: cannot be made (%s), so tokenized rows are not kept", root, error.strerror)
        return None
    if not writable and open_parts(root / key) is None:
        log.warning("%s: is not writable, so tokenized rows are not kept", root)
        return None
    return root / key


def _for_now(parts: Sequence[str], vocabulary: int, write: Callable[[StoreWriter], dict[str, Any]]) -> Kept:
    """A store whose files have no name any more: the system frees them when this process ends, however it ends."""
    with tempfile.TemporaryDirectory(prefix="sweeptune-tokens-", ignore_cleanup_errors=True) as work:
        folder = Path(work) / "rows"
        with StoreWriter(folder, parts, vocabulary) as writer:
            writer.finish(write(writer))
        found = open_parts(folder)
        assert found is not None
        return Kept(*found, None, True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """One process at a time, if there are locks (yields that); the system lets go of one when a process is killed."""
    path = _lock_of(folder)
    handle = _held(path, wait=False)
    if handle is None:
        log.info("waiting for another process that tokenizes the same rows")
        handle = _held(path, wait=True)
    try:
        yield handle != NO_LOCKS
    finally:
        _let_go(path, handle)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _held(path: Path, *, wait: bool) -> int | None:
    """Take a lock: its open file, None where somebody has it, or NO_LOCKS where there can be none."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # a cache that can only be read
            return NO_LOCKS
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it may have removed the file meanwhile; then another one counts.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # a file system without locks: two writers then do the same work
            os.close(handle)
            path.unlink(missing_ok=True)
            return NO_LOCKS
        os.close(handle)


def _let_go(path: Path, handle: int | None) -> None:
    if handle is not None and handle != NO_LOCKS:
        path.unlink(missing_ok=True)
        os.close(handle)


def _sweep(root: Path, own: str = "") -> None:
    """Remove what killed writers left: folders whose key nobody else holds the lock of."""
    for work in [path for path in root.glob(".*.*") if path.is_dir()]:
        key = work.name[1:].partition(".")[0]
        if key == own:
            shutil.rmtree(work, ignore_errors=True)
            continue
        path = _lock_of(root / key)
        handle = _held(path, wait=False)
        if handle is not None and handle != NO_LOCKS:
            shutil.rmtree(work, ignore_errors=True)
        _let_go(path, handle)


@dataclass(frozen=True)
class Entry:
    """Something in the cache."""

    kind: str
    name: str
    size: int
    about: str


def entries() -> list[Entry]:
    """What the cache holds, kind by kind, newest first; the hashes count as one."""
    found = []
    for kind in KINDS:
        folders = [path for path in (cache_dir() / kind).glob("*") if path.is_dir()]
        for path in sorted(folders, key=lambda path: -path.stat().st_mtime):
            found.append(Entry(kind, path.name, _size(path), _about(path)))
    hashes = cache_dir() / "hashes"
    if hashes.is_dir():
        found.append(
            Entry("hashes", f"{len(list(hashes.iterdir()))} files", _size(hashes), "content of weights and data")
        )
    return found


def clear(kind: str) -> int:
    """Remove everything of a kind; runs that use it at this moment keep what they have open.

    Returns:
        The bytes that were freed.
    """
    folder = cache_dir() / kind
    size = _size(folder)
    if kind == "tokens" and folder.is_dir():  # not what somebody writes at this moment
        for path in folder.glob("[!.]*"):
            remove(path)
        _sweep(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return size - _size(folder)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _about(path: Path) -> str:
    made = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        rows = sum(part["rows"] for part in meta["parts"].values())
        return f"{made}  {meta['data']}, {rows:,} rows"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return made
