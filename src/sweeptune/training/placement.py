"""Where a run computes and in which number formats."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.models.load import DTYPES

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and number formats of a run.

    Attributes:
        device: The device of this rank.
        compute: What matrix products are computed in; below fp32 through autocast.
        weights: How unquantised weights are stored.
    """

    device: torch.device
    compute: torch.dtype
    weights: torch.dtype

    @property
    def arithmetic(self) -> torch.dtype:
        """The coarser of compute and storage: what limits how exact a loss or a gradient is."""
        return self.weights if self.compute is torch.float32 else self.compute

    @property
    def precision(self) -> str:
        """The compute precision's name in the settings."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.compute)


def place(config: Config, local_rank: int = 0) -> Placement:
    """Resolve every ``auto`` of device and precision.

    A weight that trains needs more than bf16's 8 bits to keep small updates, so under ``full`` the weights are fp32
    masters and products are computed in bf16; frozen weights are stored in what they are computed in.
    """
    kind = config.hardware.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    precision = config.hardware.precision
    if precision == "auto":
        precision = "bf16" if kind == "cuda" else "fp32"
    compute = DTYPES[precision]
    if config.model.dtype != "auto":
        weights = DTYPES[config.model.dtype]
    else:
        weights = torch.float32 if config.method.name == "full" else compute
    return Placement(device, compute, weights)


def cap_memory(limit_gib: float, device: torch.device) -> None:
    """Make allocations beyond a cap fail as on a smaller GPU.

    Args:
        limit_gib: Bytes of the whole process on the device in GiB, its CUDA context included.
        device: A CUDA device.

    Raises:
        ConfigError: The context alone is larger than the cap, or the device is smaller than it.
    """
    torch.zeros(1, device=device)  # makes the context, so that it can be measured
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    usable = limit_gib * GIB - context
    if not 0 < usable <= total:
        raise ConfigError(
            f"hardware.memory_cap_gib={limit_gib}: must lie between the CUDA context ({context / GIB:.2f} GiB here) "
            f"and the device's {total / GIB:.1f} GiB"
        )
    torch.cuda.set_per_process_memory_fraction(usable / total, device)
