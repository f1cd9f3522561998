"""The runs of a folder: their records, and the settings that tell them apart."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import yaml

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.record import PARTS, find_records, natural, read_record

log = logging.getLogger("sweeptune")

UNREADABLE, UNFINISHED = "unreadable", "no record yet"
"""Statuses of this table only: the record cannot be read; the run goes on, or was killed before it could write one."""
SETTINGS = "config.yaml"
FIGURES = {
    "eval": ("loss", "initial_loss", "bits_per_byte"),
    "memory": ("peak_memory_gib",),
    "speed": ("tokens_per_s",),
    "train": ("steps", "tokens", "seconds"),
    "params": ("trainable", "total"),
}
"""What the table shows as numbers."""


def find_runs(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every run folder at and below one, in natural order (0, 1, 2, 10); links to folders are not followed.

    Args:
        root: A study, a run folder, or any folder above them.

    Returns:
        Pairs of folder and record. One that cannot be read has the status ``unreadable`` and its reason, one that does
        not exist yet the status ``no record yet``; both are otherwise empty.
    """
    found = [(folder, _readable(folder, record)) for folder, record in find_records(root)]
    ended = {folder for folder, _ in found}
    for path in root.rglob(SETTINGS):
        # Hydra keeps another config.yaml in a hidden folder of the run.
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.parent not in ended:
            found.append((path.parent, _blank(UNFINISHED)))
    return sorted(found, key=lambda pair: natural(pair[0]))


def _readable(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Tell a record that cannot be read from a run that was refused as invalid; `find_records` calls both that."""
    figures = {f"{part}.{key}": record[part][key] for part, keys in FIGURES.items() for key in keys}
    wrong = [f"{name} is {value!r}, not a number" for name, value in figures.items() if not _is_number(value)]
    if not isinstance(record["seed"], int | None):
        wrong.append(f"seed is {record['seed']!r}, not a whole number")
    if record["status"] == "invalid_run":
        try:
            read_record(folder)
        except ConfigError as error:
            wrong = error.problems
    return _blank(UNREADABLE, "; ".join(wrong)) if wrong else record


def _blank(status: str, reason: str | None = None) -> dict[str, Any]:
    """What stands in for a record that cannot be had; names come from the settings, where there are any."""
    names = dict.fromkeys(("method", "model", "data", "seed"))
    return {"status": status, "reason": reason, **names, **{part: dict.fromkeys(keys) for part, keys in PARTS.items()}}


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def with_names(record: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Take the names of a run whose record does not give them from its settings."""
    texts = {key: str(settings[f"{key}.name"]) for key in ("method", "model", "data") if f"{key}.name" in settings}
    seed = {"seed": settings["seed"]} if isinstance(settings.get("seed"), int) else {}
    return record | {key: value for key, value in (texts | seed).items() if record[key] is None}


def read_settings(folder: Path) -> dict[str, Any]:
    """The run's settings with dotted keys; empty where the folder has no readable config.yaml."""
    path = folder / SETTINGS
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        log.warning("%s: cannot be read as YAML, so its settings are not shown (%s)", path, error)
        return {}
    flat: dict[str, Any] = {}
    for group, fields in values.items() if isinstance(values, dict) else ():
        flat |= (
            {f"{group}.{key}": value for key, value in fields.items()} if isinstance(fields, dict) else {group: fields}
        )
    return flat


def distinguishing(runs: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per run, the settings that not all runs of its method share; the seed and the names have columns of their own."""
    told: dict[str, dict[str, Any]] = {}
    for name, (record, own) in runs.items():
        peers = [settings for other, settings in runs.values() if other["method"] == record["method"] and settings]
        told[name] = {
            key: value
            for key, value in own.items()
            if key not in ("seed", "resume", "study.name", "model.name", "data.name")
            and any(key not in peer or peer[key] != value for peer in peers)
        }
    return told
