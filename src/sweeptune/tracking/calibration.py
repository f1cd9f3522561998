"""Predicted peak memory, and what measured runs teach about the prediction. Nothing here needs torch.

Measured over predicted is 1 within half a percent for most runs, and off by up to a fifth where the allocator found no
hole for one of the large blocks of the loss that the replay found one for, or the other way round (bench/RESULTS.md).
Such jumps come with every method; so what runs share is taken from the median, which they do not move, and the bound
from the spread of all of them around it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.files import write_text

SCALE = 0.07
"""Standard deviation of the logarithm of measured over predicted, where no run has shown it; bench/RESULTS.md has 0.06
to 0.07."""
DEGREES = 6.0
"""How sure that is: as if so many runs had shown it."""
CONFIDENCE = 0.95
CONTEXT_GIB = 0.6
"""Room that a CUDA context may take beside the allocator, whose peak is what is predicted and measured."""
SCHEMA = 1


@dataclass(frozen=True)
class Estimate:
    """A predicted peak, in GiB, without the CUDA context.

    Attributes:
        peak_memory_gib: What result.json will call so: reserved by the allocator, plus pages of a paged optimiser.
        allocated_gib: Of it, what tensors fill at the peak.
        phase: Where the peak is: steady or eval.
        phases: The peak of each phase.
        parts: What fills it: weights, quantized, adapters, gradients, optimizer, casts (weights in the compute
            precision), activations, logits, temporary, workspace, and what the allocator holds beyond that (cache).
        paged_gib: Optimiser state in managed memory.
        method: The method's name.
        checkpointing: Whether activations are recomputed.
        details: Micro-batch, longest row, positions with logits, the same of evaluation's largest batch (``eval``),
            attention back-end, kernels, and what waits in the host's memory (``offloaded_gib``).
    """

    peak_memory_gib: float
    allocated_gib: float
    phase: str
    phases: dict[str, float]
    parts: dict[str, float]
    paged_gib: float
    method: str
    checkpointing: bool
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A measured run."""

    predicted_gib: float
    measured_gib: float


@dataclass(frozen=True)
class Calibration:
    """What measured runs teach; without any, the bound is a wide one.

    Example:
        >>> calibration = calibrate([(estimate, 5.1)])
        >>> calibration.center(other), calibration.upper(other)
        (5.0, 5.3)
    """

    points: tuple[Point, ...] = ()

    def center(self, estimate: Estimate) -> float:
        """The corrected prediction, in GiB."""
        return estimate.peak_memory_gib * math.exp(self._error()[0])

    def upper(self, estimate: Estimate) -> float:
        """What a run stays below with 95 % probability, in GiB."""
        from scipy.stats import t

        mean, scale, degrees = self._error()
        return estimate.peak_memory_gib * math.exp(mean + float(t.ppf(CONFIDENCE, degrees)) * scale)

    def _error(self) -> tuple[float, float, float]:
        """Median, scale and degrees of freedom of the logarithm of measured over predicted."""
        seen = np.log([point.measured_gib / point.predicted_gib for point in self.points])
        degrees = DEGREES + len(seen)
        middle = float(np.median(seen)) * len(seen) / degrees if len(seen) else 0.0
        variance = (DEGREES * SCALE**2 + float(((seen - middle) ** 2).sum())) / degrees
        return middle, math.sqrt(variance), degrees

    def save(self, file: Path) -> None:
        """Write it as JSON, atomically."""
        write_text(file, json.dumps({"schema": SCHEMA, "points": [asdict(point) for point in self.points]}, indent=1))


def lines(estimate: Estimate, calibration: Calibration | None = None, capacity_gib: float | None = None) -> list[str]:
    """An estimate for people, and whether it fits into a capacity where one is given."""
    known = calibration or Calibration()
    shape = estimate.details
    what, largest = ("batch of evaluation", shape["eval"]) if estimate.phase == "eval" else ("micro-batch", shape)
    text = [
        f"peak memory {known.center(estimate):.2f} GiB on a CUDA GPU, in the phase {estimate.phase}; "
        f"with 95 % probability below {known.upper(estimate):.2f} GiB (beside the CUDA context)",
        f"largest {what}: {largest['rows']} rows of {largest['length']} tokens, logits at {largest['positions']} "
        f"positions; attention {shape['attention']}, kernels {shape['kernels']}",
    ]
    parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
    text += [f"  {name:12s} {size:8.2f} GiB" for name, size in parts if size >= 0.005]
    if offloaded := shape["offloaded_gib"]:
        text.append(f"  {'offloaded':12s} {offloaded:8.2f} GiB, in the host's memory")
    if estimate.paged_gib:
        text.append(f"  {'paged states':12s} {estimate.paged_gib:8.2f} GiB, in managed memory")
    if estimate.parts["cache"] > 0.2 * estimate.peak_memory_gib:
        text.append("cache: micro-batches of many sizes leave holes that are reserved and not used")
    if capacity_gib is not None:
        text.append(_fit(estimate, capacity_gib, known))
    return text


def _fit(estimate: Estimate, capacity: float, known: Calibration) -> str:
    """Whether a capacity in GiB holds the bound (`fits`), only the peak itself, or neither."""
    center, upper, size = known.center(estimate), known.upper(estimate), f"{capacity:g} GiB beside the CUDA context"
    if fits(estimate, capacity, known):
        return f"fits into {size}: {capacity - upper:.2f} GiB to spare above the bound of 95 %"
    if center <= capacity:
        spare, lacking = capacity - center, upper - capacity
        return f"may not fit into {size}: {spare:.2f} GiB more than the peak, {lacking:.2f} less than the bound of 95 %"
    return f"does not fit into {size}: the peak is {center - capacity:.2f} GiB more"


def calibrate(points: Iterable[tuple[Estimate, float]]) -> Calibration:
    """Learn from runs whose peak was measured.

    Args:
        points: Each run's prediction and its measured ``peak_memory_gib``.

    Raises:
        ConfigError: A measured peak is not a positive number.
    """
    found = []
    for estimate, measured in points:
        if not (math.isfinite(measured) and measured > 0):
            raise ConfigError(f"a measured peak of {measured} GiB: must be a positive number; leave failed runs out")
        found.append(Point(estimate.peak_memory_gib, measured))
    return Calibration(tuple(found))


def load_calibration(file: Path) -> Calibration:
    """Read what `Calibration.save` wrote; a missing file is no calibration.

    Raises:
        ConfigError: The file is something else.
    """
    if not file.is_file():
        return Calibration()
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise ConfigError(f"{file}: schema {values['schema']}, this version reads {SCHEMA}; remove the file")
        return Calibration(tuple(Point(**point) for point in values["points"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: no calibration ({type(error).__name__}: {error}); remove the file") from error


def fits(estimate: Estimate, limit_gib: float, calibration: Calibration | None = None) -> bool:
    """Whether a run stays below a limit with 95 % probability.

    Args:
        estimate: The run's prediction.
        limit_gib: Limit on ``peak_memory_gib``, in GiB. Of a whole device, take off the CUDA context, about 0.7 GiB.
        calibration: What measured runs taught.
    """
    return (calibration or Calibration()).upper(estimate) <= limit_gib
