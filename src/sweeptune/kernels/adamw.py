"""AdamW on bf16 weights in one pass: fp32 arithmetic, clipping included, and the new weight rounded to the nearest or,
to keep small updates, up or down by chance.

bf16 has 8 bits: next to a weight of 1 the next values are 0.004 below and 0.008 above, and rounding to the nearest
swallows an update of 1e-5 every time. Stochastic rounding takes the upper neighbour with the probability that makes
the mean right (Zamirai et al. 2020, arXiv 2010.06192), so that a thousand such updates move the weight by what they
add up to, on average. Moments are kept in bf16, too, rounded to the nearest.

The bits come from a counter: a hash of the element's place and of the step's keys, so that neither a generator nor its
state is needed, a resumed run draws what an unbroken one would have drawn, and CPU and GPU draw the same.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass

import torch

from sweeptune.kernels.ops import has_triton

CHUNK = 2**22
"""Elements that the plain step takes at a time: its copies in fp32 and of the hash stay small."""
MIX = ((16, 0x21F0AAAD), (15, 0xD35A2D97))
"""Shifts and factors of a 32-bit integer hash (Wellons, hash-prospector: lowbias32, improved), which ends in a shift
by 15."""


@dataclass(frozen=True)
class Settings:
    """One step of one tensor.

    Attributes:
        lr: Learning rate.
        beta1: Decay of the gradient's mean.
        beta2: Decay of its square.
        eps: Floor of the denominator.
        weight_decay: Decoupled weight decay.
        step: Number of the step, from 1.
        keys: What the random bits depend on beside the place, from `keys_of`; None: round to the nearest.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    keys: tuple[int, int] | None

    @property
    def scalars(self) -> tuple[float, float, float]:
        """What the weight keeps, the step's length, and what the square's root is divided by."""
        keep, length = 1 - self.lr * self.weight_decay, self.lr / (1 - self.beta1**self.step)
        return keep, length, math.sqrt(1 - self.beta2**self.step)


def keys_of(seed: int, step: int, number: int) -> tuple[int, int]:
    """Two keys for a tensor's step, below 2^31 (Triton's kernels take such integers without compiling anew)."""
    draw = random.Random(f"{seed}-{step}-{number}")
    return draw.getrandbits(31), draw.getrandbits(31)


def adamw_(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    settings: Settings,
    scale: torch.Tensor | None = None,
) -> None:
    """Make a step in place: the Triton kernel on CUDA, else `plain_adamw_`.

    Args:
        weight: bf16, contiguous, of any shape.
        gradient: Its gradient.
        mean: bf16, the gradient's running mean; changed.
        square: bf16, the running mean of its square; changed.
        settings: The step.
        scale: fp32, one number, which the gradient is multiplied by first.
    """
    if weight.numel() == 0:
        return
    if uses_triton(weight.device):
        from sweeptune.kernels.adamw_triton import triton_adamw_  # Triton is not everywhere

        triton_adamw_(weight, gradient.contiguous(), mean, square, settings, scale)
        # So that a backward pass which still needs the weight sees that it was changed.
        torch.autograd.graph.increment_version((weight, mean, square))
    else:
        plain_adamw_(weight, gradient, mean, square, settings, scale)


def uses_triton(device: torch.device) -> bool:
    """Whether the kernel runs there: on CUDA where Triton is installed, and anywhere in its interpreter."""
    return (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and has_triton()


@torch.no_grad()
def plain_adamw_(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    settings: Settings,
    scale: torch.Tensor | None = None,
) -> None:
    """The same in torch, in pieces (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)."""
    keep, length, root = settings.scalars
    flat = [tensor.view(-1) for tensor in (weight, gradient.contiguous(), mean, square)]
    for begin in range(0, weight.numel(), CHUNK):
        w, g, m, v = (tensor[begin : begin + CHUNK] for tensor in flat)
        grad = g.float() if scale is None else g.float() * scale
        m32 = settings.beta1 * m.float() + (1 - settings.beta1) * grad
        v32 = settings.beta2 * v.float() + (1 - settings.beta2) * grad * grad
        new = keep * w.float() - length * m32 / (v32.sqrt() / root + settings.eps)
        m.copy_(m32)
        v.copy_(v32)
        if settings.keys is not None:
            new = round_by_chance(new, random_bits(begin, len(w), settings.keys, w.device))
        w.copy_(new)


def random_bits(begin: int, count: int, keys: tuple[int, int], device: torch.device) -> torch.Tensor:
    """int64 [count], each from 0 to 65535: the bits of the places from ``begin`` on."""
    place = torch.arange(begin, begin + count, device=device)
    return mix(mix(place ^ keys[0]) ^ keys[1]) & 0xFFFF


def mix(x: torch.Tensor) -> torch.Tensor:
    """Hash numbers of 32 bits, which int64 tensors hold: products wrap around, and their low halves stay right."""
    for shift, factor in MIX:
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)


def round_by_chance(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """fp32 values as one of their two neighbours in bf16, the nearer one more often: unbiased.

    Args:
        values: fp32, any shape.
        bits: int, the same shape, uniform from 0 to 65535.

    Example:
        >>> round_by_chance(torch.tensor([1.0, 1.002]), torch.tensor([65535, 65535]))
        tensor([1.0000, 1.0078], dtype=torch.bfloat16)
    """
    raised = (values.view(torch.int32) + bits.to(torch.int32)) & -65536
    return raised.view(torch.float32).to(torch.bfloat16)
