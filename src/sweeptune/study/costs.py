"""What a configuration costs, known before its loss: measured by a probe, or predicted to be too much for one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import optuna

from sweeptune.config.schema import Config, StudyConfig
from sweeptune.study.ask import note
from sweeptune.study.foresight import Foresight
from sweeptune.study.trial import (
    PEAK,
    SHORT,
    Trial,
    broken,
    drop,
    figure,
    finished_record,
    is_early,
    is_its_own_probe,
    probe_of,
)


class Costs:
    """Memory and speed of a study's cost classes.

    Args:
        folder: The study's; probes lie in its ``probes``.
        settings: The study's.
        study: Optuna's.
        foresight: Predicts memory.
    """

    def __init__(self, folder: Path, settings: StudyConfig, study: optuna.Study, foresight: Foresight) -> None:
        self.folder, self.settings, self.study, self.foresight = folder, settings, study, foresight

    def probe(self, trial: Trial) -> tuple[Config, Path]:
        """The probe of a trial's cost class: its settings and its folder."""
        return probe_of(trial.config, self.settings.probe_steps), self.folder / "probes" / trial.cost_class

    def unmeasured(self, trial: Trial) -> bool:
        """Whether a probe is still needed; takes the figures of one that has ended, and drops what it rules out."""
        if trial.probe is not None or is_its_own_probe(trial.config, self.settings):
            return False
        self.measure(trial)
        if trial.probe is None:
            return True
        self._judge(trial)
        return False

    def measure(self, trial: Trial) -> None:
        """Take memory and speed from the probe of the trial's cost class, where there is one."""
        if trial.probe is None and not is_its_own_probe(trial.config, self.settings):
            trial.probe = finished_record(self.probe(trial)[1])
        if trial.probe is not None:
            self.foresight.learn(trial.cost_class, figure(trial.probe, "peak_memory_gib"))

    def foreseen(self, trial: Trial) -> bool:
        """Whether a trial may start as far as predictions go; drops one that is predicted to break a limit.

        Only what a sampler proposed has to wait for its prediction, and is dropped for it, before anything of its kind
        has run: a baseline and a point of a grid were asked for.
        """
        own = is_its_own_probe(trial.config, self.settings)
        measured = trial.config if own else self.probe(trial)[0]
        coming = trial.probe is None and self.foresight.ask(trial.cost_class, measured)
        limits = [limit for name, limit in self.settings.constraints.items() if SHORT.get(name, name) == PEAK]
        asked_for = trial.kind != "trial" or self.settings.sampler == "grid"
        begun = trial.cost_class in self.foresight.measured or (trial.folder / "config.yaml").exists()
        if not limits or asked_for or begun:
            return True
        center, upper = self.foresight.center(trial.cost_class), self.foresight.upper(trial.cost_class)
        if center is None or upper is None or upper <= min(limits):
            return not coming
        trial.kind, trial.foreseen = "misfit", {"peak_memory_gib": upper - min(limits)}
        note(self.study, trial.number, "kind", trial.kind)
        words = f"peak_memory_gib {center:.2f}, below {upper:.2f} with 95 % probability; the limit is {min(limits):g}"
        drop(trial, "pruned", f"predicted to break study.constraints: {words}")
        return False

    def _judge(self, trial: Trial) -> None:
        """Drop a configuration whose probe failed or breaks a limit."""
        probe = trial.probe
        assert probe is not None
        if probe["status"] != "completed":
            drop(trial, probe["status"], f"in the probe: {probe['reason']}")
            if probe["status"] != "oom":  # which says nothing of the others of its class: they are measured again
                folder = self.probe(trial)[1]
                with suppress(OSError):  # another process has done so
                    folder.rename(folder.with_name(f"{folder.name}-of-{trial.number}"))
            return
        early = [name for name in self.settings.constraints if is_early(name)]
        measured = {name: figure(probe, name) for name in early}
        over = {n: by for n, by in broken(measured, self.settings.constraints).items() if by > 0}
        if over:
            words = ", ".join(f"{n} {measured[n]:.4g}, the limit is {self.settings.constraints[n]:g}" for n in over)
            drop(trial, "pruned", f"breaks study.constraints in the probe: {words}")
