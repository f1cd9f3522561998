"""Which files hold data: the endings that are known, and what a path, a folder or a list of them stands for.

It is here, and not with the code that reads the files, because a wrong path is refused before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md")
ZIPPED = ".gz"
KNOWN = f"{', '.join([*ROWS, *TEXTS])}; all but .parquet also with {ZIPPED} behind"


def kind(path: Path) -> str | None:
    """The ending that says how a file is read, without ``.gz``; None when it is not known.

    Example:
        >>> kind(Path("chats.JSONL.gz")), kind(Path("chats.xlsx"))
        ('.jsonl', None)
    """
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings[-1:] == [ZIPPED]:
        endings.pop()
        return endings[-1] if endings and endings[-1] in ROWS + TEXTS and endings[-1] != ".parquet" else None
    return endings[-1] if endings and endings[-1] in ROWS + TEXTS else None


def paths_of(path: str | Sequence[str]) -> list[Path]:
    """One path or a list of them, with ``~`` resolved."""
    return [Path(each).expanduser() for each in ([path] if isinstance(path, str) else path)]


def files_of(path: str | Sequence[str], *, texts: bool) -> tuple[list[Path], list[Path]]:
    """The files that a setting stands for: those named, and of a folder (and the folders in it) all that are known.

    Args:
        path: A file, a folder or a list of them; they need not exist.
        texts: Whether text files of a folder are meant, too. Where rows are wanted, a README beside them is no row.

    Returns:
        The files, those of a folder sorted by name, and what was left out of folders: hidden files and folders, and
        endings that are not known or not wanted.
    """
    wanted = ROWS + TEXTS if texts else ROWS
    found: list[Path] = []
    left_out: list[Path] = []
    for each in paths_of(path):
        if not each.is_dir():
            found.append(each)
            continue
        for file in sorted(file for file in each.rglob("*") if file.is_file()):
            hidden = any(part.startswith(".") for part in file.relative_to(each).parts)
            (left_out if hidden or kind(file) not in wanted else found).append(file)
    return found, left_out


def trouble(path: str | Sequence[str], *, texts: bool) -> list[str]:
    """What is wrong with a setting's files: a sentence for each path; empty when all of them can be tried.

    Args:
        path: A file, a folder or a list of them; of a list each problem names its path.
        texts: Whether text files of a folder are meant, too.
    """
    problems = []
    for each in paths_of(path):
        found = _trouble(each, texts)
        if found:
            problems.append(found if isinstance(path, str) else f"{each}: {found}")
    return problems


def _trouble(path: Path, texts: bool) -> str | None:
    if not path.exists():
        return f"no such file or folder; relative paths start at {Path.cwd()}"
    if not path.is_dir():
        return None if kind(path) else f"unknown file ending; known are {KNOWN}"
    if files_of(str(path), texts=texts)[0]:
        return None
    held = len(files_of(str(path), texts=True)[0])
    also = f" (its {held} text files are read by data=text)" if held else ""
    return f"this folder holds no file that is known{also}; known are {KNOWN if texts else ', '.join(ROWS)}"
