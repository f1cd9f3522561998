"""result.json: how a run ended and what it measured (DESIGN section 5)."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sweeptune
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.config.study_rules import FIGURES
from sweeptune.tracking.files import write_json

log = logging.getLogger("sweeptune")

RECORD = "result.json"
GIT = "SWEEPTUNE_GIT"
"""Names the code of a worker that runs a copy which is no checkout: ``<sha> clean`` or ``<sha> dirty``."""
PRUNED = "pruned.json"
"""What a study leaves in the folder of a run that it wants to end: ``{"reason": ..., ...}``."""
SCHEMA = 1
STATUSES = (
    "completed",
    "oom",
    "diverged",
    "timeout",
    "crashed",
    "interrupted",
    "lost",
    "pruned",
    "invalid_config",
    "invalid_run",
)
OBJECTS = ("tasks", "phases", "quality", "cost", "packages")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "hydra-core")
WARMUP_STEPS = 5
"""Steps at the start of a run that its speed leaves out."""
MERGED = ("as_trained", "merged_bf16", "merged_requantized")
"""Eval losses of a QLoRA run: with its adapter on NF4, as one bf16 model, and that quantised to NF4 again."""
PARTS: dict[str, tuple[str, ...]] = {
    "eval": (
        "loss",
        "best_loss",
        "initial_loss",
        "initial_shared",
        "perplexity",
        "bits_per_byte",
        "loss_tokens",
        "samples",
        "tasks",
        *MERGED,
    ),
    "memory": (*FIGURES["memory"], "phases"),
    "speed": (*FIGURES["speed"], "exclusive"),
    "train": FIGURES["train"],
    "params": FIGURES["params"],
    "proofs": ("gradients", "packing", "kernels"),
    "fingerprint": ("quality", "cost"),
    "environment": ("git", "dirty", "packages", "device", "driver"),
}


TEXTS = ("status", "reason", "method", "model", "data", "command")


def empty_record(config: Config) -> dict[str, Any]:
    """A record with every key and nothing measured yet.

    Args:
        config: The run's settings, which name method, model, data and seed.

    Example:
        >>> record = empty_record(config) | {"status": "oom", "reason": "the first step did not fit"}
    """
    names = {"method": config.method.name, "model": config.model.name, "data": config.data.name}
    return _complete({**names, "seed": config.seed})


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``folder / "result.json"`` atomically; missing keys and numbers that JSON does not know become null.

    Args:
        folder: An existing run folder.
        record: As `empty_record` made it, with what was measured.

    Raises:
        DiskFull: There is no room; an older record is still there.
        ConfigError: The record contradicts the contract, such as an unknown status.
    """
    record = _complete(_finite(record))
    validate_record(record)
    write_json(folder / RECORD, record)


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's record.

    Args:
        path: The run folder, or its result.json.

    Raises:
        ConfigError: It is not there, or not a record.
    """
    path = path / RECORD if path.is_dir() or path.name != RECORD else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path.parent}: has no {RECORD}, so no run has ended there") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a record ({error})") from error
    try:
        record = _complete(record) if isinstance(record, dict) and record.get("schema") == SCHEMA else record
        validate_record(record)
    except ConfigError as error:
        raise ConfigError(f"{path}: is not a record of this version ({'; '.join(error.problems)})") from error
    return dict(record)


def read_pruned(folder: Path) -> dict[str, Any] | None:
    """Why the study of a run has ended it, or None while it may go on.

    Raises:
        ConfigError: The file is there and is no JSON object with a ``reason``.
    """
    path = folder / PRUNED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it to let the run go on") from error
    if not isinstance(found, dict) or not isinstance(found.get("reason"), str):
        raise ConfigError(f'{path}: must be an object with "reason": "<text>"; remove it to let the run go on')
    return found


def is_over(folder: Path, record: dict[str, Any] | None) -> bool:
    """Whether a run has nothing left to do: it was completed, or pruned by a study that has not changed its mind."""
    status = None if record is None else record["status"]
    return status == "completed" or (status == "pruned" and (folder / PRUNED).exists())


def find_records(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every record at and below a folder, in natural order (0, 1, 2, 10).

    Args:
        root: A run folder, a study, or any folder above them.

    Returns:
        Pairs of run folder and record. A result.json that cannot be read is logged and stands there as an
        ``invalid_run`` with its reason, so that no run disappears from a comparison.
    """
    found = []
    for path in sorted(root.rglob(RECORD), key=natural):
        try:
            found.append((path.parent, read_record(path)))
        except ConfigError as error:
            reason = "; ".join(error.problems)
            log.warning("%s", reason)
            found.append((path.parent, _complete({"status": "invalid_run", "reason": reason})))
    return found


