"""The element-wise steps of a decoder block and of the loss: Triton kernels on a GPU, plain torch everywhere else.

The plain versions are the reference that each kernel is held against (``tests/kernels/test_ops.py`` here, through
Triton's interpreter; ``bench/kernel_parity.py`` on a GPU), and what a CPU runs. All take rows behind each other: x is
[n, d], n the tokens of a micro-batch. A trailing underscore says that an argument is overwritten.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F


@cache
def has_triton() -> bool:
    """Whether Triton is installed: torch for CUDA brings it, torch for CPUs does not."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def triton_ops() -> Any:
    """The Triton kernels, which can be imported where Triton is installed alone."""
    from sweeptune.kernels import triton_ops

    return triton_ops


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467) of x, or of x + residual.

    Args:
        x: [n, d].
        weight: [d].
        eps: Added to the mean square.
        residual: [n, d], added to x first.

    Returns:
        y [n, d], rounded before the weight as Llama does; 1 / rms, fp32 [n]; and what was normalised [n, d], which is x
        itself where nothing was added.
    """
    if _on_gpu(x):
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = triton_ops().rms_norm(x, weight, eps, residual)
        return found
    total = x if residual is None else x + residual
    rstd = torch.rsqrt(total.float().square().mean(dim=-1) + eps)
    return rms_apply(total, weight, rstd), rstd, total


def rms_apply(x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """`rms_norm` again, where 1 / rms is known."""
    if _on_gpu(x):
        found: torch.Tensor = triton_ops().rms_apply(x, weight, rstd)
        return found
    return (weight * (x.float() * rstd[:, None]).to(x.dtype)).to(x.dtype)


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual: torch.Tensor | None = None,
    want_weight: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of `rms_norm`.

    Args:
        dy: Gradient of y [n, d]; may be overwritten.
        x: What was normalised.
        weight: [d].
        rstd: 1 / rms, [n].
        residual: Gradient that reaches x past the norm, added to the result.
        want_weight: Whether the weight trains.

    Returns:
        Gradients of x and, where it is wanted, of the weight.
    """
    if _on_gpu(x):
        found: tuple[torch.Tensor, torch.Tensor | None] = triton_ops().rms_norm_backward(
            dy, x, weight, rstd, residual, want_weight
        )
        return found
    normed = x.float() * rstd[:, None]
    grad = dy.float()
    dweight = (grad * normed).sum(dim=0).to(weight.dtype) if want_weight else None
    grad = grad * weight.float()
    dx = rstd[:, None] * (grad - normed * (grad * normed).mean(dim=-1, keepdim=True))
    return (dx if residual is None else dx + residual.float()).to(x.dtype), dweight


