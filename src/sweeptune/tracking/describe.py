"""A run folder in a tracker's words: who it is, its rows, its final figures. Reads files only, so that a run is
described alike while it trains and years later.

Names follow the folder: ``multirun/demo/7`` is trial 7 of the study demo, ``multirun/demo/7/seed-1`` one of its seeds,
``multirun/demo/confirm/qlora-1000`` a confirmation; everything else is a single run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import TrackerConfig
from sweeptune.tracking.record import read_record
from sweeptune.tracking.tracker import Card

TRIAL = "trial.json"
"""What a study leaves in the folder of each run: ``{"number", "kind", "probe"}``."""
STUDY_KEY = "study_key"
"""Setting that all runs of one study share; not nested, so that a dashboard can filter by it."""
NOT_SENT = ("study", "space", "tracker", "resume")
"""Settings that say nothing of the run itself."""
TAG_LENGTH = 64
STEP_KEYS = {
    "step": "train/step",
    "epoch": "train/epoch",
    "lr": "train/lr",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "step_loss_tokens": "train/loss_tokens",
    "micro_batch": "perf/micro_batch",
}
EVAL_KEYS = {
    "eval_loss": "eval/loss",
    "eval_perplexity": "eval/perplexity",
    "eval_bits_per_byte": "eval/bits_per_byte",
}
COST_KEYS = {
    "peak_memory_gib": "mem/peak_gib",
    "host_peak_gib": "mem/host_peak_gib",
    "tokens_per_s": "perf/mean_tokens_per_s",
}
"""Of a line's ``cost``: the figures of result.json as they stand at an evaluation."""
RESULTS = {
    "eval": ("best_loss", "initial_loss", "perplexity", "bits_per_byte"),
    "memory": ("peak_memory_gib", "peak_allocated_gib", "paged_gib", "host_peak_gib"),
    "speed": ("tokens_per_s", "loss_tokens_per_s", "step_ms", "mfu", "matmul_efficiency", "exclusive"),
    "train": ("steps", "tokens", "final_loss", "seconds"),
}
MERGED = ("as_trained", "merged_bf16", "merged_requantized")


@dataclass(frozen=True)
class Place:
    """Where a run stands in its study.

    Attributes:
        study: The study's folder; None for a single run.
        header: The content of its study.json.
        number: The trial's; of a confirmation the trial that it repeats.
        kind: trial, baseline, confirm, misfit, duplicate; train for a single run.
        probe: Folder of the probe that memory and speed come from; None where the run measures for itself.
    """

    study: Path | None
    header: Mapping[str, Any]
    number: int | None
    kind: str
    probe: Path | None


