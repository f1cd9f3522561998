"""The element-wise kernels in Triton; `sweeptune.kernels.ops` calls them on CUDA tensors and holds their references.

Each kernel reads its operands once and computes in fp32. What a kernel overwrites is said in its name's caller. Rows
are counted in 64 bits: 16,384 rows of 250,000 logits are more than 2^31 elements.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sweeptune.kernels.ops import SUMMED_ROWS

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 levels of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8 if block <= 8192 else 16


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm(x, residual, total, weight, y, rstd, d, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < d
    value = tl.load(x + row * d + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row * d + at, mask=inside, other=0.0).to(tl.float32)
        kept = value.to(total.dtype.element_ty)
        tl.store(total + row * d + at, kept, mask=inside)
        value = kept.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value) / d + eps)
    tl.store(rstd + row, r)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    normed = (value * r).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * d + at, (normed * w).to(y.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None) -> Any:
    """See `sweeptune.kernels.ops.rms_norm`."""
    n, d = x.shape
    y, rstd = torch.empty_like(x), torch.empty(n, dtype=torch.float32, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(d)
    add = residual is not None
    _rms_norm[(n,)](
        x, residual if add else x, total, weight, y, rstd, d, eps, ADD=add, BLOCK=block, num_warps=_warps(block)
    )
    return y, rstd, total


@triton.jit  # type: ignore[untyped-decorator]
def _rms_apply(x, weight, rstd, y, d, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < d
    value = tl.load(x + row * d + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    normed = (value * tl.load(rstd + row)).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * d + at, (normed * w).to(y.dtype.element_ty), mask=inside)


def rms_apply(x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """See `sweeptune.kernels.ops.rms_apply`."""
    n, d = x.shape
    y, block = torch.empty_like(x), triton.next_power_of_2(d)
    _rms_apply[(n,)](x, weight, rstd, y, d, BLOCK=block, num_warps=_warps(block))
    return y


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_backward(  # type: ignore[no-untyped-def]
    dy, x, weight, rstd, residual, dx, parts, n, d,
    RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < d
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    part = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(ROWS):
        row = program * ROWS + number
        here = at < tl.where(row < n, d, 0)  # inside & (row < n), which Triton 3.9 cannot interpret
        r = tl.load(rstd + row, mask=row < n, other=0.0)
        normed = tl.load(x + row * d + at, mask=here, other=0.0).to(tl.float32) * r
        grad = tl.load(dy + row * d + at, mask=here, other=0.0).to(tl.float32)
        if WEIGHT:
            part += grad * normed
        grad *= w
        found = r * (grad - normed * (tl.sum(grad * normed) / d))
        if RESIDUAL:
            found += tl.load(residual + row * d + at, mask=here, other=0.0).to(tl.float32)
        tl.store(dx + row * d + at, found.to(dx.dtype.element_ty), mask=here)
    if WEIGHT:
        tl.store(parts + program * d + at, part, mask=inside)


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual: torch.Tensor | None,
    want_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `sweeptune.kernels.ops.rms_norm_backward`."""
    n, d = x.shape
    block = triton.next_power_of_2(d)
    rows = SUMMED_ROWS if want_weight else 1
    programs = triton.cdiv(n, rows)
    parts = torch.empty(programs, d, dtype=torch.float32, device=x.device) if want_weight else dy
    _rms_norm_backward[(programs,)](
        dy,
        x,
        weight,
        rstd,
        dy if residual is None else residual,
        dy,  # in place
        parts,
        n,
        d,
        RESIDUAL=residual is not None,
        WEIGHT=want_weight,
        ROWS=rows,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return dy, parts.sum(dim=0).to(weight.dtype) if want_weight else None


@triton.jit  # type: ignore[untyped-decorator]
def _rope(  # type: ignore[no-untyped-def]
    q, k, cos, sin, positions, SIGN: tl.constexpr, HQ: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    place = (row % positions) * (2 * HALF)
    c = tl.load(cos + place + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + place + at, mask=inside, other=0.0).to(tl.float32)[None, :] * SIGN
    _turn(q, row, c, s, HQ, HALF, BQ, BLOCK)
    _turn(k, row, c, s, HK, HALF, BK, BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _turn(x, row, c, s, H: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    heads, at = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (heads < H) & (at < HALF)
    place = x + (row * H + heads) * (2 * HALF) + at
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
    tl.store(place + HALF, (second * c + first * s).to(x.dtype.element_ty), mask=inside)


def rope_(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool) -> None:
    """See `sweeptune.kernels.ops.rope_`."""
    n, heads, width = q.shape
    half = width // 2
    _rope[(n,)](
        q,
        k,
        cos,
        sin,
        cos.shape[0],
        SIGN=-1.0 if backward else 1.0,
        HQ=heads,
        HK=k.shape[1],
        HALF=half,
        BQ=triton.next_power_of_2(heads),
        BK=triton.next_power_of_2(k.shape[1]),
        BLOCK=triton.next_power_of_2(half),
        num_warps=4,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _columns(by, column, f, by_row, by_column, R: tl.constexpr, BR: tl.constexpr):  # type: ignore[no-untyped-def]
    """by^T of some columns, [BR, columns]; nothing is read where R is 0."""
    rank = tl.arange(0, BR)
    return tl.load(
        by + rank[:, None] * by_column + column[None, :] * by_row,
        mask=(rank < R)[:, None] & (column < f)[None, :],
        other=0.0,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _sum(x, at, inside, low, columns, row, n, low_row, low_column, R: tl.constexpr, BR: tl.constexpr):  # type: ignore[no-untyped-def]
    """x + low columns in fp32, of a tile; R is 0 where there is nothing to add."""
    found = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if R > 0:
        rank = tl.arange(0, BR)
        rows = tl.load(
            low + row[:, None] * low_row + rank[None, :] * low_column,
            mask=(row < n)[:, None] & (rank < R)[None, :],
            other=0.0,
        )
        found += tl.dot(rows, columns, input_precision="ieee")
    return found


def _arguments(low: Any, x: torch.Tensor) -> tuple[list[Any], int]:
    """Pointers and strides of what is added, and its rank."""
    if low is None:
        return [x, x, 0, 0, 0, 0], 0
    rows, by = low
    return [rows, by, *rows.stride(), *by.stride()], rows.shape[1]


def _ranks(*ranks: int) -> int:
    return max(16, triton.next_power_of_2(max(ranks)))


def _grid(n: int, f: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(f, tile["BF"]), triton.cdiv(n, tile["BN"] * tile["TILES"])


TILE, PLAIN_TILE = {"BN": 32, "BF": 64, "TILES": 8, "num_warps": 4}, {"BN": 32, "BF": 128, "TILES": 1, "num_warps": 4}
BACKWARD_TILE = {"BN": 16, "BF": 128, "TILES": 8, "num_warps": 4}
"""Rows and columns of a tile, tiles below each other for a program, and its warps: the fastest of those tried on an
H200 (2026-11-28, 16,384 x 8,192 in bf16, rank 16; forward 0.277 -> 0.253 ms, backward 0.577 -> 0.525)."""


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu(  # type: ignore[no-untyped-def]
    gate, up, out, n, f,
    gate_low, gate_by, gl0, gl1, gb0, gb1, up_low, up_by, ul0, ul1, ub0, ub1,
    GR: tl.constexpr, UR: tl.constexpr, BR: tl.constexpr,
    BN: tl.constexpr, BF: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BF + tl.arange(0, BF)
    gate_columns = _columns(gate_by, column, f, gb0, gb1, GR, BR)
    up_columns = _columns(up_by, column, f, ub0, ub1, UR, BR)
    half = out.dtype.element_ty
    for tile in range(TILES):
        row = (tl.program_id(1).to(tl.int64) * TILES + tile) * BN + tl.arange(0, BN)
        at = row[:, None] * f + column[None, :]
        inside = (row < n)[:, None] & (column < f)[None, :]
        g = _sum(gate, at, inside, gate_low, gate_columns, row, n, gl0, gl1, GR, BR)
        u = _sum(up, at, inside, up_low, up_columns, row, n, ul0, ul1, UR, BR)
        silu = (g * tl.sigmoid(g)).to(half).to(tl.float32)
        tl.store(out + at, (silu * u).to(half), mask=inside)


def swiglu(gate: torch.Tensor, up: torch.Tensor, gate_low: Any, up_low: Any) -> torch.Tensor:
    """See `sweeptune.kernels.ops.swiglu`."""
    (n, f), out = gate.shape, torch.empty_like(gate)
    (first, gr), (second, ur) = _arguments(gate_low, gate), _arguments(up_low, gate)
    tile = TILE if gr or ur else PLAIN_TILE
    _swiglu[_grid(n, f, tile)](gate, up, out, n, f, *first, *second, GR=gr, UR=ur, BR=_ranks(gr, ur), **tile)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_backward(  # type: ignore[no-untyped-def]
    grad, gate, up, n, f,
    grad_low, grad_by, dl0, dl1, db0, db1,
    gate_low, gate_by, gl0, gl1, gb0, gb1, up_low, up_by, ul0, ul1, ub0, ub1,
    DR: tl.constexpr, GR: tl.constexpr, UR: tl.constexpr, BR: tl.constexpr,
    BN: tl.constexpr, BF: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BF + tl.arange(0, BF)
    grad_columns = _columns(grad_by, column, f, db0, db1, DR, BR)
    gate_columns = _columns(gate_by, column, f, gb0, gb1, GR, BR)
    up_columns = _columns(up_by, column, f, ub0, ub1, UR, BR)
    half = gate.dtype.element_ty
    for tile in range(TILES):
        row = (tl.program_id(1).to(tl.int64) * TILES + tile) * BN + tl.arange(0, BN)
        at = row[:, None] * f + column[None, :]
        inside = (row < n)[:, None] & (column < f)[None, :]
        d = _sum(grad, at, inside, grad_low, grad_columns, row, n, dl0, dl1, DR, BR)
        g = _sum(gate, at, inside, gate_low, gate_columns, row, n, gl0, gl1, GR, BR)
        u = _sum(up, at, inside, up_low, up_columns, row, n, ul0, ul1, UR, BR)
        s = tl.sigmoid(g)
        silu = (g * s).to(half).to(tl.float32)
        tl.store(gate + at, (d * u * (s + g * s * (1.0 - s))).to(half), mask=inside)
        tl.store(up + at, (d * silu).to(half), mask=inside)
        tl.store(grad + at, (silu * u).to(half), mask=inside)


def swiglu_backward_(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, grad_low: Any, gate_low: Any, up_low: Any
) -> None:
    """See `sweeptune.kernels.ops.swiglu_backward_`."""
    n, f = gate.shape
    (zeroth, dr), (first, gr), (second, ur) = (_arguments(low, gate) for low in (grad_low, gate_low, up_low))
    tile = BACKWARD_TILE
    _swiglu_backward[_grid(n, f, tile)](
        grad, gate, up, n, f, *zeroth, *first, *second, DR=dr, GR=gr, UR=ur, BR=_ranks(dr, gr, ur), **tile
    )


@triton.jit  # type: ignore[untyped-decorator]
def _nf4(packed, absmax, code, outer, offset, levels, out, blocks, NESTED: tl.constexpr, SIZE: tl.constexpr,
         OUTER: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = block < blocks
    if NESTED:
        step = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(code + step) * tl.load(outer + block // OUTER, mask=inside, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    at = block[:, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, :]
    two = tl.load(packed + at, mask=inside[:, None], other=0).to(tl.int32)
    high = tl.load(levels + (two >> 4)) * scale[:, None]
    low = tl.load(levels + (two & 15)) * scale[:, None]
    both = tl.interleave(high, low).to(out.dtype.element_ty)
    place = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + place, both, mask=inside[:, None])


def nf4_dequantize(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """See `sweeptune.kernels.ops.nf4_dequantize`."""
    out = torch.empty(state.shape, dtype=dtype, device=packed.device)
    blocks, rows, nested = out.numel() // state.blocksize, 32, state.nested
    _nf4[(triton.cdiv(blocks, rows),)](
        packed,
        state.absmax,
        state.state2.code if nested else state.absmax,
        state.state2.absmax if nested else state.absmax,
        state.offset if nested else state.absmax,
        state.code,
        out,
        blocks,
        NESTED=nested,
        SIZE=state.blocksize,
        OUTER=state.state2.blocksize if nested else 1,
        ROWS=rows,
        num_warps=4,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_rows(x, columns, values, scales, k, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < k
    value = tl.load(x + row * k + at, mask=inside, other=0.0).to(tl.float32)
    if COLUMNS:
        value *= tl.load(columns + at, mask=inside, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / 448.0
    tl.store(scales + row, scale)
    value = tl.minimum(tl.maximum(value / scale, -448.0), 448.0)
    tl.store(values + row * k + at, value.to(values.dtype.element_ty), mask=inside)


def quantize_rows(x: torch.Tensor, columns: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sweeptune.kernels.ops.quantize_rows`."""
    n, k = x.shape
    values = torch.empty(n, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(n, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(k)
    given = columns is not None
    _quantize_rows[(n,)](
        x, columns if given else scales, values, scales, k, COLUMNS=given, BLOCK=block, num_warps=_warps(block)
    )
    return values, scales


@triton.jit  # type: ignore[untyped-decorator]
def _transpose_bytes(x, y, n, k, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x + row[:, None] * k + column[None, :], mask=(row < n)[:, None] & (column < k)[None, :], other=0)
    tl.store(y + column[:, None] * n + row[None, :], tl.trans(tile), mask=(column < k)[:, None] & (row < n)[None, :])


def transpose_bytes(x: torch.Tensor) -> torch.Tensor:
    """See `sweeptune.kernels.ops.fp8_transpose`."""
    n, k = x.shape
    y = torch.empty(k, n, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(n, 64), triton.cdiv(k, 64))
    _transpose_bytes[grid](x.view(torch.uint8), y.view(torch.uint8), n, k, BLOCK=64, num_warps=4)
    return y


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, targets, nll, width: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    target = tl.load(targets + row)
    ignored = target < 0
    # Read before the loop, whose reductions all warps wait for: behind it, a faster warp may have overwritten it.
    own = tl.load(logits + tl.where(ignored, 0, target)).to(tl.float32)
    most = -float("inf")
    total = 0.0
    for begin in range(0, width, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < width, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(x))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(x - higher))
        most = higher
    lse = most + tl.log(total)
    tl.store(nll + row, tl.where(ignored, 0.0, lse - own))
    if GRADIENT:
        for begin in range(0, width, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            x = tl.load(logits + at, mask=at < width, other=0.0).to(tl.float32)
            grad = tl.exp(x - lse) - tl.where(at == target, 1.0, 0.0)
            grad = tl.where(ignored, 0.0, grad)
            tl.store(logits + at, grad.to(logits.dtype.element_ty), mask=at < width)


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, gradient: bool) -> torch.Tensor:
    """See `sweeptune.kernels.ops.cross_entropy_`."""
    n, width = logits.shape
    nll = torch.empty(n, dtype=torch.float32, device=logits.device)
    block = min(8192, triton.next_power_of_2(width))
    _cross_entropy[(n,)](
        logits, targets, nll, width, GRADIENT=gradient, BLOCK=block, num_warps=16 if block >= 8192 else 8
    )
    return nll
