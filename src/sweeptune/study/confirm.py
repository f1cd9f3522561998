"""The runs that confirm a search: each method's best configuration, on seeds that the search has not seen."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeptune.config.compose import load
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config, StudyConfig, TrackerConfig
from sweeptune.study.lease import Lease, Leases
from sweeptune.study.store import Store, eligible
from sweeptune.tracking.files import write_json
from sweeptune.tracking.record import read_record

AWAY = 1000
"""How far the seeds of confirmation lie above the first seed of the search."""


class Confirmation:
    """Plans these runs once, when the search is over, and hands them out.

    Args:
        store: The study's folder.
        settings: ``confirm_seeds`` says how many.
        seed: The first seed of the search.
        tracker: Where their metrics go, whatever that was for the search.
    """

    def __init__(self, store: Store, settings: StudyConfig, seed: int, tracker: TrackerConfig) -> None:
        self.store, self.settings, self.seed, self.tracker = store, settings, seed, tracker
        self.folder = store.folder / "confirm"

    def plan(self) -> dict[str, Any]:
        """Which trial of each method is confirmed, with which seeds (``confirm/plan.json``): its best, also where more
        trials came after an earlier confirmation. Seeds are only added."""
        path = self.folder / "plan.json"
        with self.store.lock():
            self.store.refresh()
            known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seeds": []}
            best, seen = best_of(self.store), {seed for line in self.store.trials.values() for seed in line["seeds"]}
            unseen = (seed for seed in itertools.count(self.seed + AWAY) if seed not in {*seen, *known["seeds"]})
            missing = max(0, self.settings.confirm_seeds - len(known["seeds"]))
            seeds = known["seeds"] + list(itertools.islice(unseen, missing))
            for method in [m for m in best if known.get(m) not in (None, best[m])]:
                if self._put_away(method, known[method]):
                    del known[method]
            plan = {**best, **known, "seeds": seeds}
            if plan != known and plan["seeds"]:
                self.folder.mkdir(exist_ok=True)
                write_json(path, plan)
        return plan

    def _put_away(self, method: str, number: int) -> bool:
        """Trials were added and one of them is better: keep the runs that confirmed the former best apart.

        Returns:
            False while one of them still runs.
        """
        runs = list(self.folder.glob(f"{method}-*"))
        if not all(map(_ended, runs)):
            return False
        earlier = self.folder / "earlier"
        earlier.mkdir(parents=True, exist_ok=True)
        for run in runs:
            run.rename(earlier / f"{number}-{run.name}")
        return True

    def work(self) -> list[tuple[str, int, Path]]:
        """The runs that are still to be made: trial, seed and folder."""
        plan = self.plan() if self.settings.confirm_seeds else {"seeds": []}
        seeds = plan.pop("seeds")
        runs = [(number, seed, self.folder / f"{method}-{seed}") for seed in seeds for method, number in plan.items()]
        return [run for run in runs if not _ended(run[2])]

    def next(self, leases: Leases) -> tuple[Config, Path, str, Lease] | None:
        """The next run that nobody makes yet."""
        for number, seed, folder in self.work():
            lease = leases.take(folder)
            if lease is not None:
                line = self.store.trials[int(number)]
                return self._settings(line, seed), folder, line["command"] + f" seed={seed} eval.test=true", lease
        return None

    def _settings(self, line: dict[str, Any], seed: int) -> Config:
        folder = self.store.folder / line["folder"]
        config = load((folder if len(line["seeds"]) == 1 else folder / f"seed-{line['seeds'][0]}") / "config.yaml")
        judged = replace(config.eval, test=True, merged=config.method.name == "qlora")
        train = replace(config.train, eval_at=[])
        return replace(config, seed=seed, eval=judged, train=train, tracker=self.tracker)

    def over(self) -> bool:
        """Whether every run has ended."""
        return not self.work()


def best_of(store: Store) -> dict[str, int]:
    """The trial with the lowest eval loss of each method, among those that completed within the limits."""
    best: dict[str, dict[str, Any]] = {}
    for _, line in sorted(store.trials.items()):
        known = best.get(line["method"])
        if eligible(line) and (known is None or line["eval_loss"] < known["eval_loss"]):
            best[line["method"]] = line
    return {method: line["number"] for method, line in best.items()}


def _ended(folder: Path) -> bool:
    try:
        return (folder / "result.json").exists() and read_record(folder)["status"] != "interrupted"
    except ConfigError:
        return False
