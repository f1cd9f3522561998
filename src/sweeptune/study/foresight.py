"""Peak memory of configurations that have not run, predicted beside the study, and corrected by those that have.

A prediction takes seconds and torch, which a study's own process does without; so one process predicts for it, reading
``estimates/<cost class>.yaml`` and writing ``.json`` beside it.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sweeptune.config.compose import dump
from sweeptune.config.schema import Config
from sweeptune.launch.worker import PARENT
from sweeptune.tracking.calibration import Calibration, Estimate, calibrate
from sweeptune.tracking.files import write_text

log = logging.getLogger("sweeptune")

PREDICTOR = "SWEEPTUNE_PREDICTOR"
"""Environment variable with another command for `sweeptune.launch.predictor`: a test's, which needs no GPU."""


class Foresight:
    """Predicts for a study on CUDA GPUs; elsewhere it knows nothing.

    Args:
        folder: The study's.
        environment: Variables for the process that predicts.
        cuda: Whether the study runs on GPUs.

    Attributes:
        measured: Peak memory in GiB of the cost classes that have run.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], *, cuda: bool) -> None:
        self.folder = folder / "estimates"
        self.on = cuda or PREDICTOR in os.environ
        self.measured: dict[str, float] = {}
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._asked: set[str] = set()
        self._known: dict[str, Estimate | None] = {}

    def ask(self, cost_class: str, config: Config) -> bool:
        """Have a cost class predicted; return whether that is still to come.

        Args:
            cost_class: Its name.
            config: What will be measured: the probe, where there is one.
        """
        if not self.on or self._look(cost_class):
            return False
        if self._process is not None and self._process.poll() is not None:
            log.warning("memory is not predicted any more (%s); probes tell", self.folder / "predict.log")
            self.on = False
            return False
        if cost_class not in self._asked:
            self._asked.add(cost_class)
            self.folder.mkdir(exist_ok=True)
            settings = self.folder / f"{cost_class}.yaml"
            write_text(settings, dump(config))
            with suppress(BrokenPipeError):  # it has died, which the next look sees
                print(settings, file=self._start().stdin, flush=True)
        return True

    def center(self, cost_class: str) -> float | None:
        """The corrected prediction in GiB, from what the other classes taught; None where there is none."""
        known = self._known.get(cost_class) if self._look(cost_class) else None
        return None if known is None else self._calibration(cost_class).center(known)

    def upper(self, cost_class: str) -> float | None:
        """What a run stays below with 95 % probability, in GiB."""
        known = self._known.get(cost_class)
        return None if known is None else self._calibration(cost_class).upper(known)

    def learn(self, cost_class: str, measured_gib: float | None) -> None:
        """Take in a measured peak; the first one of a class stands."""
        if measured_gib is not None:
            self.measured.setdefault(cost_class, measured_gib)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _calibration(self, but: str) -> Calibration:
        pairs = [(self._known.get(name), gib) for name, gib in sorted(self.measured.items()) if name != but]
        return calibrate([(known, gib) for known, gib in pairs if known is not None])

    def _look(self, cost_class: str) -> bool:
        """Read a prediction that has been made; return whether it is known how it went."""
        path = self.folder / f"{cost_class}.json"
        if cost_class not in self._known and path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if failed := content.get("failed"):
                log.warning("%s: memory cannot be predicted (%s); the probe tells", path, failed)
            self._known[cost_class] = None if failed else Estimate(**content)
        return cost_class in self._known

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            named = shlex.split(os.environ.get(PREDICTOR, ""))
            own = {**os.environ, **self._environment, PARENT: str(os.getpid())}
            with (self.folder / "predict.log").open("ab") as said:
                self._process = subprocess.Popen(
                    named or [sys.executable, "-m", "sweeptune.launch.predictor"],
                    # One thread, and no GPU: a probe measures at the same time.
                    env=own | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    text=True,
                    start_new_session=True,
                )
        return self._process
