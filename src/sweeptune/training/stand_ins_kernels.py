"""What stands in for the fused kernels where training is traced: each allocates what its CUDA version allocates.

The code around them (`sweeptune.kernels.block`, `head`, `fuse`) is traced as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from sweeptune.kernels import fuse, head, linear, ops


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `sweeptune.kernels.ops.rms_norm`."""
    y, rstd = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
    return y, rstd, x if residual is None else torch.empty_like(x)


def rms_apply(x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """See `sweeptune.kernels.ops.rms_apply`."""
    return torch.empty_like(x)


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual: torch.Tensor | None = None,
    want_weight: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `sweeptune.kernels.ops.rms_norm_backward`: in place, with sums of some rows each where the weight trains."""
    if not want_weight:
        return dy, None
    sums = dy.new_empty(4 * dy.numel() // ops.SUMMED_ROWS, dtype=torch.uint8)
    total = dy.new_empty(dy.shape[1], dtype=torch.float32)
    del sums
    return dy, total.to(weight.dtype)


def nothing(*_: Any, **__: Any) -> None:
    """A kernel that works in place."""


def swiglu(gate: torch.Tensor, up: torch.Tensor, gate_low: Any = None, up_low: Any = None) -> torch.Tensor:
    """See `sweeptune.kernels.ops.swiglu`."""
    return torch.empty_like(gate)


def nf4_dequantize(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """See `sweeptune.kernels.ops.nf4_dequantize`."""
    return packed.new_empty(state.shape, dtype=dtype)


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, *, gradient: bool) -> torch.Tensor:
    """See `sweeptune.kernels.ops.cross_entropy_`."""
    return logits.new_empty(len(logits), dtype=torch.float32)


def quantize_rows(x: torch.Tensor, columns: torch.Tensor | None = None) -> ops.Rounded:
    """See `sweeptune.kernels.ops.quantize_rows`."""
    return torch.empty_like(x, dtype=ops.FP8), x.new_empty(len(x), dtype=torch.float32)


def fp8_transpose(x: torch.Tensor) -> torch.Tensor:
    """See `sweeptune.kernels.ops.fp8_transpose`."""
    return x.new_empty(x.shape[1], x.shape[0])


def fp8_matmul(a: ops.Rounded, b: ops.Rounded, dtype: torch.dtype) -> torch.Tensor:
    """See `sweeptune.kernels.ops.fp8_matmul`."""
    return a[0].new_empty(len(a[0]), len(b[0]), dtype=dtype)


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """See `sweeptune.kernels.linear.product`: sums go to the result's dtype at once."""
    return a.new_empty(a.shape[0], b.shape[1], dtype=dtype)


@dataclass(eq=False)
class Ticket:
    """A block's input that was put away: its number, shape, and itself where it is on the device."""

    number: int
    like: tuple[torch.Size, torch.dtype]
    back: torch.Tensor | None = None


class Stash:
    """`sweeptune.kernels.offload.Stash` as the device sees it: an input goes when the next one is put away, and comes
    back while the block behind it computes."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def put(self, hidden: torch.Tensor) -> Ticket:
        """Keep a block's input; forget the one before but for its shape."""
        if self.tickets:
            self.tickets[-1].back = None
        self.tickets.append(Ticket(len(self.tickets), (hidden.shape, hidden.dtype), hidden.detach()))
        return self.tickets[-1]

    def get(self, ticket: Ticket) -> torch.Tensor | None:
        """The input again; the one before it is sent for."""
        for one in self.tickets[max(0, ticket.number - 1) : ticket.number + 1][::-1]:
            if one.back is None:
                one.back = torch.empty(one.like[0], dtype=one.like[1])
        found, ticket.back = ticket.back, None
        del self.tickets[ticket.number :]
        return found

    def clear(self) -> None:
        """Forget an abandoned pass."""
        self.tickets.clear()


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Put the functions of this file in the place of the real ones."""
    kernels: list[Any] = [rms_norm, rms_apply, rms_norm_backward, swiglu, nf4_dequantize, cross_entropy_]
    kernels += [quantize_rows, fp8_transpose, fp8_matmul]
    with ExitStack() as stack:
        for kernel in kernels:
            stack.enter_context(patch.object(ops, kernel.__name__, kernel))
        for name in ("rope_", "swiglu_backward_"):
            stack.enter_context(patch.object(ops, name, nothing))
        for module in (linear, head):
            stack.enter_context(patch.object(module, "product", product))
        stack.enter_context(patch.object(fuse, "refresh", nothing))
        stack.enter_context(patch.object(fuse, "Stash", Stash))
        yield
