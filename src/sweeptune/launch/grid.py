"""The runs of a ``--multirun``, one process after another, and their comparison at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeptune.config.schema import Config
from sweeptune.launch.spawn import read_if_there, spawn

log = logging.getLogger("sweeptune")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    config: Config
    folder: Path
    command: str
    label: str
    """What distinguishes it from the others, such as ``method=lora``."""


def run_grid(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Run the jobs in turn; a failure is a record like any other and never stops the rest.

    Returns:
        The records, fewer than jobs when the user stopped the command.
    """
    records: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, 1):
        log.info("[%d/%d] %s -> %s", number, len(jobs), job.label, job.folder)
        known = read_if_there(job.folder)
        records.append(spawn(job.config, job.folder, job.command))
        if records[-1]["status"] == "interrupted":
            log.warning("stopped; the same command goes on with what is left")
            break
        if known is not None and known == records[-1]:
            log.info("kept: it was %s before (remove the folder to run it again)", known["status"])
    return records
