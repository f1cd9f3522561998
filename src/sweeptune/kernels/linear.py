"""Linear layers with LoRA adapters, forward and backward by hand.

    y = x W^T + s (x A^T) B^T         (Hu et al. 2021, arXiv 2106.09685)

Layers that read the same x (query, key and value; gate and up) form a group: their A stand below each other in one
matrix, so that x is read once for all of them. What an adapter adds comes first, and the large product is added to it
(beta = 1): that is no pass of its own, and both are rounded once, together. Added to a product that is rounded already,
most of what an adapter has just begun to learn is smaller than half a step of bf16 and would be lost, as it is in plain
code. Products in 8-bit floating point cannot add, and leave their kernel rounded: there the adapter's product is added
to the large one, and what it has just begun to learn is lost, too.

W may be stored in fp32 (cast for each use), in the compute precision, in 8-bit floating point, or in NF4 (dequantised
for each use into memory that the next use takes again).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import bitsandbytes as bnb
import torch

from sweeptune.kernels import ops
from sweeptune.kernels.fp8 import Fp8Linear, times, times_transposed
from sweeptune.kernels.ops import Low

ALIGNMENT = 16
"""Ranks are filled up with zeros to a multiple: what tensor cores multiply by."""


@dataclass(eq=False)
class Projection:
    """A linear layer and its adapter.

    Attributes:
        base: An ``nn.Linear``, bitsandbytes' ``Linear4bit`` with NF4, or an `Fp8Linear`; without bias.
        a: [rank, in], None without an adapter.
        b: [out, rank].
        scale: What the adapter's output is multiplied by.
    """

    base: Any
    a: torch.nn.Parameter | None = None
    b: torch.nn.Parameter | None = None
    scale: float = 1.0

    def times(self, x: Operand, low: Low | None = None, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T [n, out], with what an adapter adds, and with ``residual`` [n, out]."""
        if isinstance(self.base, Fp8Linear):
            return plus(times(x.rounded, self.base, x.plain.dtype), low, residual)
        weight = dense(self.base, x.plain.dtype).t()
        if low is None:
            return torch.mm(x.plain, weight) if residual is None else torch.addmm(residual, x.plain, weight)
        found = torch.mm(low[0], low[1].t()).addmm_(x.plain, weight)
        return found if residual is None else found.add_(residual)

    def times_transposed(self, dy: torch.Tensor, low: Low | None, into: torch.Tensor | None) -> torch.Tensor:
        """dy W [n, in], with what reaches the input through adapters (``low``) or added in place to ``into``."""
        assert low is None or into is None, "a group adds its adapters once, with its first layer"
        if isinstance(self.base, Fp8Linear):
            return plus(times_transposed(dy, self.base), low, into)
        weight = dense(self.base, dy.dtype)
        into = into if low is None else torch.mm(low[0], low[1].t())
        return torch.mm(dy, weight) if into is None else into.addmm_(dy, weight)


def plus(found: torch.Tensor, low: Low | None, other: torch.Tensor | None) -> torch.Tensor:
    """A product that is rounded already, so that no order keeps more: in place what adapters add, then ``other``."""
    found = found if low is None else found.addmm_(low[0], low[1].t())
    return found if other is None else found.add_(other)


class Operand:
    """The input of a group's products, rounded at most once for all of them."""

    def __init__(self, plain: torch.Tensor) -> None:
        self.plain = plain

    @cached_property
    def rounded(self) -> ops.Rounded:
        """In 8-bit floating point."""
        return ops.quantize_rows(self.plain)


def dense(module: Any, dtype: torch.dtype) -> torch.Tensor:
    """A linear layer's weight [out, in] as plain numbers."""
    weight = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        return ops.nf4_dequantize(weight.data, weight.quant_state, dtype)
    if isinstance(module, Fp8Linear):
        return module.plain(dtype)
    found: torch.Tensor = weight.to(dtype)
    return found


