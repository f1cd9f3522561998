"""Frozen linear layers in 8-bit floating point, multiplied in it.

Weights are stored as e4m3 (4 bits of exponent, 3 of mantissa; Micikevicius et al. 2022, arXiv 2209.05433) with one
scale an output, activations and gradients are rounded to it on the way, one scale a token: products run at up to twice
the rate of bf16 on GPUs from compute capability 8.9 on. Sums are made in fp32 and leave in the compute precision. The
gradient of the input needs the weight the other way round: its scale is multiplied into the incoming gradient before
that is rounded, so that one stored copy serves both.
"""

from __future__ import annotations

from typing import Any

import torch

from sweeptune.kernels import ops


class Fp8Linear(torch.nn.Linear):
    """A frozen linear layer without bias.

    Attributes:
        weight: float8_e4m3fn [out, in].
        scale: fp32 [out]; the layer's weight is weight * scale[:, None].

    Example:
        >>> layer = Fp8Linear.of(torch.nn.Linear(64, 64, bias=False))
        >>> layer(torch.randn(2, 64)).shape
        torch.Size([2, 64])
    """

    scale: torch.Tensor

    @classmethod
    def of(cls, linear: torch.nn.Linear) -> Fp8Linear:
        """The same layer, rounded."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=False)
        values, scale = ops.quantize_rows(linear.weight.detach())
        made.weight = torch.nn.Parameter(values, requires_grad=False)
        made.register_buffer("scale", scale)
        return made

    def plain(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] as plain numbers."""
        return (self.weight.float() * self.scale[:, None]).to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x [..., in] to [..., out], rounding x as the fast path does."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        found: torch.Tensor = Fp8Function.apply(input.to(dtype), self)  # type: ignore[no-untyped-call]
        return found


class Fp8Function(torch.autograd.Function):
    """`Fp8Linear` for autograd: ``apply(x, layer)``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Fp8Linear) -> torch.Tensor:
        """Multiply."""
        ctx.layer = layer
        return times(ops.quantize_rows(x.detach().reshape(-1, x.shape[-1])), layer, x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradient of x."""
        return times_transposed(grad.reshape(-1, grad.shape[-1]), ctx.layer).view(*grad.shape[:-1], -1), None


def times(x: ops.Rounded, layer: Fp8Linear, dtype: torch.dtype) -> torch.Tensor:
    """x W^T [n, out] of rounded x [n, in]."""
    return ops.fp8_matmul(x, (layer.weight.detach(), layer.scale), dtype)


def times_transposed(dy: torch.Tensor, layer: Fp8Linear) -> torch.Tensor:
    """dy W [n, in] of dy [n, out], which is rounded on the way."""
    weight = ops.fp8_transpose(layer.weight.detach())
    ones = torch.ones(len(weight), device=dy.device)
    return ops.fp8_matmul(ops.quantize_rows(dy, layer.scale), (weight, ones), dy.dtype)