def rope_(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backward: bool = False) -> None:
    """Rotate queries and keys by their positions, in place (Su et al. 2021, arXiv 2104.09864; halves as in Llama).

    Args:
        q: [n, heads, width], contiguous.
        k: [n, key heads, width], contiguous.
        cos: [positions, width]; token i is at position i modulo their number.
        sin: Likewise.
        backward: Rotate the other way, which is the gradient's.
    """
    if _on_gpu(q):
        triton_ops().rope_(q, k, cos, sin, backward)
        return
    half = q.shape[-1] // 2
    c, s = (t[:, None, :half].repeat(len(q) // len(t), 1, 1).float() for t in (cos, sin))
    s = -s if backward else s
    for x in (q, k):
        first, second = x[..., :half].float(), x[..., half:].float()
        x[..., :half], x[..., half:] = first * c - second * s, second * c + first * s


SUMMED_ROWS = 16
"""Rows whose share of a norm weight's gradient is summed up by one program of the kernel."""
Low = tuple[torch.Tensor, torch.Tensor]
"""A product of low rank that is added to a matrix [n, f] on the way: rows [n, r] and columns [f, r]."""
LATE_RANK = 64
"""Above this rank a tile of it takes too many registers; then it is added by a product of its own."""


def _with(x: torch.Tensor, low: Low | None) -> torch.Tensor:
    """In fp32: rounded to x's dtype again, what an adapter has just begun to learn would be gone."""
    return x.float() if low is None else torch.addmm(x.float(), low[0].float(), low[1].float().t())


def swiglu(
    gate: torch.Tensor, up: torch.Tensor, gate_low: Low | None = None, up_low: Low | None = None
) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202), with what adapters add to either.

    Args:
        gate: [n, f].
        up: [n, f].
        gate_low: Added to the gate first: rank at most `LATE_RANK`.
        up_low: Added to up first.
    """
    if _on_gpu(gate):
        found: torch.Tensor = triton_ops().swiglu(gate, up, gate_low, up_low)
        return found
    half = gate.dtype
    return (F.silu(_with(gate, gate_low)).to(half) * _with(up, up_low)).to(half)


def swiglu_backward_(
    grad: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    grad_low: Low | None = None,
    gate_low: Low | None = None,
    up_low: Low | None = None,
) -> None:
    """Gradients of `swiglu`, in place: gate and up become their gradients, and ``grad`` becomes silu(gate) * up again.

    Args:
        grad: Gradient of the result [n, f].
        gate: [n, f].
        up: [n, f].
        grad_low: Added to the gradient first.
        gate_low: As in `swiglu`.
        up_low: As in `swiglu`.
    """
    if _on_gpu(grad):
        triton_ops().swiglu_backward_(grad, gate, up, grad_low, gate_low, up_low)
        return
    whole, g, u = _with(grad, grad_low), _with(gate, gate_low), _with(up, up_low)
    sigmoid, silu = torch.sigmoid(g), F.silu(g).to(gate.dtype).float()
    into_gate, into_up, act = whole * u * (sigmoid + g * sigmoid * (1 - sigmoid)), whole * silu, silu * u
    for old, new in ((gate, into_gate), (up, into_up), (grad, act)):
        old.copy_(new)


def nf4_dequantize(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """A weight that bitsandbytes stores in NF4, as numbers.

    Args:
        packed: uint8, two weights a byte, the first in the upper half.
        state: Its ``quant_state``, with or without quantised constants.
        dtype: Of the result.

    Returns:
        [out, in]
    """
    if _on_gpu(packed):
        found: torch.Tensor = triton_ops().nf4_dequantize(packed, state, dtype)
        return found
    from bitsandbytes.functional import dequantize_4bit

    plain: torch.Tensor = dequantize_4bit(packed, state)
    return plain.to(dtype)


@cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether a GPU has products of e4m3 (Ada, Hopper); Triton cannot even round to it on older ones."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
"""The largest number of e4m3."""
Rounded = tuple[torch.Tensor, torch.Tensor]
"""A matrix [n, k] in e4m3, and the scale of each row, fp32 [n]."""


def quantize_rows(x: torch.Tensor, columns: torch.Tensor | None = None) -> Rounded:
    """Round a matrix to e4m3, each row scaled so that its largest number is the format's largest.

    Args:
        x: [n, k].
        columns: fp32 [k], multiplied into the columns first.
    """
    if multiplies_fp8(x.device):
        found: Rounded = triton_ops().quantize_rows(x.contiguous(), columns)
        return found
    values = x.float() if columns is None else x.float() * columns
    scale = values.abs().amax(dim=-1).clamp(min=1e-12) / FP8_MOST
    return (values / scale[:, None]).clamp(-FP8_MOST, FP8_MOST).to(FP8), scale


def fp8_transpose(x: torch.Tensor) -> torch.Tensor:
    """[n, k] in e4m3 as [k, n], stored row by row."""
    if multiplies_fp8(x.device):
        found: torch.Tensor = triton_ops().transpose_bytes(x)
        return found
    return x.view(torch.uint8).t().contiguous().view(FP8)


def fp8_matmul(a: Rounded, b: Rounded, dtype: torch.dtype) -> torch.Tensor:
    """a b^T [n, m] of a [n, k] and b [m, k]."""
    if multiplies_fp8(a[0].device):
        return torch._scaled_mm(
            a[0], b[0].t(), scale_a=a[1][:, None], scale_b=b[1][None, :], out_dtype=dtype, use_fast_accum=True
        )
    return ((a[0].float() @ b[0].float().t()) * a[1][:, None] * b[1]).to(dtype)


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, *, gradient: bool) -> torch.Tensor:
    """Negative log-likelihood of every row's target; the logits become its gradient.

    Args:
        logits: [n, vocabulary]; overwritten where the gradient is wanted.
        targets: int64 [n]; below 0 where a row has none.
        gradient: Whether the gradient of the sum is wanted.

    Returns:
        fp32 [n] in nats, 0 where there is no target.
    """
    if _on_gpu(logits):
        found: torch.Tensor = triton_ops().cross_entropy_(logits, targets, gradient)
        return found
    values = logits.float()
    nll = F.cross_entropy(values, targets.clamp(min=-1), ignore_index=-1, reduction="none")
    if gradient:
        grad = values.softmax(dim=-1)
        grad.scatter_add_(1, targets.clamp(min=0)[:, None], grad.new_full((len(grad), 1), -1.0))
        logits.copy_(grad * (targets >= 0)[:, None])
    return nll
