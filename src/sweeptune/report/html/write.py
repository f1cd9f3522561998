"""Put the page together: a template, its style and its scripts, and the study's values, in one file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.report.html.page import Page, make_page
from sweeptune.report.html.tables import pieces
from sweeptune.report.remarks import clean
from sweeptune.report.studies import read_study
from sweeptune.study.lease import Leases
from sweeptune.study.working import find_standing
from sweeptune.tracking.files import DiskFull, write_text

REPORT = "report.html"
SCRIPTS = ("draw.js", "charts.js", "panels.js", "tables.js", "page.js")
REFRESH_S = 5.0
"""How often a study that runs is looked at."""
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
"""No end of a script, no comment and no entity can be written without these; JSON reads them back."""


def write_report(folder: Path, out: Path | None = None, live: bool = False) -> Path:
    """Write a study's report, whole or not at all.

    Args:
        folder: The study's, finished or not.
        out: The file; ``report.html`` in the study's folder by default.
        live: Whether it is going to be written again; the page then loads itself anew.

    Returns:
        The file.

    Raises:
        ConfigError: It is no study, or the file cannot be written there.

    Example:
        >>> write_report(Path("multirun/demo"))
        PosixPath('multirun/demo/report.html')
    """
    target = out or folder / REPORT
    text = to_html(make_page(read_study(folder)), live)
    try:
        write_text(target, text)
    except DiskFull:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"--out {target}: cannot be written ({reason}); give a file in an existing folder") from error
    return target


def watch_report(
    folder: Path,
    out: Path | None = None,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Path, str]:
    """Write the report whenever the study has changed, until the study ends; the last one no longer loads itself anew.

    Args:
        folder: The study's.
        out: As for `write_report`.
        say: Told once that the file is there and will be written again.
        sleep: Waits some seconds.

    Returns:
        The file, and why it is not written any more: nothing is left to do, nobody works on the study, or Ctrl-C.

    Raises:
        ConfigError: As `write_report` does.
    """
    seen: Any = None
    leases, why = Leases(), "stopped by Ctrl-C; the study goes on"
    try:
        while (standing := find_standing(folder, leases)) == "running":
            if (state := _state(folder)) != seen:
                path = write_report(folder, out, live=True)
                if seen is None:
                    say(f"{path}: written again whenever the study has something new; Ctrl-C ends that")
                seen = state
            sleep(REFRESH_S)
        command = read_study(folder).header.get("command") or "the command that began it"
        left = f"nobody works on the study any more, and something is left to do; going on: {command}"
        why = "the study is over" if standing == "over" else clean(left)
    except KeyboardInterrupt:
        pass
    return write_report(folder, out), why


def to_html(page: Page, live: bool = False) -> str:
    """The whole file.

    Args:
        page: From `sweeptune.report.html.page.make_page`.
        live: Whether the page loads itself anew.
    """
    style, script = _file("style.css"), "\n".join(_file(name) for name in SCRIPTS)
    # The policy makes the promise checkable: a browser refuses every request, and every script and style but ours.
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    policy += "; base-uri 'none'; form-action 'none'"
    values = {"policy": policy, "style": style, "script": script, "data": embed(page.data), "live": str(int(live))}
    values |= pieces(page)
    # In one pass: what is put in is never looked at again, whatever a name in it looks like.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _file("template.html"))


def embed(value: Any) -> str:
    """JSON that stays inside a script element, whatever its texts are; ASCII, so U+2028 is escaped, too."""
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except ValueError:  # a NaN in a file that other hands wrote; looking for it takes longer than all the rest
        text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"))
    return "".join(ESCAPES.get(c, c) for c in text) if any(c in text for c in ESCAPES) else text


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _state(folder: Path) -> Any:
    """Changes when there is something new to show: a trial, a confirmation run, or an evaluation."""
    paths = [folder / "study.json", folder / "trials.jsonl", *folder.glob("*/metrics.jsonl")]
    paths += folder.glob("confirm/*/result.json")
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_mtime_ns, status.st_size))
    return sorted(found)
