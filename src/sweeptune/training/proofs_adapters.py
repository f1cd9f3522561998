"""The proof that what adapters have learned reaches the output of a fused block, however little that is.

After the first steps of a training, the adapters behind attention and MLP add less than the last bit of the residual.
It survives all the same, by the side on which a sum is rounded, unless it is added to a sum that is rounded already;
and it is far too small to be seen in the output's error. So each adapter is drawn alone, and what it changes is
averaged over all elements: the slope of the fused change on the plain one, which is 1. The plain change is taken before
the residual, where it is not rounded away, and both are projected on a direction whose own rounding is independent of
theirs.

Those two adapters are drawn as small as that, on an input of random signs whose size makes one bit equally large
everywhere. The others reach no residual by themselves: they are drawn larger, on the model's own input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sweeptune.kernels.fuse import Fused
from sweeptune.kernels.linear import Projection, dense, refresh

INPUT = 1.5
"""Times a power of two: in the middle of numbers whose last bit is equally large."""
BIT = 2.0**-7 / INPUT
"""bf16's last bit there, relative to the input."""
LARGEST_INPUT = 96.0
"""About so many times what attention or MLP add, the smaller of them: they spread over two bits, so that less than a
bit survives on average. The power of two next to it is at most 1.5 times off."""
BITS_ADDED = 0.25
"""What an adapter adds there: of a sum that is rounded already, half of that is lost."""
SHARE_ADDED = 1 / 8
"""What the other adapters change, relative to what attention or MLP add."""
DRAWN, LARGEST_FACTOR = 0.25, 64.0
"""What an adapter adds to its own layer's output at first, relative to that, and by how much it may then be made
larger: queries and keys change an even attention little."""
ALONG = 4.0
"""How much larger it is, in either sign, for the direction that is projected on."""
ELEMENTS = 2**17
"""Rounding leaves an error of 1.6 divided by its root, 0.5 %; small models are measured several times."""
TOLERANCE, ERRORS, WIDEST = 0.05, 4.0, 0.3
"""Of a slope; of what its own standard errors allow, where an attention with huge scores blows rounding up; and where
that is wider still nothing is said of an adapter."""

Autocast = Callable[[], AbstractContextManager[None]]


class Slope(NamedTuple):
    """How much of an adapter's contribution the fused code makes, and the standard error of that."""

    slope: float
    error: float

    @property
    def tolerance(self) -> float:
        """How far it may be from 1."""
        return max(TOLERANCE, ERRORS * self.error)


