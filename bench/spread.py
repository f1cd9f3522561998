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
    waits: bool = False
    """Whether it reads a line from stdin before it does anything beyond imports: it is started ahead."""


@dataclass
class Running:
    """A task that has been started."""

    task: Task
    process: subprocess.Popen[bytes]
    began: float


@dataclass
class Place:
    """Where one run at a time can be."""

    slot: dict[str, str]
    """Its environment."""
    running: Running | None = None
    ahead: Running | None = None
    """What has been started and waits for the place."""


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
    """Run all tasks, each in a place of its own; whatever ends this function ends what runs or waits.

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
    waiting, longest = list(tasks), 0.0
    every = [Place(slot) for slot in places]
    try:
        while True:
            for place in every:
                if place.running is None and time.monotonic() + longest <= ends:
                    place.running = following(place, every, waiting)
            for place in every:
                if place.running and not place.ahead and waiting and waiting[0].waits:
                    place.ahead = start(waiting.pop(0), place.slot)
            if not any(place.running for place in every):
                break
            time.sleep(PAUSE_S)
            for place in every:
                if (run := place.running) is None:
                    continue
                code, seconds = run.process.poll(), time.monotonic() - run.began
                if code is None and seconds < timeout_s:
                    continue
                end(run.process)
                place.running = None
                longest = max(longest, seconds)
                ended(run.task, code, seconds)
    finally:
        for place in every:
            for run in filter(None, (place.running, place.ahead)):
                end(run.process)
    unstarted = [place.ahead.task for place in every if place.ahead]
    return sorted([*unstarted, *waiting], key=list(tasks).index)


def following(place: Place, every: Sequence[Place], waiting: list[Task]) -> Running | None:
    """The next run of a free place, begun; None where no task is left."""
    run, place.ahead = place.ahead, None
    if run is None and not waiting:
        # What waits for another place could be here at once; its environment is that of the other place.
        for other in every:
            if other.ahead is not None and other.running is not None:
                end(other.ahead.process)
                waiting.append(other.ahead.task)
                other.ahead = None
                break
    if run is None and waiting:
        run = start(waiting.pop(0), place.slot)
    if run is not None:
        release(run)
    return run


def start(task: Task, slot: dict[str, str]) -> Running:
    """Start a task in a session of its own."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("w") as log:
        process = subprocess.Popen(
            task.command,
            stdin=subprocess.PIPE if task.waits else None,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment() | slot,
            start_new_session=True,
        )
    return Running(task, process, time.monotonic())


def release(run: Running) -> None:
    """Let a task that waits go on; its time counts from here."""
    run.began = time.monotonic()
    if run.process.stdin is not None:
        with suppress(BrokenPipeError), run.process.stdin as line:  # what has died is found out by its exit status
            line.write(b"\n")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
