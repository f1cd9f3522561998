"""Which trial comes next: one whose owner died, a baseline, a point of the grid, or what the sampler proposes."""

from __future__ import annotations

import logging
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import StudyConfig
from sweeptune.study import ask as asking
from sweeptune.study.grid import firsts, from_header
from sweeptune.study.lease import Lease, Leases
from sweeptune.study.space import Space
from sweeptune.study.store import COUNTING, Store, begun
from sweeptune.study.trial import Trial, command_of, compose_trial, drop, finished_record, flat

log = logging.getLogger("sweeptune")

FAILED = ("oom", "diverged", "timeout", "crashed", "lost", "invalid_config", "invalid_run")
SEEDS_TO_PRUNE = 2
"""Seeds of a baseline where trials may be pruned: what the seed alone does must be known first."""


class Queue:
    """Hands out trials; decides under the study's lock, so that no two processes get the same one.

    Args:
        store: The study's folder.
        study: Optuna's.
        fixed: Overrides that all trials share.
        space: What is searched.
        settings: How.
        seed: The first seed.
        total: How many trials there shall be; None: as many as the space has.
        leases: Ours.

    Attributes:
        held: Trials that this process works on, by number.
        idle: Whether no trial is running, here or elsewhere, and none is to come.
    """

    def __init__(
        self,
        store: Store,
        study: optuna.Study,
        fixed: list[str],
        space: Space,
        settings: StudyConfig,
        seed: int,
        total: int | None,
        leases: Leases,
    ) -> None:
        self.store, self.study, self.fixed, self.space, self.settings = store, study, fixed, space, settings
        self.seed, self.total, self.leases = seed, total, leases
        self.held: dict[int, Trial] = {}
        self.idle = False
        self._said = False
        self.merged = from_header(store.read())
        self._baselines: dict[str, dict[str, Any]] = {}

    def acquire(self) -> Trial | None:
        """The next trial: one whose owner died, or a new one."""
        with self.store.lock():
            self.store.refresh()
            trials = self._trials()
            unfinished = [trial for trial in trials if self._open(trial)]
            for frozen in unfinished:
                if frozen.number not in self.held:
                    lease = self.leases.take(self.store.folder / str(frozen.number))
                    if lease is not None:
                        return self._hold(frozen.number, lease)
            if not self._wants_more(trials):
                self.idle = not unfinished
                return None
            self.study.sampler = optuna.samplers.RandomSampler(seed=0)  # it only numbers: `_point` draws
            number = self.study.ask().number
            lease = self.leases.take(self.store.folder / str(number))
            if lease is None:
                raise ConfigError(
                    f"{self.store.folder / str(number)}: somebody works here, although trial {number} is new; use "
                    "another study.name, or remove what does not belong to the study"
                )
            return self._hold(number, lease)

    def _wants_more(self, trials: list[FrozenTrial]) -> bool:
        """Whether there is to be another trial, with those that run counted."""
        if self.total is not None and begun(trials) >= self.total:
            return False
        lines = list(self.store.trials.values())
        return not self._gave_up(lines) and len(asking.exhausted(lines, self.space.methods)) < len(self.space.methods)

    def _point(self, number: int) -> tuple[str, dict[str, Any]]:
        """Kind and configuration of a trial: what it was given, or, where its owner died too early, would have been."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        if "point" in frozen.user_attrs:
            return frozen.user_attrs["kind"], frozen.user_attrs["point"]
        baselines = firsts(self.space, self.settings, self.merged)
        if number < len(baselines):
            kind, point = "baseline", baselines[number]
            trial = asking.ask_for(self.study, self.space, self._with_defaults(point), number)
        else:
            kind, method = "trial", self._method(number)
            trial, point = asking.sample_again(
                self.study, number, self.space, self.settings, self.seed, method, self.merged
            )
        trial.set_user_attr("kind", kind)
        trial.set_user_attr("point", point)
        return kind, point

    def _with_defaults(self, point: dict[str, Any]) -> dict[str, Any]:
        """A baseline's point with the values of the swept settings that it leaves at their defaults."""
        values = flat(compose_trial(self.fixed, self.space, point, self.settings))
        keys = [parameter.key for parameter in self.space.parameters if parameter.key in values]
        return {key: values[key] for key in keys} | point

    def _whole(self, baseline: dict[str, Any]) -> dict[str, Any]:
        """A baseline's point as a proposal would be written, composed once."""
        key = str(sorted(baseline.items()))
        if key not in self._baselines:
            self._baselines[key] = self._with_defaults(baseline)
        return self._baselines[key]

    def _method(self, number: int) -> str | None:
        """Whose turn it is, as far as the trials before this one tell."""
        lines = [line for line in self.store.trials.values() if line["number"] < number]
        others = self.study.get_trials(deepcopy=False)[:number]
        running = [
            {"method": trial.user_attrs["point"].get("method", self.space.methods[0]), "tokens": None}
            for trial in others
            if "point" in trial.user_attrs and trial.number not in self.store.trials
        ]
        return asking.next_method(lines, running, self.space.methods, self.settings.allocate)

    def _hold(self, number: int, lease: Lease) -> Trial:
        kind, point = self._point(number)
        frozen = self.study.get_trials(deepcopy=False)[number]
        folder = self.store.folder / str(number)
        config = compose_trial(self.fixed, self.space, point, self.settings)
        seeds = self._seeds(kind, point, config.seed)
        held = Trial(
            number=number,
            kind=kind,
            point=dict(point),
            config=config,
            command=command_of(self.fixed, self.space, point, config.seed),
            folder=folder,
            lease=lease,
            seeds=seeds,
            deaths=frozen.user_attrs.get("deaths", 0),
        )
        for seed in seeds:
            record = finished_record(held.run_folder(seed))
            if record is not None and (len(seeds) == 1 or record["status"] == "completed"):
                held.records[seed] = record
        if kind in ("duplicate", "misfit") and not held.records:
            held.kind = "trial"  # its process died before it could say why: decide again
        failed = any(record["status"] != "completed" for record in held.records.values())
        held.waiting = [] if failed else [seed for seed in seeds if seed not in held.records]
        self.held[number] = held
        if held.waiting:
            self._consider(held)
        return held

    def _consider(self, trial: Trial) -> None:
        """End a new trial before anything runs, where its result is known."""
        if trial.kind != "trial" or self.settings.sampler == "grid":
            return
        for line in self.store.trials.values():
            if line["number"] >= trial.number or line["kind"] not in COUNTING or line["status"] != "completed":
                continue
            if trial.point == (self._whole(line["params"]) if line["kind"] == "baseline" else line["params"]):
                trial.kind = "duplicate"
                asking.note(self.study, trial.number, "kind", trial.kind)
                drop(trial, "pruned", f"the same as trial {line['number']}")
                return

    def over(self) -> bool:
        """Whether no trial runs anywhere and none is to come."""
        with self.store.lock():
            self.store.refresh()
            trials = self._trials()
        return not any(map(self._open, trials)) and not self._wants_more(trials)

    def _trials(self) -> list[FrozenTrial]:
        """Optuna's trials; it is told of those whose process died between their line and that."""
        trials = self.study.get_trials(deepcopy=False)
        untold = [t.number for t in trials if t.state == TrialState.RUNNING and t.number in self.store.trials]
        for number in untold:
            asking.tell(self.study, number, self.store.trials[number], self.settings)
        return self.study.get_trials(deepcopy=False) if untold else trials

    def _open(self, trial: FrozenTrial) -> bool:
        """Whether a trial has not ended: it has no line, though Optuna may have been told of it before the disk was."""
        return trial.number not in self.store.trials

    def _seeds(self, kind: str, point: dict[str, Any], first: int) -> list[int]:
        """One run each: a baseline has several where trials may be pruned."""
        if "seed" in point:
            return [first]
        count = self.settings.replicates
        if kind == "baseline" and self.settings.prune:
            count = max(count, SEEDS_TO_PRUNE)
        return [first + k for k in range(count)]

    def _gave_up(self, lines: list[dict[str, Any]]) -> bool:
        """Whether a study only fails."""
        lines = [line for line in lines if line["kind"] in COUNTING]
        if any(line["status"] in ("completed", "pruned") for line in lines):
            return False
        failed = sum(line["status"] in FAILED for line in lines)
        if failed >= self.settings.max_failures and not self._said:
            log.error("giving up: %d trials failed and none completed (study.max_failures); see their reasons", failed)
            self._said = True
        return failed >= self.settings.max_failures