def card(folder: Path, *, attempt: int | None = None, project: str | None = None, entity: str | None = None) -> Card:
    """Describe a run.

    Args:
        folder: A run folder with a config.yaml.
        attempt: Which start of the run is meant; by default the last one.
        project: Replaces the settings' own.
        entity: Likewise.

    Raises:
        ConfigError: The settings cannot be read.

    Example:
        >>> card(Path("multirun/demo/2")).name
        '0002-qlora-r16-lr0.001'
    """
    settings, where, attempt = read_settings(folder), place(folder), attempt or attempts(folder)
    own = TrackerConfig(**{"name": "none", **settings.get("tracker", {})})
    method, seed = settings["method"]["name"], settings["seed"]
    stem = f"{_stem(folder, where)}-s{seed}"
    kind = [where.kind] if where.kind in ("baseline", "confirm") else []
    trial: dict[str, Any] = {"number": where.number, "kind": where.kind, "seed": seed, "attempt": attempt}
    trial["study"], key = where.header.get("name"), key_of(folder, where)
    trial["retry_of"] = identity(stem, attempt - 1, key) if attempt > 1 else None
    return Card(
        id=identity(stem, attempt, key),
        name=f"{_first_words(folder, where)}-{_settings_words(settings)}{_seed_words(folder, where, seed)}",
        project=project or own.project,
        entity=entity or own.entity,
        group=where.header.get("name"),
        job_type=where.kind,
        tags=tuple(dict.fromkeys(text[:TAG_LENGTH] for text in (method, settings["model"]["name"], *kind))),
        config={name: value for name, value in settings.items() if name not in NOT_SENT}
        | {"trial": trial, STUDY_KEY: key},
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The run's resolved settings, as plain values: also those of another version of this program.

    Raises:
        ConfigError: There are none.
    """
    path = folder / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        found["method"]["name"], found["model"]["name"], found["seed"]
    except FileNotFoundError:
        raise ConfigError(f"{folder}: has no config.yaml, so it is no run folder") from None
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read as a run's settings ({type(error).__name__}: {error})") from error
    return dict(found)


def place(folder: Path) -> Place:
    """Where a run stands in its study, if it has one."""
    study = next((above for above in list(folder.absolute().parents)[:3] if (above / "study.json").is_file()), None)
    if study is None:
        return Place(None, {}, None, "train", None)
    header, told = _json(study / "study.json"), _json(folder / TRIAL)
    parts = folder.absolute().relative_to(study).parts
    if parts[0] == "confirm":
        earlier = parts[-1].partition("-")[0]
        if len(parts) > 2 and earlier.isdecimal():  # confirm/earlier/3-qlora-1000
            return Place(study, header, int(earlier), "confirm", None)
        method = parts[-1].rpartition("-")[0]
        return Place(study, header, _json(study / "confirm" / "plan.json").get(method), "confirm", None)
    number = int(parts[0]) if parts[0].isdecimal() else None
    if told:
        probe = study / told["probe"] if told["probe"] else None
        return Place(study, header, number, told["kind"], probe)
    line = _line(study, parts[0])  # a study of a version that left no trial.json
    probe = study / "probes" / str(line.get("cost_class"))
    return Place(study, header, number, line.get("kind", "trial"), probe if probe.is_dir() else None)


def attempts(folder: Path) -> int:
    """How often the run has been started, at least 1."""
    path = folder / "attempts.jsonl"
    return max(1, len(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else 1


def row(line: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A line of metrics.jsonl as a row against ``train/tokens``.

    Args:
        line: The line.
        before: The line before it, for the speed of this step; None where there is none.

    Example:
        >>> row({"step": 1, "tokens": 2000, "eval_loss": 2.5}, None)
        {'train/tokens': 2000, 'train/step': 1, 'eval/loss': 2.5}
    """
    cost = line.get("cost") or {}
    found = {"train/tokens": line.get("tokens")}
    for keys, source in ((STEP_KEYS, line), (EVAL_KEYS, line), (COST_KEYS, cost)):
        found |= {name: source.get(key) for key, name in keys.items()}
    if before is not None and "loss" in line and "loss" in before and {"time", "tokens"} <= line.keys() & before.keys():
        seconds = line["time"] - before["time"]
        found["perf/tokens_per_s"] = (line["tokens"] - before["tokens"]) / seconds if seconds > 0 else None
    return {key: value for key, value in found.items() if value is not None}


def figures(
    record: Mapping[str, Any], probe: Mapping[str, Any] | None = None, *, confirms: bool = False
) -> dict[str, Any]:
    """Final figures, ``result/*``: what the study's own table says.

    Args:
        record: The run's.
        probe: The record of the probe that measured memory and speed alone on the device; None: the run did.
        confirms: Whether the run confirms a trial. It shares its device, and evaluates other rows than a probe does:
            its memory and speed stand apart, as ``result/own_*``, where no panel takes them for a probe's.
    """
    cost = probe or record
    found = {f"result/{key}": record["eval"].get(key) for key in (*RESULTS["eval"], *MERGED)}
    found["result/eval_loss"] = record["eval"].get("loss")
    if record["test"]:
        found |= {"result/test_loss": record["test"].get("loss")}
        found |= {"result/test_bits_per_byte": record["test"].get("bits_per_byte")}
    own = "own_" if confirms else ""
    for part in ("memory", "speed"):
        found |= {f"result/{own}{key}": cost[part].get(key) for key in RESULTS[part]}
    found |= {f"result/{key}": record["train"].get(key) for key in RESULTS["train"]}
    found |= {f"result/{key}_params": cost["params"].get(key) for key in ("trainable", "total")}
    failed = record["status"] not in ("completed", "pruned", "interrupted")
    # The reason is there without one, too: an earlier one of the same attempt must not stay.
    found |= {"result/status": record["status"], "result/reason": record["reason"] or "", "result/failed": int(failed)}
    return {key: value for key, value in found.items() if value is not None}


def run_figures(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """`figures` of a run where it stands in its study.

    Args:
        folder: The run folder.
        record: Its record.
    """
    return figures(record, probe_record(folder), confirms=place(folder).kind == "confirm")


def probe_record(folder: Path) -> dict[str, Any] | None:
    """The record of the probe that a run's memory and speed come from, where there is one that completed."""
    probe = place(folder).probe
    try:
        found = read_record(probe) if probe is not None else None
    except ConfigError:
        return None
    return found if found is not None and found["status"] == "completed" else None


def identity(stem: str, attempt: int, key: str) -> str:
    """The id of an attempt, in characters that W&B takes."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', stem)[-90:].strip('-')}-a{attempt}-{key}"


def key_of(folder: Path, where: Place) -> str:
    """Six digits that tell apart studies, and runs, of the same name, on whatever machine they were made."""
    first = folder / "attempts.jsonl"
    if where.study is not None:
        origin = json.dumps([where.header.get("name"), where.header.get("created")])
    elif first.is_file():
        origin = first.read_text(encoding="utf-8").partition("\n")[0]
    else:
        origin = str(folder.absolute())
    return hashlib.sha256(origin.encode()).hexdigest()[:6]


def _stem(folder: Path, where: Place) -> str:
    if where.study is None:
        return "run"  # nothing of the path: the folder may be moved
    study = str(where.header.get("name") or where.study.name)[:60]
    if where.kind == "confirm":
        return f"{study}-confirm-{_number(where.number)}"
    return f"{study}-{_number(where.number) if where.number is not None else folder.name}"


def _first_words(folder: Path, where: Place) -> str:
    if where.study is None:
        return folder.name
    return f"confirm-{_number(where.number)}" if where.kind == "confirm" else _number(where.number)


def _seed_words(folder: Path, where: Place, seed: int) -> str:
    return f"-s{seed}" if where.kind == "confirm" or folder.name.startswith("seed-") else ""


def _settings_words(settings: Mapping[str, Any]) -> str:
    method, lr = settings["method"], (settings.get("optim") or {}).get("lr")
    words = [method["name"]] + ([f"r{method['rank']}"] if "rank" in method else [])
    return "-".join(words + ([f"lr{lr:.3g}"] if isinstance(lr, int | float) else []))


def _number(number: int | None) -> str:
    return "run" if number is None else f"{number:04d}"


def _line(study: Path, folder: str) -> dict[str, Any]:
    """The last line of trials.jsonl of a trial's folder."""
    path = study / "trials.jsonl"
    found: dict[str, Any] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and str(line.get("folder", line.get("number"))) == folder:
            found = line
    return found


def _json(path: Path) -> dict[str, Any]:
    """An object of a file that need not be there, nor be whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