@dataclass(frozen=True)
class Codes:
    """Both codes of a decoder layer."""

    layer: Any
    casts: list[tuple[torch.Tensor, torch.Tensor, float]]
    """Of its adapters."""
    options: dict[str, Any]
    """What its forward gets beside the input."""
    autocast: Autocast

    def ours(self, x: torch.Tensor) -> torch.Tensor:
        """The fused output."""
        refresh(self.casts)
        with self.autocast():
            found: torch.Tensor = self.layer.forward(x, **self.options).float()
        return found

    def added(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What attention and MLP add to the residual in the plain code."""
        found: list[torch.Tensor] = []

        def keep(_: torch.nn.Module, arguments: Any, output: Any) -> None:
            found.append((output[0] if isinstance(output, tuple) else output).float())

        handles = [part.register_forward_hook(keep) for part in (self.layer.self_attn, self.layer.mlp)]
        try:
            with self.autocast():
                type(self.layer).forward(self.layer, x, **self.options)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """Both together: the plain output without the residual, and without its rounding."""
        attention, mlp = self.added(x)
        return attention + mlp


@dataclass(frozen=True)
class Ground:
    """What adapters are measured on.

    Attributes:
        x: An input.
        weight: Of each element of the output: large ones are rounded coarsely.
        wanted: Size of the change.
        ours: The fused output without adapters.
        plain: The plain one, without the residual.
    """

    x: torch.Tensor
    weight: torch.Tensor | float
    wanted: float
    ours: torch.Tensor
    plain: torch.Tensor


@torch.no_grad()
def adapter_slopes(
    fast: Fused, number: int, hidden: torch.Tensor, options: dict[str, Any], autocast: Autocast
) -> dict[str, Slope]:
    """How much of each adapter's contribution to a block's output the fused code makes: 1 is all of it.

    Args:
        fast: The fused model; its adapters are the same before and behind.
        number: Of the block.
        hidden: Its input [b, t, d] in a forward pass.
        options: What else the layer's forward gets.
        autocast: Opens the context that training computes its loss in.

    Returns:
        Name of its B -> slope; nothing in full fine-tuning. One that cannot be measured is left out: it changes next to
        nothing (a key where every row has one token), or rounding is blown up too far.
    """
    layer, block = fast.decoder.layers[number], fast.blocks[number]
    adapted = [p for group in block.groups for p in group.projections if p.b is not None]
    if not adapted:
        return {}
    names = {id(p): name for name, p in layer.named_parameters()}
    codes = Codes(layer, [cast for group in block.groups for cast in group.casts()], options, autocast)
    found: dict[str, list[torch.Tensor]] = {names[id(p.b)]: [] for p in adapted}
    kept = [_b(p).clone() for p in adapted]
    x = hidden.to(fast.compute)
    try:
        for p in adapted:
            _b(p).zero_()
        for _ in range(-(-ELEMENTS // x.numel())):
            bits = _near_the_last_bit(codes, x)
            grounds = [_as_it_is(codes, x, 0), bits, _as_it_is(codes, x, 1), bits]
            for group, ground in zip(block.groups, grounds, strict=True):
                for p in group.projections:
                    if p.b is not None and ground is not None:
                        found[names[id(p.b)]] += _changes(codes, ground, p, fast.compute)
    finally:
        for p, b in zip(adapted, kept, strict=True):
            _b(p).copy_(b)
        refresh(codes.casts)
    slopes = {name: _slope(torch.cat(parts, dim=1)) for name, parts in found.items() if parts}
    return {name: slope for name, slope in slopes.items() if not slope.tolerance > WIDEST}


def _slope(changes: torch.Tensor) -> Slope:
    """Of the first row [tokens] on the second; tokens are independent, elements of one are not."""
    mine, whole = changes
    slope = mine.sum() / whole.sum()
    return Slope(float(slope), float((mine - slope * whole).norm() / whole.sum().abs()))


def _near_the_last_bit(codes: Codes, like: torch.Tensor) -> Ground | None:
    """Random signs, so large that what adapters add is a fraction of the last bit; None where attention or MLP of the
    model add nothing, as of blocks that were put in as the identity."""
    x = torch.randint(2, like.shape, device=like.device).mul_(2).sub_(1).to(like.dtype)
    least = min(_size(part) for part in codes.added(x))  # both norms divide by the input's size
    if not 0 < least < float("inf"):
        return None
    largest = 2.0 ** round(math.log2(LARGEST_INPUT * least / INPUT)) * INPUT
    x *= largest
    return Ground(x, 1.0, BITS_ADDED * BIT * largest, codes.ours(x), codes.plain(x))


def _as_it_is(codes: Codes, x: torch.Tensor, part: int) -> Ground | None:
    """The model's own input; adapters change a share of what attention (0) or MLP (1) adds, if they add anything."""
    size = x.float().abs()
    weight = 1 / (1 + (size / size.median()) ** 2)
    added = _size(codes.added(x)[part] * weight)
    return Ground(x, weight, SHARE_ADDED * added, codes.ours(x), codes.plain(x)) if added > 0 else None


def _changes(codes: Codes, ground: Ground, p: Projection, compute: torch.dtype) -> list[torch.Tensor]:
    """What an adapter changes in the fused and in the plain code, both projected on one direction: [2, tokens]."""

    def change() -> torch.Tensor:
        return codes.plain(ground.x) - ground.plain

    b = _b(p).normal_(std=_std(p, compute))
    b.mul_(min(ground.wanted / max(_size(change() * ground.weight), 1e-30), LARGEST_FACTOR))
    mine, whole = codes.ours(ground.x) - ground.ours, change()
    b.mul_(ALONG)
    along = codes.plain(ground.x)
    b.neg_()
    along = (along - codes.plain(ground.x)) * ground.weight
    b.zero_()
    if _size(whole * ground.weight) < ground.wanted / 4:
        return []
    return [torch.stack([(t * along).sum(dim=-1, dtype=torch.float64).flatten() for t in (mine, whole)])]


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
