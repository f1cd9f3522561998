"""A trial from its point in the space to its line in trials.jsonl."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config, SpaceConfig, StudyConfig, TrackerConfig
from sweeptune.config.study_rules import grows
from sweeptune.launch.spawn import freeze, read_if_there
from sweeptune.study.lease import Lease
from sweeptune.study.space import Space
from sweeptune.study.store import cost_class
from sweeptune.tracking.describe import TRIAL
from sweeptune.tracking.files import write_json
from sweeptune.tracking.record import empty_record, write_record

MEANS = ("loss", "best_loss", "initial_loss", "perplexity", "bits_per_byte")
PEAK = "memory.peak_memory_gib"
EARLY = ("memory.", "speed.", "params.")
SHORT = {
    "eval_loss": "eval.loss",
    "peak_memory_gib": PEAK,
    "tokens_per_s": "speed.tokens_per_s",
}


@dataclass
class Trial:
    """A trial that this process works on.

    Attributes:
        number: Optuna's, and the folder's name.
        kind: ``baseline`` or ``trial``.
        point: The swept settings, by key.
        config: Of the run with the first seed.
        folder: ``multirun/<study>/<number>``.
        lease: Our right to work on it.
        seeds: One run each.
        records: Of the runs that have ended, by seed.
        probe: Record of the probe that memory and speed come from; None where the runs measure for themselves.
        predicted_gib: Peak memory as predicted, where it was.
        foreseen: By how much it would have broken which limits, had it run.
        deaths: How often a worker of it was killed by somebody.
        running: Runs and probes that are under way.
    """

    number: int
    kind: str
    point: dict[str, Any]
    config: Config
    command: str
    folder: Path
    lease: Lease
    seeds: list[int]
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    probe: dict[str, Any] | None = None
    predicted_gib: float | None = None
    foreseen: dict[str, float] = field(default_factory=dict)
    deaths: int = 0
    running: int = 0
    waiting: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def method(self) -> str:
        return self.config.method.name

    @cached_property
    def cost_class(self) -> str:
        return cost_class(flat(self.config))

    def run_folder(self, seed: int) -> Path:
        """Where the run with a seed lives: the trial's own folder when it has one seed only."""
        return self.folder if len(self.seeds) == 1 else self.folder / f"seed-{seed}"

    def configuration(self, seed: int) -> Config:
        """The settings of the run with a seed."""
        return replace(self.config, seed=seed)


def compose_trial(fixed: Sequence[str], space: Space, point: Mapping[str, Any], settings: StudyConfig) -> Config:
    """The settings of a trial's runs, but for the seed: nothing of the study but its name is in them."""
    extra = ["hardware.on_oom=stop"] if not any(o.startswith("hardware.on_oom=") for o in fixed) else []
    composed = compose([*fixed, *extra, *space.overrides(dict(point))])
    config = replace(composed, study=StudyConfig(name=settings.name), space=SpaceConfig())
    return replace(config, train=replace(config.train, eval_at=list(settings.rungs))) if settings.prune else config


def command_of(fixed: Sequence[str], space: Space, point: Mapping[str, Any], seed: int) -> str:
    """The command line that trains this configuration by itself."""
    own = [text for text in fixed if not text.lstrip("+").startswith(("study.", "study=", "space=", "seed="))]
    values = [text for text in space.overrides(dict(point)) if not text.startswith("seed=")]
    return shlex.join(["python", "train.py", *own, *values, f"seed={seed}"])


def flat(config: Config) -> dict[str, Any]:
    """Settings with dotted keys."""
    found: dict[str, Any] = {}
    for section, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            found |= {f"{section}.{key}": inner for key, inner in value.items()}
        else:
            found[section] = value
    return found


def schedule_of(config: Config) -> str:
    """A name for everything that shapes the learning rate over the tokens but its height: losses on the way compare
    only where it is the same."""
    values = flat(config)
    kept = ("optim.schedule", "optim.warmup", "train.max_steps", "train.max_tokens", "train.epochs")
    return "-".join(str(values[key]) for key in (*kept, "train.tokens_per_step"))


def probe_of(config: Config, steps: int) -> Config:
    """The settings of the probe: a few steps of the same training, and the held-out rows that need the most memory.

    The learning rate is the recommended one: it changes no cost, and one that diverges would tell nothing of others.
    """
    train = replace(
        config.train,
        max_steps=min(steps, config.train.max_steps or steps),
        eval_every=0,
        eval_at=[],
        checkpoint_every=0,
        keep_best=False,
    )
    longest = replace(config.eval, longest=config.eval.batch_size, test=False, merged=False)
    optim = replace(config.optim, lr=config.method.recommended_lr or config.optim.lr)
    tracker = TrackerConfig(name="none")  # a measurement, of which its trials send the figures
    return replace(config, train=train, eval=longest, optim=optim, tracker=tracker)


