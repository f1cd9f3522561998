"""``hydra/sweeper: study``: what ``--multirun`` does is a study (`sweeptune.study`)."""

# No `from __future__ import annotations` here: Hydra loads plugins before they are in sys.modules, where dataclasses
# would look annotations up.
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class StudyConf:
    """``params`` is what a recipe sweeps unless the command line does: setting -> values in Hydra's grammar."""

    _target_: str = "hydra_plugins.sweeptune.study_sweeper.StudySweeper"
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudyConf, provider="sweeptune")


class StudySweeper(Sweeper):  # type: ignore[misc]
    """Hands the command line over."""

    def __init__(self, params: Any) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        # Hydra imports every plugin at every start: nothing heavy at the top of this file.
        from sweeptune.launch import entry
        from sweeptune.study.command import run_study

        entry.OUTCOME.study = run_study(arguments, self.folder)
