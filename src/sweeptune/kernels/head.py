"""The head and its loss in one: logits are made for a few loss tokens at a time, and only for those.

Forward computes each chunk's logits, their negative log-likelihood, and at once the gradient that the hidden states get
from it, so that no logits are kept and none is made twice (as Liger's fused linear cross-entropy, arXiv 2410.10989,
section 3.2). The result is the sum over loss tokens; whoever calls it divides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import bitsandbytes as bnb
import torch

from sweeptune.kernels import ops
from sweeptune.kernels.linear import dense, nf4_parts, product

CHUNK_LOGITS = 96 * 2**20
"""Logits of a chunk: 192 MiB in bf16, enough rows to keep an H100 busy at any vocabulary."""
PART_WEIGHTS = 48 * 2**20
"""Of a head in NF4 that are dequantised at a time: 96 MiB in bf16, where 7B's whole head would be 723."""

Parts = Callable[[], Iterable[tuple[slice, torch.Tensor]]]
"""Rows of a head's weight, and what they are as plain numbers."""


def chunk_rows(vocabulary: int) -> int:
    """Loss tokens whose logits are made at a time: whole tiles of 128 rows."""
    return max(128, CHUNK_LOGITS // vocabulary // 128 * 128)


def _parts_of(head: Any, compute: torch.dtype) -> Parts:
    """The head's weight as plain numbers, each time it is called: whole and made once, or a part of an NF4 one."""
    if isinstance(head, bnb.nn.Linear4bit):
        return lambda: nf4_parts(head, compute, PART_WEIGHTS)
    whole = [(slice(None), dense(head, compute))]
    return lambda: whole


def _logits(rows: torch.Tensor, size: int, parts: Parts) -> torch.Tensor:
    """[n, vocabulary] of hidden states [n, d]."""
    found = rows.new_empty(len(rows), size)
    for at, numbers in parts():
        torch.mm(rows, numbers.t(), out=found[:, at])
        del numbers  # before the next part is made
    return found


def _into_states(grad: torch.Tensor, parts: Parts) -> torch.Tensor:
    """The hidden states' gradient [n, d] from that of the logits; parts are summed up in fp32."""
    found: torch.Tensor | None = None
    for at, numbers in parts():
        if at == slice(None):
            return torch.mm(grad, numbers)
        part = product(grad[:, at], numbers, torch.float32)
        found = part if found is None else found.add_(part)
        del numbers
    assert found is not None, "a head has a vocabulary"
    return found.to(grad.dtype)


class SummedLoss(torch.autograd.Function):
    """Sum of the negative log-likelihood: ``apply(hidden, weight, head, places, targets, compute, chunk)``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        head: Any,
        places: torch.Tensor,
        targets: torch.Tensor,
        compute: torch.dtype,
        chunk: int | None,
    ) -> torch.Tensor:
        """Loss and gradients.

        Args:
            hidden: [n, d], final hidden states.
            weight: The head's own parameter, so that autograd knows it.
            head: A linear layer without bias.
            places: int64 [k], where loss tokens are predicted.
            targets: int64 [k], the loss tokens.
            compute: What products are computed in.
            chunk: Loss tokens at a time; None: `chunk_rows` of them.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            size, parts = head.out_features, _parts_of(head, compute)
            states = hidden.detach().to(compute)
            dhidden = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
            dweight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for part, target in _chunks(places, targets, chunk or chunk_rows(size)):
                rows = states.index_select(0, part)
                logits = _logits(rows, size, parts)
                total += ops.cross_entropy_(logits, target, gradient=True).sum()
                if dhidden is not None:
                    dhidden.index_copy_(0, part, _into_states(logits, parts))
                if dweight is not None and dweight.dtype == compute:
                    dweight.addmm_(logits.t(), rows)
                elif dweight is not None:
                    dweight += product(logits.t(), rows, dweight.dtype)
                del logits  # before the next chunk's are made
        ctx.save_for_backward(*(t for t in (dhidden, dweight) if t is not None))
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Both gradients, times that of the sum. They are scaled in place: this runs once."""
        found = list(ctx.saved_tensors)
        dhidden = found.pop(0).mul_(grad).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        dweight = found.pop(0).mul_(grad) if ctx.needs_input_grad[1] else None
        return dhidden, dweight, None, None, None, None, None


def summed_loss(
    hidden: torch.Tensor,
    head: Any,
    places: torch.Tensor,
    targets: torch.Tensor,
    compute: torch.dtype,
    chunk: int | None = None,
) -> torch.Tensor:
    """Sum of the negative log-likelihood of ``targets`` [k] at ``places`` [k] of ``hidden`` [n, d], fp32, in nats."""
    found: torch.Tensor = SummedLoss.apply(hidden, head.weight, head, places, targets, compute, chunk)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def token_losses(
    hidden: torch.Tensor, head: Any, places: torch.Tensor, targets: torch.Tensor, compute: torch.dtype
) -> torch.Tensor:
    """As `summed_loss`, of each token: fp32 [k], without gradients."""
    with torch.autocast(hidden.device.type, enabled=False):
        size, parts, states = head.out_features, _parts_of(head, compute), hidden.to(compute)
        found = [
            ops.cross_entropy_(_logits(states.index_select(0, part), size, parts), target, gradient=False)
            for part, target in _chunks(places, targets, chunk_rows(size))
        ]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)


def _chunks(places: torch.Tensor, targets: torch.Tensor, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(torch.split(places, rows), torch.split(targets, rows), strict=True)) if len(places) else []
