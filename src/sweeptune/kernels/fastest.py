"""Which of several right attention kernels is the fastest on this machine: measured once, and remembered.

Kernels differ by a factor of two, and not in the same order on every GPU. What is timed is forward and backward of the
model's own heads on rows of one length; the answer is kept in a file under all that it depends on.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CANDIDATES = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ROWS, LENGTH, TIMES = 8, 2048, 8
"""Enough work that the device is what takes the time, and not the host that starts it."""
Event: Any = torch.cuda.Event


def kernel_order(
    file: Path, device: torch.device, heads: int, key_heads: int, width: int, dtype: torch.dtype
) -> list[SDPBackend]:
    """Attention kernels for causal rows of one length, the fastest first.

    Args:
        file: Holds what was measured before.
        device: A CUDA device.
        heads: Query heads.
        key_heads: Key and value heads.
        width: Of a head.
        dtype: What is computed in.

    Returns:
        Those that run, and at the end torch's plain one, which always does.
    """
    cudnn: Any = torch.backends.cudnn
    parts = (torch.cuda.get_device_name(device), torch.__version__, cudnn.version(), dtype)
    key = " ".join(map(str, (*parts, heads, key_heads, width)))
    known = _read(file)
    found = known.get(key) or _measure(device, heads, key_heads, width, dtype)
    if found and key not in known:  # nothing at all is no answer: memory may have been short
        _write(file, key, found)
    names = sorted(found, key=lambda name: found[name])
    return [*(CANDIDATES[name] for name in names if name in CANDIDATES), SDPBackend.MATH]


def _measure(device: torch.device, heads: int, key_heads: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds of each kernel that runs."""
    q, k, v = (
        torch.randn(ROWS, LENGTH, h, width, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
        for h in (heads, key_heads, key_heads)
    )
    found = {}
    for name, kernel in CANDIDATES.items():
        # One that does not do these heads, or not on this GPU, raises; torch's warnings say of every other why not.
        with suppress(RuntimeError), warnings.catch_warnings(action="ignore"):
            found[name] = _milliseconds(kernel, q, k, v)
    return found


def _milliseconds(kernel: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    def run() -> None:
        with sdpa_kernel(kernel):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    run()
    begin, end = Event(enable_timing=True), Event(enable_timing=True)
    begin.record()
    for _ in range(TIMES):
        run()
    end.record()
    torch.cuda.synchronize(q.device)
    return float(begin.elapsed_time(end)) / TIMES


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or cut off: it is measured again
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, key: str, value: dict[str, float]) -> None:
    """Add an answer; where the folder cannot be written, it is measured again next time."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(_read(file) | {key: value}, indent=1), encoding="utf-8")
        part.replace(file)
