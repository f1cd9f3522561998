"""A study's folder as it was left, read without Optuna: study.json, trials.jsonl, probes and confirmation runs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.config.secrets import masked
from sweeptune.study.lease import Leases
from sweeptune.study.working import find_standing
from sweeptune.tracking.record import RECORD, natural, read_record

log = logging.getLogger("sweeptune")

STUDY, TRIALS = "study.json", "trials.jsonl"
MERGED = ("as_trained", "merged_bf16", "merged_requantized")
"""QLoRA's three losses in a record's ``eval``."""


@dataclass(frozen=True)
class Trial:
    """A line of trials.jsonl; None is unknown."""

    number: int
    kind: str
    """``baseline``, ``trial``, or what does not count as one: ``misfit`` (predicted not to fit), ``duplicate``."""
    status: str
    reason: str | None
    method: str
    params: dict[str, Any]
    values: dict[str, float | None]
    eval_loss: float | None
    loss_sd: float | None
    """Over the trial's seeds."""
    seeds: tuple[int, ...]
    peak_memory_gib: float | None
    tokens_per_s: float | None
    exclusive: bool | None
    """Whether nothing else used the device while that was measured."""
    bits_per_byte: float | None
    trainable: int | None
    mfu: float | None
    predicted_gib: float | None
    tokens: int
    """Real tokens trained, over all seeds."""
    seconds: float
    attempts: int
    cost_class: str | None
    constraints: dict[str, float]
    """Above 0 is violated."""
    pruned_by: dict[str, Any] | None
    schedule: str | None
    folder: str
    command: str
    ended: float | None

    @property
    def counts(self) -> bool:
        """Whether it is one of ``study.trials``."""
        return self.kind in ("baseline", "trial")

    @property
    def shared(self) -> bool:
        """Whether something else used the device while it was timed."""
        return self.exclusive is False

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: it completed and keeps every constraint."""
        return self.counts and self.status == "completed" and all(v <= 0 for v in self.constraints.values())


@dataclass(frozen=True)
class Confirmation:
    """A method's best configuration, trained again with a seed that the search did not use."""

    method: str
    seed: int | None
    status: str
    reason: str | None
    folder: Path
    record: Mapping[str, Any]

    @property
    def loss(self) -> float | None:
        """On the test split, nats a token; None where the run did not complete."""
        found = self.record["test"]["loss"] if self.status == "completed" and self.record["test"] else None
        return found if isinstance(found, int | float) and math.isfinite(found) else None


@dataclass(frozen=True)
class Study:
    """Everything that a report needs."""

    folder: Path
    name: str
    methods: tuple[str, ...]
    objectives: tuple[str, ...]
    limits: dict[str, float]
    """``study.constraints``."""
    margin: float
    allocate: str
    fixed: dict[str, Any]
    """Settings that all trials share, dotted."""
    seed: int | None
    trials: tuple[Trial, ...]
    """By number."""
    confirmed: tuple[Confirmation, ...]
    planned: dict[str, int]
    """The trial that each method's confirmation repeats, and the seeds of all of them."""
    confirm_seeds: tuple[int, ...]
    probed: dict[str, tuple[str, float | None]]
    """Status and peak memory in GiB of the probe of each cost class."""
    left: bool
    """Whether something is left to do and nobody is at it."""
    header: Mapping[str, Any]
    """study.json as it is."""

    def of(self, method: str) -> list[Trial]:
        """The trials of one method that count."""
        return [trial for trial in self.trials if trial.method == method and trial.counts]

    @cached_property
    def tried(self) -> set[str]:
        """Methods that a trial was planned of, also where it was predicted not to fit."""
        return {trial.method for trial in self.trials}

    def trial(self, number: int) -> Trial | None:
        """A trial by its number."""
        return next((trial for trial in self.trials if trial.number == number), None)

    def peaks(self, trial: Trial) -> list[float]:
        """Peak memory in GiB of a trial, alone on its device, and of every confirmation run of its cost class.

        They differ: with other seeds rows come in another order, and memory falls into other pieces.
        """
        own = [trial.peak_memory_gib] if trial.peak_memory_gib is not None else []
        return own + self._confirmed_peaks.get(trial.cost_class or trial.number, [])

    @cached_property
    def _confirmed_peaks(self) -> dict[str | int, list[float]]:
        """Peaks of completed confirmation runs, by the cost class of the trial that they repeat, else by its number."""
        found: dict[str | int, list[float]] = {}
        for run in self.confirmed:
            trial = self.trial(self.planned.get(run.method, -1))
            peak = run.record["memory"]["peak_memory_gib"]
            if trial is not None and run.status == "completed" and peak is not None:
                found.setdefault(trial.cost_class or trial.number, []).append(peak)
        return found


