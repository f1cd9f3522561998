"""`sweeptune.kernels.host_rows.rows` as a Triton kernel that reads the host's memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _rows(table, ids, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    source = tl.load(ids + row).to(tl.int64) * width
    tl.store(out + row * width + columns, tl.load(table + source + columns, inside), inside)


def triton_rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[*ids.shape, d]: rows of a pinned ``table`` [n, d], whose ids (int64) are on the device."""
    flat, width = ids.reshape(-1).contiguous(), table.shape[1]
    out = torch.empty(*ids.shape, width, dtype=table.dtype, device=ids.device)
    if flat.numel():
        _rows[(flat.numel(), triton.cdiv(width, BLOCK))](table.detach(), flat, out, width, BLOCK=BLOCK)
    return out
