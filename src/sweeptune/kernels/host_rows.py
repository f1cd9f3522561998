"""Rows of a table that lies in host memory, for ids on the device.

A kernel reads pinned host memory over the bus by itself, exactly the rows that are wanted, in the order of the stream:
nothing waits for the device. Where there is no such kernel, ids go to the host, which does wait, and rows come back.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sweeptune.kernels.ops import has_triton


def rows(table: torch.Tensor, ids: torch.Tensor, *, pinned: bool = False) -> torch.Tensor:
    """Look up.

    Args:
        table: [n, d] in host memory, contiguous.
        ids: int64, any shape, on any device.
        pinned: Whether the device may read the table.

    Returns:
        [*ids.shape, d] on the device of ``ids``.
    """
    if ids.device == table.device:
        return F.embedding(ids, table)
    if pinned and has_triton():
        from sweeptune.kernels.host_rows_triton import triton_rows  # Triton is not everywhere

        return triton_rows(table, ids)
    return F.embedding(ids.to(table.device), table).to(ids.device)
