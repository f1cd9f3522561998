"""Which runs of a folder may be compared with which, and in what.

Losses are ranked only among runs of one seed whose ``fingerprint.quality`` agrees, memory and speed only where
``fingerprint.cost`` agrees. Every field that keeps runs apart is named with its values. `sweeptune.report.table` shows
what is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.report.runs import UNFINISHED, distinguishing, find_runs, read_settings, with_names

SEEDED = ("data_order", "budget_tokens")
"""Quality fields that differ between seeds by design: the order, and with it how many rows fit into the steps."""
ABSENT = "(absent)"
METRICS = {
    "loss": ("quality", min),
    "bits_per_byte": ("quality", min),
    "peak_memory_gib": ("cost", min),
    "tokens_per_s": ("cost", max),
}
"""What is ranked: the fingerprint that must agree, and which value is best."""


@dataclass(frozen=True)
class Run:
    """One row of the table; None is unknown."""

    name: str
    """Folder below the compared one."""
    folder: str
    method: str | None
    model: str | None
    data: str | None
    seed: int | None
    settings: dict[str, Any]
    """What distinguishes it from the other runs of its method, such as ``{"method.rank": 4}``."""
    status: str
    reason: str | None
    loss_before: float | None
    loss: float | None
    bits_per_byte: float | None
    peak_memory_gib: float | None
    tokens_per_s: float | None
    exclusive: bool | None
    """Whether the run had its device to itself; speeds are ranked only then."""
    trainable: int | None
    parameters: int | None
    steps: int | None
    tokens: int | None
    seconds: float | None
    quality_group: str | None
    """Letter of the runs whose losses may be ranked, seed by seed; None for a run that did not complete."""
    cost_group: str | None
    """Number of the runs whose memory and speed may be ranked."""


@dataclass(frozen=True)
class Difference:
    """A fingerprint field that keeps runs apart."""

    field: str
    """Such as ``quality.template``."""
    values: dict[str, Any]
    """Its value in every completed run, by name; ``(absent)`` where the record has none."""


@dataclass(frozen=True)
class Ranking:
    """Runs that may be ranked in one figure, best first."""

    metric: str
    group: str
    seed: int | None
    """The seed that they share; None for memory and speed, where the seed does not matter."""
    runs: tuple[str, ...]
    best: tuple[str, ...]
    """The first run, and those that equal it."""


@dataclass(frozen=True)
class Comparison:
    """Everything that can be said about a folder of runs."""

    root: Path
    runs: tuple[Run, ...]
    differences: tuple[Difference, ...]
    rankings: tuple[Ranking, ...]
    unfinished: tuple[str, ...]
    """Names of the runs without a record: still running, or killed."""

    def groups(self, kind: str) -> dict[str, list[str]]:
        """Names of the completed runs by group.

        Args:
            kind: ``quality`` or ``cost``.
        """
        found: dict[str, list[str]] = {}
        for run in self.runs:
            group = getattr(run, f"{kind}_group")
            if group is not None:
                found.setdefault(group, []).append(run.name)
        return found

    def seeds(self) -> set[int | None]:
        """The seeds of the completed runs."""
        return {run.seed for run in self.runs if run.status == "completed"}


def load(root: str | Path) -> Comparison:
    """Read every record below a folder and decide what may be compared.

    Args:
        root: A study, a run folder, or any folder above them.

    Raises:
        ConfigError: There is no such folder, or no run in it.

    Example:
        >>> load("multirun/demo").groups("quality")
        {'A': ['0', '1', '2']}
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. Give a folder of runs, such as multirun/demo or outputs/<date>")
    found = find_runs(root)
    if not found:
        raise ConfigError(
            f"{root}: holds no run. A run folder holds config.yaml, metrics.jsonl and, once it has ended, "
            "result.json; `python train.py` makes one below outputs/, with --multirun several below multirun/"
        )
    names = [_name(folder, root) for folder, _ in found]
    read = {name: read_settings(folder) for name, (folder, _) in zip(names, found, strict=True)}
    records = {name: with_names(record, read[name]) for name, (_, record) in zip(names, found, strict=True)}
    settings = distinguishing({name: (record, read[name]) for name, record in records.items()})
    done = {name: record for name, record in records.items() if record["status"] == "completed"}
    quality = _labels(_quality_keys(done), _letter)
    cost = _labels({name: _key(name, record, "cost") for name, record in done.items()}, str)
    runs = tuple(
        _row(name, folder, records[name], settings[name], quality.get(name), cost.get(name))
        for name, (folder, _) in zip(names, found, strict=True)
    )
    return Comparison(
        root=root,
        runs=runs,
        differences=(*_differences(done, "quality"), *_differences(done, "cost")),
        rankings=tuple(_rankings(runs)),
        unfinished=tuple(run.name for run in runs if run.status == UNFINISHED),
    )


