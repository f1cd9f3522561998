"""Files that matter are whole or absent: atomic writes, append-only lines, and a full disk that loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

GIB = 2**30
NEARLY_FULL_BYTES = 64 * 2**20
"""Below this much free space a failed write without an error code is taken for a full disk."""


class DiskFull(OSError):
    """There is no room for a file; everything written before is intact.

    Args:
        path: The file or folder that could not be written.
    """

    def __init__(self, path: Path) -> None:
        free = shutil.disk_usage(_existing(path)).free / GIB
        super().__init__(
            errno.ENOSPC,
            f"no room to write {path} ({free:.2f} GiB free there); nothing already written is lost. "
            "Free some space, then go on with: python train.py resume=<run folder>",
        )

    def __str__(self) -> str:
        return str(self.strerror)


def is_disk_full(error: BaseException, path: Path) -> bool:
    """Whether an exception means that the disk is full; torch reports that as a RuntimeError without a code."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error.__context__, OSError):
        return is_disk_full(error.__context__, path)
    nearly_full = shutil.disk_usage(_existing(path)).free < NEARLY_FULL_BYTES
    return nearly_full and ("write" in str(error) or "No space left" in str(error))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        text: The whole new content.

    Raises:
        DiskFull: The old content is still there.

    Example:
        >>> write_text(Path("notes.txt"), "whole or absent")
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """`write_text` for what is no text."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's own files are closed to everyone else
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if is_disk_full(error, path):
            raise DiskFull(path) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class JsonLines:
    """A file of one JSON object a line; every line is handed to the system before `append` returns.

    Args:
        path: The file; made when the first line is written.

    Example:
        >>> lines = JsonLines(Path("metrics.jsonl"))
        >>> lines.append({"step": 1, "loss": 2.0})
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def offset(self) -> int:
        """Bytes in the file: where the next line begins."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, value: dict[str, Any]) -> None:
        """Add one line; a torn line that a killed process left is set aside first.

        Args:
            value: A JSON object without NaN or infinity.

        Raises:
            DiskFull: The lines before it are whole.
            ValueError: A number is not finite.
        """
        line = json.dumps(value, allow_nan=False) + "\n"
        if not self._ends_whole():  # at each line: others may write here, too, and die
            self.truncate_to(self._end_of_last_line())
        before = self.offset
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if self.offset > before:
                os.truncate(self.path, before)
            if is_disk_full(error, self.path):
                raise DiskFull(self.path) from error
            raise

    def truncate_to(self, offset: int) -> None:
        """Set aside what stands behind an offset, a torn line included, in ``<name>.discarded``.

        Args:
            offset: Bytes to keep, as `offset` gave them; a file that is shorter stays as it is.

        Raises:
            DiskFull: Nothing has been cut off.
        """
        if self.offset <= offset:
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            rest = file.read()
        aside = self.path.with_name(self.path.name + ".discarded")
        try:
            with aside.open("ab") as file:
                file.write(rest if rest.endswith(b"\n") else rest + b"\n")
        except OSError as error:
            if is_disk_full(error, aside):
                raise DiskFull(aside) from error
            raise
        os.truncate(self.path, offset)

    def _ends_whole(self) -> bool:
        if not self.offset:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _end_of_last_line(self) -> int:
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
