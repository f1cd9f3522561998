"""Telling out-of-memory apart from every other failure, and making all ranks agree on it."""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist

SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class OptimizerOutOfMemory(RuntimeError):
    """Memory ran out while the weights were being changed: they are half updated and must be loaded again."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def brief(error: BaseException) -> str:
    """What ran out, without the allocator's paragraph of statistics and advice.

    Example:
        >>> brief(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 36.00 MiB. GPU 0 has a total ..."))
        'CUDA out of memory. Tried to allocate 36.00 MiB'
    """
    return str(error).splitlines()[0].partition(". GPU ")[0] if str(error) else type(error).__name__


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on any rank; every rank must call this."""
    if not dist.is_initialized():
        return flag
    seen = torch.tensor(int(flag), device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item())


def release_memory(device: torch.device) -> None:
    """Give back what an abandoned step held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