def is_its_own_probe(config: Config, settings: StudyConfig) -> bool:
    """Whether a run is as short as the probe would be; alone on its device, it measures as well."""
    if settings.probe_steps == 0:
        return True
    steps = config.train.max_steps
    return settings.trials_per_gpu == 1 and steps is not None and steps <= settings.probe_steps


def broken(values: Mapping[str, float | None], constraints: Mapping[str, float]) -> dict[str, float]:
    """By how much each limit is broken; zero or below is kept. A figure that is not known breaks nothing."""
    found = {}
    for name, limit in constraints.items():
        value = values.get(name)
        if value is not None:
            found[name] = limit - value if grows(name) else value - limit
    return found


def is_early(name: str) -> bool:
    """Whether a probe knows a figure, by its short name or dotted field, as well as a whole run."""
    return SHORT.get(name, name).startswith(EARLY)


def figure(record: Mapping[str, Any], name: str) -> float | None:
    """A figure of a record by its short name or dotted field."""
    value: Any = record
    for part in SHORT.get(name, name).split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of a trial with several seeds: the first one's, with the means of what was judged."""
    first = dict(records[0])
    if len(records) == 1:
        return first
    for part in ("eval", "test"):
        if all(isinstance(record[part], dict) for record in records):
            means = {key: _mean([record[part].get(key) for record in records]) for key in MEANS}
            first[part] = {**first[part], **means}
    first["replicates"] = [
        {"seed": r["seed"], "status": r["status"], "loss": r["eval"]["loss"], "tokens": r["train"]["tokens"]}
        for r in records
    ]
    return first


def _mean(values: Sequence[Any]) -> float | None:
    return statistics.fmean(values) if all(isinstance(value, int | float) for value in values) else None


def line_of(trial: Trial, settings: StudyConfig) -> dict[str, Any]:
    """What trials.jsonl says of a trial that has ended; memory and speed are the probe's where there is one."""
    records = [trial.records[seed] for seed in trial.seeds if seed in trial.records]
    record = joined(records) if records else empty_record(trial.config)
    failed = next((r for r in records if r["status"] != "completed"), None)
    cost = trial.probe or record
    told = failed or (record if records else cost)
    losses = [r["eval"]["loss"] for r in records if r["status"] == "completed" and r["eval"]["loss"] is not None]
    measured = {
        name: figure(cost if is_early(name) else record, name)
        for name in {*settings.objectives, *settings.constraints, *SHORT}
    }
    return {
        "number": trial.number,
        "kind": trial.kind,
        "status": told["status"],
        "reason": told["reason"],
        "method": trial.method,
        "params": trial.point,
        "values": {name: measured[name] for name in settings.objectives},
        "eval_loss": measured["eval_loss"],
        "loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "seeds": list(trial.seeds),
        "peak_memory_gib": measured["peak_memory_gib"],
        "tokens_per_s": measured["tokens_per_s"],
        "exclusive": cost["speed"]["exclusive"],
        "bits_per_byte": record["eval"]["bits_per_byte"],
        "trainable": cost["params"]["trainable"],
        "mfu": cost["speed"]["mfu"],
        "predicted_gib": trial.predicted_gib,
        "tokens": sum(r["train"]["tokens"] or 0 for r in records),
        "seconds": round(sum(r["train"]["seconds"] or 0 for r in records), 3),
        "attempts": trial.lease.number,
        "cost_class": trial.cost_class,
        "constraints": trial.foreseen or broken(measured, settings.constraints),
        "pruned_by": told.get("pruned_by"),
        "schedule": schedule_of(trial.config),
        "folder": trial.folder.name,
        "command": trial.command,
        "ended": round(time.time(), 3),
    }


def drop(trial: Trial, status: str, reason: str) -> None:
    """Write the record of a trial that ends without training; figures are the probe's."""
    record = {**empty_record(trial.config), "command": trial.command, "attempts": trial.lease.number}
    record |= {"status": status, "reason": reason}
    if trial.probe is not None:
        record |= {part: trial.probe[part] for part in ("memory", "speed", "params", "environment")}
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_record(trial.folder, record)
    if trial.kind != "duplicate":  # which says nothing new to a tracker
        leave_place(trial, trial.folder)
        freeze(trial.config, trial.folder)  # after the record: a folder with settings alone is a run that has begun
    trial.records[trial.seeds[0]] = record
    trial.waiting.clear()


def leave_place(trial: Trial, folder: Path) -> None:
    """Note in a run's folder what its tracker cannot read elsewhere while it runs: kind, and whose memory and speed."""
    probe = f"probes/{trial.cost_class}" if trial.probe is not None else None
    write_json(folder / TRIAL, {"number": trial.number, "kind": trial.kind, "probe": probe})


def finished_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run that is not to be continued."""
    try:
        record = read_if_there(folder)
    except ConfigError:
        return None
    return None if record is None or record["status"] in ("interrupted",) else record
