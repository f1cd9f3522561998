"""Watches running trials: at each rung it asks whether they are clearly behind (`sweeptune.study.rungs`)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeptune.config.schema import StudyConfig
from sweeptune.config.study_rules import grows
from sweeptune.study.rungs import Curve, prune
from sweeptune.study.store import Store, eligible
from sweeptune.study.trial import Trial, figure, is_early, schedule_of
from sweeptune.tracking.files import write_json

log = logging.getLogger("sweeptune")


class Pruner:
    """What is known of the curves of a study.

    Args:
        store: The study's folder.
        settings: Its settings; ``rungs`` says where curves are looked at.
    """

    def __init__(self, store: Store, settings: StudyConfig) -> None:
        self.store, self.settings = store, settings
        self._curves: dict[int, list[Curve]] = {}

    def _read(self, line: dict[str, Any]) -> list[Curve]:
        """The curves of a trial that has ended."""
        folder = self.store.folder / line["folder"]
        seeds = line["seeds"]
        return [
            Curve(
                number=line["number"],
                method=line["method"],
                schedule=line["schedule"],
                configuration=json.dumps(line["params"], sort_keys=True),
                seed=seed,
                losses=losses_in(folder if len(seeds) == 1 else folder / f"seed-{seed}"),
                finished=eligible(line),
                baseline=line["kind"] == "baseline",
                costs=self._costs(line["values"]),
            )
            for seed in seeds
        ]

    def _costs(self, values: Mapping[str, float | None]) -> tuple[float, ...]:
        """The objectives beside the loss, smaller being better; what is unknown spares nobody."""
        found = []
        for name in self.settings.objectives:
            value = values.get(name)
            if is_early(name):
                found.append(math.nan if value is None else -value if grows(name) else value)
        return tuple(found)

    def look(self, trial: Trial, seed: int, folder: Path) -> None:
        """Ask a running trial to end where it is clearly behind; the run finds the file and says so in its record."""
        note = folder / "pruned.json"
        if trial.kind == "baseline" or note.exists():
            return
        losses = losses_in(folder)
        if len(losses) < 2:  # the first is before training
            return
        for number in self.store.trials.keys() - self._curves.keys():
            self._curves[number] = self._read(self.store.trials[number])
        mine = Curve(
            number=trial.number,
            method=trial.method,
            schedule=schedule_of(trial.config),
            configuration=json.dumps(trial.point, sort_keys=True),
            seed=seed,
            losses=losses,
            finished=False,
            baseline=False,
            costs=self._costs({name: figure(trial.probe or {}, name) for name in self.settings.objectives}),
        )
        others = [curve for curves in self._curves.values() for curve in curves]
        found = prune(mine, others, self.settings)
        if found is None:
            return
        by = ", ".join(map(str, found.by))
        reason = (
            f"at {found.rung_tokens:,} tokens its eval loss is {found.loss:.4f}; trials {by} were better there by more "
            f"than twice the spread over seeds, {found.spread:.4f}"
        )
        write_json(
            note,
            {
                "reason": reason,
                "rung_tokens": found.rung_tokens,
                "by": list(found.by),
                "loss": found.loss,
                "spread": found.spread,
            },
        )


def losses_in(folder: Path) -> tuple[tuple[int, float], ...]:
    """The evaluations of a run so far: (tokens, eval loss)."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return ()
    text = path.read_bytes()
    found: dict[int, float] = {}
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        if b'"eval_loss"' in line:
            value = json.loads(line)
            found[value["tokens"]] = value["eval_loss"]
    return tuple(sorted(found.items()))