def nf4_parts(module: Any, dtype: torch.dtype, weights: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """The weight [out, in] of a layer in NF4 as plain numbers, some rows at a time.

    Args:
        module: bitsandbytes' ``Linear4bit``.
        dtype: Of the numbers.
        weights: At most so many of them at a time, where that is not less than what shares a constant of constants.
    """
    packed, state = module.weight.data.reshape(-1), module.weight.quant_state
    columns, outer = module.in_features, state.blocksize * (state.state2.blocksize if state.nested else 1)
    least = outer // math.gcd(columns, outer)  # a part begins where a constant does
    rows = max(1, weights // columns // least) * least
    for begin in range(0, module.out_features, rows):
        end = min(begin + rows, module.out_features)
        part = copy(state)
        part.shape = torch.Size((end - begin, columns))
        part.absmax = _span(state.absmax, begin * columns, end * columns, state.blocksize)
        if state.nested:
            part.state2 = copy(state.state2)
            part.state2.absmax = _span(state.state2.absmax, begin * columns, end * columns, outer)
        numbers = ops.nf4_dequantize(_span(packed, begin * columns, end * columns, 2), part, dtype)
        yield slice(begin, end), numbers
        del numbers  # before the next is made


def _span(of: torch.Tensor, begin: int, end: int, each: int) -> torch.Tensor:
    """What stands for the weights from ``begin`` to ``end``, where an element stands for ``each`` of them."""
    return of[begin // each : -(-end // each)]


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a b as ``dtype``; sums in bf16 reach an fp32 result unrounded where the device can."""
    if dtype == torch.float32 and a.dtype != dtype and a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


class Group:
    """Linear layers that read the same input.

    Args:
        projections: The layers.
        compute: What products are computed in.

    Attributes:
        trained: Their trainable tensors, in the order in which `into_trained` returns gradients.
        a: [R, in] in the compute precision, all adapters' A below each other, scaled; None without adapters.
        b: [out, slot] of each layer; None without an adapter.
    """

    def __init__(self, projections: Sequence[Projection], compute: torch.dtype) -> None:
        self.projections, self.compute = list(projections), compute
        bases = [p.base.weight for p in projections if p.base.weight.requires_grad]
        self.trained: list[torch.nn.Parameter] = [
            *bases,
            *(t for p in projections for t in (p.a, p.b) if t is not None),
        ]
        self.slots: list[slice | None] = []
        end = 0
        for p in self.projections:
            size = 0 if p.a is None else -(-p.a.shape[0] // ALIGNMENT) * ALIGNMENT
            self.slots.append(slice(end, end + size) if size else None)
            end += size
        self.rank = end
        self.widest = max((slot.stop - slot.start for slot in self.slots if slot is not None), default=0)
        adapted = next((p for p in projections if p.a is not None), None)
        self.a: torch.Tensor | None = None
        self.b: list[torch.Tensor | None] = [None] * len(self.projections)
        if adapted is not None and adapted.a is not None:
            device = adapted.a.device
            self.a = torch.zeros(end, adapted.a.shape[1], dtype=compute, device=device)
            for i, (p, slot) in enumerate(zip(self.projections, self.slots, strict=True)):
                if p.b is not None and slot is not None:
                    self.b[i] = torch.zeros(p.b.shape[0], slot.stop - slot.start, dtype=compute, device=device)

    def casts(self) -> Iterable[tuple[torch.Tensor, torch.Tensor, float]]:
        """What has to be copied whenever the adapters have changed: to, from, times what."""
        for p, slot, b in zip(self.projections, self.slots, self.b, strict=True):
            if p.a is not None and p.b is not None and slot is not None and self.a is not None and b is not None:
                rank = p.a.shape[0]
                yield self.a[slot.start : slot.start + rank], p.a.detach(), p.scale
                yield b[:, :rank], p.b.detach(), 1.0

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, into: torch.Tensor | None = None, *, add: bool = True
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Outputs [n, out] of x [n, in], and s x A^T [n, R], where there are adapters.

        Args:
            x: The input.
            into: [n, out], added to the only layer's output, behind what an adapter adds.
            add: Whether outputs have what adapters add; else `low` says what is missing.
        """
        lows = None if self.a is None else torch.mm(x, self.a.t())
        operand = Operand(x)
        added = [self.low(i, lows) if add else None for i in range(len(self.projections))]
        return [p.times(operand, low, into) for p, low in zip(self.projections, added, strict=True)], lows

    def low(self, index: int, lows: torch.Tensor | None) -> Low | None:
        """What an adapter adds to the output of a layer."""
        slot, b = self.slots[index], self.b[index]
        return None if slot is None or b is None or lows is None else (lows[:, slot], b)

    def into_input(
        self, grads: Sequence[torch.Tensor], *, add: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradients of the input [n, in] and of s x A^T [n, R], from those of every output, [n, out].

        ``add``: whether the first has what reaches the input through the adapters, which is (second, A^T) as a `Low`.
        """
        into_low = self.into_low(grads)
        low = (into_low, self.a.t()) if add and into_low is not None and self.a is not None else None
        found: torch.Tensor | None = None
        for dy, p in zip(grads, self.projections, strict=True):
            found = p.times_transposed(dy, low if found is None else None, found)
        assert found is not None, "a group has a layer"
        return found, into_low

    def into_trained(
        self, grads: Sequence[torch.Tensor], x: torch.Tensor, low: torch.Tensor | None, into_low: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Gradients of what trains, in the order of ``trained``.

        Args:
            grads: Of every output, [n, out].
            x: The input [n, in].
            low: s x A^T, as `forward` returned it; made again where it is None.
            into_low: Its gradient, as `into_input` returned it.
        """
        found = [
            product(dy.t(), x, p.base.weight.dtype)
            for dy, p in zip(grads, self.projections, strict=True)
            if p.base.weight.requires_grad
        ]
        if into_low is None or self.a is None:
            return found
        if low is None:
            low = torch.mm(x, self.a.t())
        first = next(p for p in self.projections if p.a is not None)
        assert first.a is not None
        into_a = product(into_low.t(), x, first.a.dtype).mul_(first.scale)
        for dy, p, slot in zip(grads, self.projections, self.slots, strict=True):
            if p.a is not None and p.b is not None and slot is not None:
                rank = p.a.shape[0]
                into_b = product(dy.t(), low[:, slot.start : slot.start + rank], p.b.dtype)
                found += [into_a[slot.start : slot.start + rank], into_b]
        return found

    def into_low(self, grads: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Gradient of s x A^T, [n, R]."""
        if self.a is None:
            return None
        found = grads[0].new_empty(len(grads[0]), self.rank)
        for dy, slot, b in zip(grads, self.slots, self.b, strict=True):
            if b is not None and slot is not None:
                torch.mm(dy, b, out=found[:, slot])
        return found


def refresh(casts: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
    """Bring the adapters' copies in the compute precision up to date, in a few launches for all of them."""
    if not casts:
        return
    with torch.no_grad():
        torch._foreach_copy_([to for to, _, _ in casts], [of for _, of, _ in casts])
        for scale in {scale for _, _, scale in casts if scale != 1.0}:
            torch._foreach_mul_([to for to, _, times in casts if times == scale], scale)
