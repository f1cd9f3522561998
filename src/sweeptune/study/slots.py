"""Where runs of a study may compute: GPUs of this machine, or its processor as one place."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config

DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass
class Slot:
    """One or several GPUs (or processor ranks) that one run at a time has to itself.

    Attributes:
        devices: What CUDA_VISIBLE_DEVICES says; empty without GPUs.
        lock: Held while something of ours runs here, so that another command of the same study takes another slot.
        lanes: Runs that may share the slot while only their loss matters.
        units: What runs here.
    """

    name: str
    devices: tuple[str, ...]
    lock: FileLock
    lanes: int
    units: list[Any] = field(default_factory=list)

    def open(self) -> bool:
        """Make sure that the slot is ours; False while another process of this study has it."""
        if self.lock.is_locked:
            return True
        with suppress(Timeout):
            self.lock.acquire(timeout=0)
        return self.lock.is_locked

    def close(self) -> None:
        """Let other processes have the slot, when nothing runs here any more."""
        if not self.units:
            self.lock.release()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the processes that run here."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {}


def find_slots(config: Config, folder: Path) -> list[Slot]:
    """The slots that ``hardware.gpus``, ``hardware.gpus_per_trial`` and this machine give.

    Args:
        config: Any run of the study.
        folder: The study's; locks lie in its ``slots``.

    Raises:
        ConfigError: A run wants more GPUs than there are.
    """
    gpus = [] if config.hardware.device == "cpu" else visible_gpus()
    wanted, each = config.hardware.gpus, config.hardware.gpus_per_trial
    if gpus and wanted and wanted > len(gpus):
        raise ConfigError(f"hardware.gpus={wanted}: this machine shows {len(gpus)}. Use hardware.gpus={len(gpus)}")
    # Without GPUs the ranks of one run share the processor, and more runs at a time only when they are asked for.
    count = (wanted or len(gpus)) // each if gpus else max(1, (wanted or each) // each)
    if count == 0:
        raise ConfigError(
            f"hardware.gpus_per_trial={each}: there are {wanted or len(gpus)} GPUs. Use at most "
            f"hardware.gpus_per_trial={wanted or len(gpus)}"
        )
    locks = folder / "slots"
    locks.mkdir(parents=True, exist_ok=True)
    slots = []
    for number in range(count):
        devices = tuple(gpus[number * each : (number + 1) * each])
        name = f"gpu {','.join(devices)}" if devices else f"cpu {number}"
        lock = FileLock(locks / f"{socket.gethostname()}-{name.replace(' ', '')}.lock")
        slots.append(Slot(name, devices, lock, config.study.trials_per_gpu))
    return slots


def visible_gpus() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, found without loading torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(DRIVER.iterdir())))] if DRIVER.is_dir() else []