def _name(folder: Path, root: Path) -> str:
    return folder.resolve().name if folder == root else folder.relative_to(root).as_posix()


def _row(
    name: str, folder: Path, record: dict[str, Any], settings: dict[str, Any], quality: str | None, cost: str | None
) -> Run:
    result, speed, train, params = (record[part] for part in ("eval", "speed", "train", "params"))
    return Run(
        name=name,
        folder=str(folder),
        method=record["method"],
        model=record["model"],
        data=record["data"],
        seed=record["seed"],
        settings=settings,
        status=record["status"],
        reason=record["reason"],
        loss_before=result["initial_loss"],
        loss=result["loss"],
        bits_per_byte=result["bits_per_byte"],
        peak_memory_gib=record["memory"]["peak_memory_gib"],
        tokens_per_s=speed["tokens_per_s"],
        exclusive=speed["exclusive"],
        trainable=params["trainable"],
        parameters=params["total"],
        steps=train["steps"],
        tokens=train["tokens"],
        seconds=train["seconds"],
        quality_group=quality,
        cost_group=cost,
    )


def _key(name: str, record: dict[str, Any], part: str, without: tuple[str, ...] = ()) -> str:
    """The fingerprint as text; one that is empty agrees with nothing, because it says nothing."""
    fields = {key: value for key, value in record["fingerprint"][part].items() if key not in without}
    return json.dumps(fields, sort_keys=True) if fields else f"no fingerprint: {name}"


def _quality_keys(done: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    """One key per run: equal keys may be ranked, seed by seed.

    The order of the data differs between seeds by design; within a seed it must agree.
    """
    base = {name: _key(name, record, "quality", SEEDED) for name, record in done.items()}
    own = {name: ", ".join(_value(record, "quality", field) for field in SEEDED) for name, record in done.items()}
    seen: dict[tuple[str, Any], set[str]] = {}
    for name, record in done.items():
        seen.setdefault((base[name], record["seed"]), set()).add(own[name])
    split = {key for (key, _), values in seen.items() if len(values) > 1}
    return {name: (base[name], own[name] if base[name] in split else None) for name in done}


def _value(record: dict[str, Any], part: str, field: str) -> str:
    return json.dumps(record["fingerprint"][part].get(field, ABSENT), sort_keys=True)


def _labels(keys: dict[str, Any], label: Callable[[int], str]) -> dict[str, str]:
    """Number the distinct keys in the order of the runs."""
    numbers = {key: label(number) for number, key in enumerate(dict.fromkeys(keys.values()), 1)}
    return {name: numbers[key] for name, key in keys.items()}


def _letter(number: int) -> str:
    """1, 2, 26, 27 -> A, B, Z, AA, as spreadsheets name columns."""
    text = ""
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def _differences(done: dict[str, dict[str, Any]], part: str) -> Iterable[Difference]:
    """The fields of a fingerprint that are not the same in all completed runs."""
    fields = dict.fromkeys(field for record in done.values() for field in record["fingerprint"][part])
    for field in fields:
        by_seed: dict[Any, set[str]] = {}
        for record in done.values():
            seed = record["seed"] if part == "quality" and field in SEEDED else None
            by_seed.setdefault(seed, set()).add(_value(record, part, field))
        if any(len(values) > 1 for values in by_seed.values()):
            values = {name: record["fingerprint"][part].get(field, ABSENT) for name, record in done.items()}
            yield Difference(f"{part}.{field}", values)


def _rankings(runs: Iterable[Run]) -> Iterable[Ranking]:
    for metric, (kind, best_of) in METRICS.items():
        sets: dict[tuple[str, int | None], list[Run]] = {}
        for run in runs:
            group = getattr(run, f"{kind}_group")
            shared = metric != "tokens_per_s" or run.exclusive is True
            if group is not None and getattr(run, metric) is not None and shared:
                sets.setdefault((group, run.seed if kind == "quality" else None), []).append(run)
        for (group, seed), members in sets.items():
            if len(members) > 1:
                best = best_of(getattr(run, metric) for run in members)
                ordered = sorted(members, key=lambda run: getattr(run, metric), reverse=best_of is max)
                equal = tuple(run.name for run in ordered if getattr(run, metric) == best)
                yield Ranking(metric, group, seed, tuple(run.name for run in ordered), equal)