def validate_record(record: Any) -> None:
    """Check a record against the contract.

    Raises:
        ConfigError: Listing every key that is missing or of the wrong kind.
    """
    if not isinstance(record, dict):
        raise ConfigError(f"a record is a JSON object, not {type(record).__name__}")
    problems = (
        [] if record.get("schema") == SCHEMA else [f"schema is {record.get('schema')!r}, this version reads {SCHEMA}"]
    )
    if record.get("status") not in STATUSES:
        problems.append(f"status is {record.get('status')!r}, allowed: {', '.join(STATUSES)}")
    for key in TEXTS:
        if not isinstance(record.get(key), str | None):
            problems.append(f"{key} must be text or null, not {record[key]!r}")
    for part, keys in PARTS.items():
        if not isinstance(record.get(part), dict):
            problems.append(f"{part} must be an object with {', '.join(keys)}")
        else:
            own = record[part]
            problems += [f"{part}.{key} is missing" for key in keys if key not in own]
            objects = [key for key in keys if key in OBJECTS and key in own]
            problems += [f"{part}.{key} must be an object" for key in objects if not isinstance(own[key], dict)]
    problems += [f"{key} is missing" for key in ("attempts", "seed", "test", *TEXTS) if key not in record]
    if problems:
        raise ConfigError(problems)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which 10 comes after 2."""
    pieces = re.split(r"(\d+)", str(path))
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]


def _complete(record: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of the contract that a record lacks, as nulls and empty objects."""
    head = {"schema": SCHEMA, "status": "crashed", "reason": None, "attempts": 1}
    names: dict[str, Any] = {"method": None, "model": None, "data": None, "seed": None}
    parts: dict[str, Any] = {}
    for part, keys in PARTS.items():
        blank: dict[str, Any] = {key: {} if key in OBJECTS else None for key in keys}
        given = record.get(part)
        known = {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else {}
        parts[part] = blank | known if isinstance(given, dict | None) else given
    return {**head, **names, "test": None, "command": "", "pruned_by": None, **record, **parts}


@cache
def environment() -> dict[str, Any]:
    """What the run ran on: code version (null where the code is no git checkout), packages, device, driver."""
    import torch

    packages: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    cuda = torch.cuda.is_available()
    git, dirty = code_version()
    return {
        "git": git,
        "dirty": dirty,
        "packages": packages,
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "driver": _driver() if cuda else None,
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def code_version() -> tuple[str | None, bool | None]:
    """Commit of this code and whether it was changed since; both None where it is no git checkout.

    A study notes it once and hands it to its workers as ``f"{sha} {'dirty' if dirty else 'clean'}"`` in `GIT`.

    Raises:
        ConfigError: `GIT` is set to something else.
    """
    if given := os.environ.get(GIT):
        sha, _, state = given.partition(" ")
        if state not in ("clean", "dirty"):
            raise ConfigError(f"{GIT}={given}: must be <sha> clean or <sha> dirty; unset it to ask git")
        return sha, state == "dirty"
    ours = _git("ls-files", "--error-unmatch", str(Path(sweeptune.__file__))) is not None
    git, status = (_git("rev-parse", "HEAD"), _git("status", "--porcelain")) if ours else (None, None)
    return git, None if status is None else bool(status)


@cache
def cpu_name() -> str:
    """The processor's name and number of cores, such as ``AMD EPYC 9354 (2 cores)``."""
    import psutil

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = found[0] if found else name
    return f"{name} ({psutil.cpu_count() or 1} cores)"


def _git(*arguments: str) -> str | None:
    """What git says of this code's repository; None where there is none."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return None
    words = path.read_text().splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), None)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
