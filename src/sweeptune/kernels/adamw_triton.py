"""`sweeptune.kernels.adamw.plain_adamw_` as one Triton kernel: each element is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sweeptune.kernels.adamw import Settings

BLOCK = 1024


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def _raised(x, bits):  # type: ignore[no-untyped-def]
    """fp32 as bf16: bits are added to what is cut off."""
    raised = (x.to(tl.uint32, bitcast=True) + bits) & 0xFFFF0000
    return raised.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _nearest(x):  # type: ignore[no-untyped-def]
    """fp32 as bf16, the nearest, of two the even one; Triton's interpreter cuts off where a GPU rounds."""
    return _raised(x, 0x7FFF + ((x.to(tl.uint32, bitcast=True) >> 16) & 1))


@triton.jit(do_not_specialize=["key1", "key2"])  # type: ignore[untyped-decorator]
def _adamw(  # type: ignore[no-untyped-def]
    weight,
    gradient,
    mean,
    square,
    scale,
    count,
    keep,
    length,
    root,
    beta1,
    beta2,
    rest1,
    rest2,
    eps,
    key1,
    key2,
    SCALED: tl.constexpr,
    BY_CHANCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(gradient + place, inside, other=0.0).to(tl.float32)
    if SCALED:
        g *= tl.load(scale)
    w = tl.load(weight + place, inside, other=0.0).to(tl.float32)
    m = beta1 * tl.load(mean + place, inside, other=0.0).to(tl.float32) + rest1 * g
    v = beta2 * tl.load(square + place, inside, other=0.0).to(tl.float32) + rest2 * g * g
    new = keep * w - tl.div_rn(length * m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    if BY_CHANCE:
        bits = _mix(_mix(place.to(tl.uint32) ^ key1.to(tl.uint32)) ^ key2.to(tl.uint32)) & 0xFFFF
        tl.store(weight + place, _raised(new, bits), inside)
    else:
        tl.store(weight + place, _nearest(new), inside)
    tl.store(mean + place, _nearest(m), inside)
    tl.store(square + place, _nearest(v), inside)


def triton_adamw_(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    settings: Settings,
    scale: torch.Tensor | None,
) -> None:
    """As `sweeptune.kernels.adamw.plain_adamw_`, of contiguous tensors on CUDA, or anywhere in the interpreter."""
    keep, length, root = settings.scalars
    _adamw[(triton.cdiv(weight.numel(), BLOCK),)](
        weight,
        gradient,
        mean,
        square,
        square if scale is None else scale,
        weight.numel(),
        keep,
        length,
        root,
        settings.beta1,
        settings.beta2,
        1 - settings.beta1,
        1 - settings.beta2,
        settings.eps,
        *(settings.keys or (0, 0)),
        SCALED=scale is not None,
        BY_CHANCE=settings.keys is not None,
        BLOCK=BLOCK,
    )
