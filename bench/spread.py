"""Independent commands over the GPUs of one machine: one process each, at most so many at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common import ROOT

PAUSE_S = 0.1
Ended = Callable[["Task", int | None, float], None]
"""Gets a task, its exit status (None: it took too long) and its seconds."""


@dataclass(frozen=True)
class Task:
    """A command whose output goes to a file."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass
class Running:
    """A task that has been started."""

    task: Task
    process: subprocess.Popen[bytes]
    slot: dict[str, str]
    began: float


def slots(gpus: int, at_once: int = 1) -> list[dict[str, str]]:
    """The environment of every place where a run can be, so that the first runs go to different GPUs.

    Args:
        gpus: How many GPUs; of those in CUDA_VISIBLE_DEVICES, where that is set.
        at_once: Runs that share a GPU.

    Example:
        >>> slots(1, at_once=2)
        [{}, {}]
    """
    if gpus <= 1:
        return [{} for _ in range(at_once)]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(gpus)]
    if len(names) < gpus:
        raise SystemExit(f"--gpus {gpus}: CUDA_VISIBLE_DEVICES={given} names {len(names)}")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:gpus]] * at_once


def environment() -> dict[str, str]:
    """What a run sees: no hub, and src/ first."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def spread(
    tasks: Sequence[Task], places: Sequence[dict[str, str]], ended: Ended, *, timeout_s: float, ends: float
) -> list[Task]:
    """Run all tasks, each in a place of its own; whatever ends this function ends what runs.

    Args:
        tasks: In the order in which they start.
        places: See `slots`.
        ended: Called after each.
        timeout_s: What a task may take.
        ends: When (`time.monotonic`) the last one has to be over: none starts that would take longer, as far as the
            longest of those before tells.

    Returns:
        Those that were not started.
    """
    waiting, free = list(tasks), list(places)
    running: list[Running] = []
    longest = 0.0
    try:
        while running or waiting:
            while waiting and free and time.monotonic() + longest <= ends:
                running.append(start(waiting.pop(0), free.pop(0)))
            if not running:
                break
            time.sleep(PAUSE_S)
            for run in [*running]:
                code, seconds = run.process.poll(), time.monotonic() - run.began
                if code is None and seconds < timeout_s:
                    continue
                end(run.process)
                running.remove(run)
                free.append(run.slot)
                longest = max(longest, seconds)
                ended(run.task, code, seconds)
    finally:
        for run in running:
            end(run.process)
    return waiting


def start(task: Task, slot: dict[str, str]) -> Running:
    """Start a task in a session of its own."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("w") as log:
        process = subprocess.Popen(
            task.command, stdout=log, stderr=log, cwd=ROOT, env=environment() | slot, start_new_session=True
        )
    return Running(task, process, slot, time.monotonic())


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
