"""The proof that what adapters have learned reaches the output of a fused block, however little that is.

After the first steps of a training an adapter adds less than the last bit of the residual. It survives all the same, by
the side on which a sum is rounded, unless it is added to a sum that is rounded already; and in the output it is far too
small to be seen by its error. So each adapter is drawn alone, as small as that, on an input of random signs whose size
makes one bit equally large everywhere, and what it changes is averaged over all elements: the slope of the fused
change on the plain one, which is 1. The plain change is taken before the residual, where it is not rounded away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from sweeptune.kernels.fuse import Fused
from sweeptune.kernels.linear import Projection, dense, refresh

INPUT = 1.5
"""Times a power of two: in the middle of numbers whose last bit is equally large."""
BIT = 2.0**-7 / INPUT
"""bf16's last bit there, relative to the input."""
LARGEST_INPUT = 96.0
"""About so many times what attention or MLP add, the smaller of them: they spread over two bits, which makes a bit that
is smaller yet survive on average. The power of two next to it is at most 1.5 times off."""
ADDED = 0.25
"""What an adapter is made to add, in bits: of a sum that is rounded already, 57 % of that would be lost."""
ALONG = 4.0
"""Times that: what it adds while the direction is taken that changes are measured along, clear of rounding in between
(lora_fp8 rounds coarsely)."""
DRAWN, LARGEST_FACTOR = 0.25, 64.0
"""What it adds to its layer's output at first, relative to that, and by how much it may be scaled up: queries and keys
change an even attention little."""
ELEMENTS = 2**17
"""Rounding leaves an error of 1.6 divided by the root of this number, 0.5 %; small models get several inputs."""

Autocast = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def adapter_slopes(
    fast: Fused, number: int, shape: torch.Size, options: dict[str, Any], autocast: Autocast
) -> dict[str, float]:
    """How much of each adapter's contribution to a block's output the fused code makes: 1 is all of it.

    Args:
        fast: The fused model; its adapters are the same before and behind.
        number: Of the block.
        shape: [b, t, d] of its input, which is drawn here.
        options: What else the layer's forward gets.
        autocast: Opens the context that training computes its loss in.

    Returns:
        Name of its B -> slope; nothing in full fine-tuning. One that changes next to nothing (a key where every row has
        one token) is left out.
    """
    layer, block = fast.decoder.layers[number], fast.blocks[number]
    adapted = [p for group in block.groups for p in group.projections if p.b is not None]
    if not adapted:
        return {}
    names = {id(p): name for name, p in layer.named_parameters()}
    casts = [cast for group in block.groups for cast in group.casts()]
    kept = [_b(p).detach().clone() for p in adapted]
    sums = {names[id(p.b)]: [0.0, 0.0] for p in adapted}

    def ours(x: torch.Tensor) -> torch.Tensor:
        refresh(casts)
        with autocast():
            found: torch.Tensor = layer.forward(x, **options).float()
        return found

    def plain(x: torch.Tensor) -> torch.Tensor:
        with autocast():
            attention, mlp = _added(layer, x, options)
        return attention + mlp

    try:
        for p in adapted:
            _b(p).zero_()
        for _ in range(-(-ELEMENTS // shape.numel())):
            x = torch.randint(2, shape, device=kept[0].device).mul_(2).sub_(1).to(fast.compute)
            with autocast():
                least = min(map(_size, _added(layer, x, options)))  # norms divide by the input's size
            largest = 2.0 ** round(math.log2(LARGEST_INPUT * least / INPUT)) * INPUT
            x, wanted = x * largest, ADDED * BIT * largest
            before, ours_before = plain(x), ours(x)
            for p in adapted:
                b = _b(p).normal_(std=_std(p, fast.compute))
                b.mul_(min(ALONG * wanted / max(_size(plain(x) - before), 1e-30), LARGEST_FACTOR))
                along = plain(x) - before
                if (size := _size(along)) >= wanted:
                    b.mul_(wanted / size)
                    sums[names[id(p.b)]][0] += float(((ours(x) - ours_before) * along).sum())
                    sums[names[id(p.b)]][1] += float(((plain(x) - before) * along).sum())
                b.zero_()
    finally:
        for p, b in zip(adapted, kept, strict=True):
            _b(p).copy_(b)
        refresh(casts)
    return {name: mine / whole for name, (mine, whole) in sums.items() if whole}


def _added(layer: Any, x: torch.Tensor, options: dict[str, Any]) -> list[torch.Tensor]:
    """What attention and MLP add to the residual in the plain code, in fp32."""
    found: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, arguments: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).float())

    handles = [part.register_forward_hook(keep) for part in (layer.self_attn, layer.mlp)]
    try:
        type(layer).forward(layer, x, **options)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _std(p: Projection, compute: torch.dtype) -> float:
    """Of a random B by which the adapter's product is `DRAWN` times its layer's weight, by norm."""
    assert p.a is not None
    weight, a = (torch.linalg.vector_norm(t, dtype=torch.float32) for t in (dense(p.base, compute), p.a))
    return DRAWN * float(weight / a) / (p.scale * math.sqrt(_b(p).shape[0]))


def _b(p: Projection) -> torch.Tensor:
    assert p.b is not None
    return p.b.data


def _size(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())
