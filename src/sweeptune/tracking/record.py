"""result.json: how a run ended and what it measured (DESIGN section 5)."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.tracking.files import write_json

SCHEMA = 1
STATUSES = (
    "completed",
    "oom",
    "diverged",
    "timeout",
    "crashed",
    "interrupted",
    "lost",
    "pruned",
    "invalid_config",
    "invalid_run",
)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "hydra-core")
PARTS: dict[str, tuple[str, ...]] = {
    "eval": ("loss", "best_loss", "initial_loss", "perplexity", "bits_per_byte", "loss_tokens", "samples", "tasks"),
    "memory": (
        "peak_memory_gib",
        "peak_allocated_gib",
        "peak_reserved_gib",
        "paged_gib",
        "device_gib",
        "host_peak_gib",
        "phases",
    ),
    "speed": (
        "tokens_per_s",
        "loss_tokens_per_s",
        "step_ms",
        "flops_per_token",
        "mfu",
        "matmul_efficiency",
        "excluded_s",
        "exclusive",
    ),
    "train": ("steps", "tokens", "loss_tokens", "final_loss", "seconds"),
    "params": ("total", "trainable"),
    "proofs": ("gradients", "packing", "kernels"),
    "fingerprint": ("quality", "cost"),
    "environment": ("git", "dirty", "packages", "device", "driver"),
}


def empty_record(config: Config) -> dict[str, Any]:
    """A record with every key and nothing measured yet.

    Args:
        config: The run's settings, which name method, model, data and seed.
    """
    return {
        "schema": SCHEMA,
        "status": "crashed",
        "reason": None,
        "attempts": 1,
        "method": config.method.name,
        "model": config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "test": None,
        **{part: dict.fromkeys(keys) for part, keys in PARTS.items()},
        "fingerprint": {"quality": {}, "cost": {}},
        "command": "",
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``folder / "result.json"`` atomically; numbers that JSON does not know become null."""
    write_json(folder / "result.json", _finite(record))


def read_record(folder: Path) -> dict[str, Any]:
    """Read a run folder's record.

    Raises:
        ConfigError: It is not there, or not a record.
    """
    path = folder / "result.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: has no result.json, so no run has ended there") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a record ({error})") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("status") not in STATUSES:
        raise ConfigError(f"{path}: is not a record of this version (schema {SCHEMA})")
    return record


@cache
def environment() -> dict[str, Any]:
    """What the run ran on: code version, packages, device."""
    import torch

    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    cuda = torch.cuda.is_available()
    git, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "git": git,
        "dirty": None if status is None else bool(status),
        "packages": packages,
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "driver": _driver() if cuda else None,
        "platform": f"{sys.platform}-{platform.machine()}",
    }


@cache
def cpu_name() -> str:
    """The processor's name and number of cores, such as ``AMD EPYC 9354 (2 cores)``."""
    import psutil

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = found[0] if found else name
    return f"{name} ({psutil.cpu_count() or 1} cores)"


def _git(*arguments: str) -> str | None:
    """What git says of this code's repository; None where there is none."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return None
    words = path.read_text().splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), None)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