def is_study(folder: Path) -> bool:
    """Whether a folder is a study's, with a header to read."""
    return (folder / STUDY).is_file()


def read_study(folder: str | Path) -> Study:
    """Read a study's folder.

    Args:
        folder: Such as ``multirun/demo``; the study may still be running.

    Raises:
        ConfigError: It is no study's folder, or its study.json cannot be read.

    Example:
        >>> read_study("multirun/demo").methods
        ('full', 'lora', 'qlora')
    """
    folder = Path(folder)
    header = _header(folder)
    header |= {"command": masked(str(header.get("command") or ""))}  # an earlier version may have left a password
    trials = tuple(sorted(_trials(folder / TRIALS).values(), key=lambda trial: trial.number))
    settings = header.get("study") or {}
    plan = _json(folder / "confirm" / "plan.json")
    return Study(
        folder=folder,
        name=str(header.get("name") or folder.name),
        methods=tuple(header.get("methods") or dict.fromkeys(trial.method for trial in trials)),
        objectives=tuple(settings.get("objectives") or ("eval_loss", "peak_memory_gib")),
        limits=dict(settings.get("constraints") or {}),
        margin=float(settings.get("margin", 0.01)),
        allocate=str(settings.get("allocate", "equal")),
        fixed=dict(header.get("fixed") or {}),
        seed=header.get("seed"),
        trials=trials,
        confirmed=tuple(_confirmations(folder / "confirm")),
        planned={key: value for key, value in plan.items() if isinstance(value, int)},
        confirm_seeds=tuple(plan.get("seeds") or ()),
        probed=_probes(folder / "probes"),
        left=find_standing(folder, Leases()) == "left",
        header=header,
    )


def swept(trial: Trial) -> dict[str, Any]:
    """A trial's own settings, without its method, such as ``{"optim.lr": 1e-4}``."""
    return {key: value for key, value in trial.params.items() if key != "method"}


def _header(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give a study's, such as multirun/demo")
    if not is_study(folder):
        raise ConfigError(
            f"{folder}: holds no {STUDY}, so it is no study's folder; `python train.py --multirun ...` makes one below "
            "multirun/. For other folders of runs there is `sweeptune compare`"
        )
    header = _json(folder / STUDY)
    if header.get("schema") != 1:
        raise ConfigError(f"{folder / STUDY}: schema is {header.get('schema')!r}, this version reads 1")
    return header


def _trials(path: Path) -> dict[int, Trial]:
    """The last line of each number; a line that a killed process left half-written is passed over."""
    found: dict[int, Trial] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for place, line in enumerate(text.splitlines(), 1):
        try:
            trial = _trial(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s:%d: passed over, it is no trial (%s)", path, place, error)
            continue
        found[trial.number] = trial
    return found


def _trial(line: dict[str, Any]) -> Trial:
    """Keys that this version does not know are dropped, those that an older one did not write are unknown."""
    if not isinstance(line, dict) or not isinstance(line.get("number"), int):
        raise ValueError("it has no number")
    blank: dict[str, Any] = dict.fromkeys(field.name for field in fields(Trial))
    blank |= {"kind": "trial", "status": "crashed", "method": "?", "tokens": 0, "seconds": 0.0, "attempts": 1}
    blank |= {"params": {}, "values": {}, "constraints": {}, "folder": str(line["number"]), "command": ""}
    known = {key: value for key, value in line.items() if key in blank and value is not None}
    merged = blank | known
    return Trial(**merged | {"seeds": tuple(merged["seeds"] or ())})


def _confirmations(folder: Path) -> list[Confirmation]:
    found = []
    for path in sorted(folder.glob(f"*/{RECORD}"), key=natural):
        method, _, seed = path.parent.name.rpartition("-")
        try:
            record = read_record(path)
        except ConfigError as error:
            log.warning("%s", "; ".join(error.problems))
            continue
        number = record["seed"] if isinstance(record["seed"], int) else int(seed) if seed.isdecimal() else None
        found.append(
            Confirmation(record["method"] or method, number, record["status"], record["reason"], path.parent, record)
        )
    return found


def _probes(folder: Path) -> dict[str, tuple[str, float | None]]:
    found = {}
    for path in sorted(folder.glob(f"*/{RECORD}"), key=natural):
        record = _json(path)
        peak = (record.get("memory") or {}).get("peak_memory_gib")
        found[path.parent.name] = (str(record.get("status")), peak if isinstance(peak, int | float) else None)
    return found


def _json(path: Path) -> dict[str, Any]:
    """An object of a file that may not be there."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); restore it, or remove it") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value
