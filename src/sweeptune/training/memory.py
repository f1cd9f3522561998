"""Peak memory, phase by phase, as DESIGN section 4 defines it: GiB = 2^30 bytes.

On a GPU the compared figure is what the allocator reserved plus what bitsandbytes pages (managed memory, which the
allocator does not see). On a CPU it is the process's peak resident set, which Linux lets us reset.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from sweeptune.training.placement import GIB

COMPARED_PHASES = ("steady", "eval")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryMeter:
    """Collects the peak of every phase of a run; one that comes again keeps its highest peak.

    Beside it stands the host's wall time, ``seconds``, without waiting for the device: the end of what a phase has
    issued may fall into the next one.

    Args:
        device: The device that is measured.

    Example:
        >>> meter = MemoryMeter(torch.device("cpu"))
        >>> meter.enter("load")
        >>> meter.enter("steady")
        >>> with meter.interlude("eval"):
        ...     evaluate()
        >>> meter.close()
        >>> meter.phases["eval"]["host_gib"]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: dict[str, dict[str, float]] = {}
        self.current: str | None = None
        self._since = time.perf_counter()

    def enter(self, name: str | None, *, release: bool = False) -> None:
        """End the present phase and begin another.

        Args:
            name: load, proof, first_step, steady, eval or save; None measures nothing.
            release: Give cached memory back first, so that it does not count for the new phase.
        """
        if self.current is not None:
            self._note(self.current)
        self.current, self._since = name, time.perf_counter()
        if release:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self._reset()

    def close(self) -> None:
        """End the last phase."""
        self.enter(None)

    @contextmanager
    def interlude(self, name: str, *, release: bool = False) -> Iterator[None]:
        """A phase inside another one, which goes on afterwards; ``release`` keeps either's cache out of the other."""
        outer = self.current
        self.enter(name, release=release)
        try:
            yield
        finally:
            self.enter(outer, release=release)

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        reset_host_peak()

    def _note(self, name: str) -> None:
        seen = {"host_gib": host_peak_bytes() / GIB, "paged_gib": paged_bytes() / GIB}
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            seen |= {
                "reserved_gib": torch.cuda.max_memory_reserved(self.device) / GIB,
                "allocated_gib": torch.cuda.max_memory_allocated(self.device) / GIB,
                "device_gib": (total - free) / GIB,
            }
        peaks = self.phases.setdefault(name, {})
        for key, value in seen.items():
            peaks[key] = max(peaks.get(key, 0.0), value)
        peaks["seconds"] = peaks.get("seconds", 0.0) + time.perf_counter() - self._since

    def summary(self) -> dict[str, Any]:
        """The ``memory`` part of result.json.

        ``peak_memory_gib`` is the maximum over steady steps and evaluation; a run of one step has no steady phase, and
        its first step stands in.
        """
        phases = self.phases
        compared = [phases[name] for name in COMPARED_PHASES if name in phases]
        if "steady" not in phases and "first_step" in phases:
            compared.append(phases["first_step"])
        cuda = self.device.type == "cuda"

        def peak(key: str, of: list[dict[str, float]]) -> float | None:
            return max((p[key] for p in of if key in p), default=None)

        paged = peak("paged_gib", compared)
        total = [(p["reserved_gib"] + p["paged_gib"]) if cuda else p["host_gib"] for p in compared]
        return {
            "peak_memory_gib": max(total, default=None),
            "peak_allocated_gib": peak("allocated_gib", compared),
            "peak_reserved_gib": peak("reserved_gib", compared),
            "paged_gib": paged,
            "device_gib": peak("device_gib", list(phases.values())),
            "host_peak_gib": peak("host_gib", list(phases.values())),
            "phases": phases,
        }


def reset_host_peak() -> None:
    """Set the kernel's peak resident set of this process (VmHWM) to its present value, where the kernel allows it."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return  # not Linux, or a sandbox without it: peaks then only ever grow


def host_peak_bytes() -> int:
    """Peak resident set of this process since the last reset, in bytes."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: fall through to the portable, momentary figure
    return int(psutil.Process().memory_info().rss)


def paged_bytes() -> int:
    """Bytes that bitsandbytes holds in managed memory (paged optimiser states)."""
    from bitsandbytes.functional import GlobalPageManager

    return sum(t.numel() * t.element_size() for t in GlobalPageManager.get_instance().paged_tensors)
