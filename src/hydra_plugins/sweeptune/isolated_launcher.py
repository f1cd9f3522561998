"""``hydra/launcher: isolated``: one process per run, so that no run inherits another's memory, generators or crash."""

# No `from __future__ import annotations` here: Hydra loads plugins before they are in sys.modules, where dataclasses
# would look annotations up.
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class IsolatedConf:
    """The launcher has no settings of its own."""

    _target_: str = "hydra_plugins.sweeptune.isolated_launcher.IsolatedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="isolated", node=IsolatedConf, provider="sweeptune")


class IsolatedLauncher(Launcher):  # type: ignore[misc]
    """Compose every run first, then let `sweeptune.launch.grid` run them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        # Hydra imports every plugin at every start: nothing heavy at the top of this file.
        from sweeptune.config.compose import to_config, without_hydra
        from sweeptune.launch import entry
        from sweeptune.launch.grid import Job, run_grid

        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(composed):
                composed.hydra.job.id = composed.hydra.job.num = number
            jobs.append(
                Job(
                    config=to_config(without_hydra(composed)),
                    folder=Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir,
                    command=shlex.join(["python", "train.py", *overrides]),
                    label=" ".join(
                        o for o in overrides if sum(o in other for other in job_overrides) < len(job_overrides)
                    ),
                )
            )
        entry.OUTCOME.study = Path(self.config.hydra.sweep.dir)
        entry.OUTCOME.records += run_grid(jobs)
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
