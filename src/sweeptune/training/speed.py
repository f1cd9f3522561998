"""Throughput as DESIGN section 4 defines it: real tokens over the wall time of all steady steps, synchronised only at
the ends of the window; evaluation, proofs and saving stop the watch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import psutil
import torch

from sweeptune.tracking.record import WARMUP_STEPS

FOREIGN_CPU_SHARE = 0.10
FOREIGN_GPU_BYTES = 2 * 2**30


class Stopwatch:
    """Times the steady steps of a run.

    Args:
        device: The device that is timed.

    Example:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> watch.step_done(tokens=512, loss_tokens=100)
        >>> with watch.paused():
        ...     evaluate()
        >>> watch.summary()["tokens_per_s"]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        self.tokens = 0
        self.loss_tokens = 0
        self.seconds = 0.0
        self.marks: list[list[torch.cuda.Event | float]] = [[]]
        self._since: float | None = None
        self._begin = time.perf_counter()
        self._own = _own_processes()
        self._cpu_before: tuple[float, float] | None = None

    def step_done(self, tokens: int, loss_tokens: int) -> None:
        """Note that a step has been issued; the first steps open the window."""
        self.steps += 1
        if self.steps > WARMUP_STEPS:
            self.tokens += tokens
            self.loss_tokens += loss_tokens
            self._mark()
        elif self.steps == WARMUP_STEPS:
            self._cpu_before = self._cpu_times()
            self._open()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the watch for what is not a training step."""
        running = self._since is not None
        self._close()
        yield
        if running:
            self._open()

    def _open(self) -> None:
        self._synchronize()
        self._since = time.perf_counter()
        self.marks.append([])
        self._mark()

    def _close(self) -> None:
        if self._since is not None:
            self._synchronize()
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _mark(self) -> None:
        # Events are read at the end only: a step is never waited for.
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks[-1].append(event)
        else:
            self.marks[-1].append(time.perf_counter())

    def _cpu_times(self) -> tuple[float, float]:
        times, own = psutil.cpu_times(), 0.0
        for process in self._own:
            with suppress(psutil.NoSuchProcess):  # another rank may have ended
                spent = process.cpu_times()
                own += spent.user + spent.system
        return sum(times) - times.idle - getattr(times, "iowait", 0.0), own

    def exclusive(self) -> bool:
        """Whether the run had its device to itself during the steady steps.

        On a CPU: others took at most a tenth of the busy time. On a GPU: nobody else holds memory there, beyond what a
        CUDA context and the driver take.
        """
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return total - free - torch.cuda.memory_reserved(self.device) < FOREIGN_GPU_BYTES
        if self._cpu_before is None:
            return True
        busy, own = (now - before for now, before in zip(self._cpu_times(), self._cpu_before, strict=True))
        return busy <= 0 or (busy - own) / busy <= FOREIGN_CPU_SHARE

    def rate(self) -> float | None:
        """Real tokens per second of the steady steps, up to the last pause; None before there are any."""
        return self.tokens / self.seconds if self.seconds and self.tokens else None

    def summary(self) -> dict[str, float | bool | None]:
        """The measured part of ``speed`` in result.json; None where the run was too short to have steady steps."""
        self._close()
        wall = time.perf_counter() - self._begin
        durations = [ms for window in self.marks for ms in _gaps_ms(window)]
        return {
            "tokens_per_s": self.rate(),
            "loss_tokens_per_s": self.loss_tokens / self.seconds if self.seconds and self.tokens else None,
            "step_ms": statistics.median(durations) if durations else None,
            "excluded_s": wall - self.seconds,
            "exclusive": self.exclusive(),
        }


def _own_processes() -> list[psutil.Process]:
    """This process, and the other ranks of the run, which are torchrun's other children."""
    this = psutil.Process()
    parent = this.parent() if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 else None
    return parent.children() if parent is not None else [this]


def _gaps_ms(marks: list[torch.cuda.Event | float]) -> list[float]:
    gaps = []
    for a, b in pairwise(marks):
        if isinstance(a, float) and isinstance(b, float):
            gaps.append((b - a) * 1000)
        elif isinstance(a, torch.cuda.Event) and isinstance(b, torch.cuda.Event):
            gaps.append(a.elapsed_time(b))
    return gaps
