"""Cases of every element-wise kernel: plain and Triton, the latter by its interpreter, which runs on a CPU.

    TRITON_INTERPRET=1 python -m tests.kernels.elementwise

prints ``{case: largest relative difference of a result}``; the variable has to be set before Triton is imported.

    python -m tests.kernels.elementwise compile

compiles the same calls, and those of kernels that have no case, in bf16 for an H100 instead, which needs no GPU: the
interpreter takes more than the compiler does. It prints ``{case: kernels compiled}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import bitsandbytes as bnb
import torch

from sweeptune.kernels import ops

Results = list[torch.Tensor]
WIDTHS = (64, 96, 200)
"""Powers of two and others, so that masks matter."""


def draw(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes)


def norm(kernels: Any, width: int, residual: bool, trains: bool) -> Results:
    """`rms_norm`, `rms_apply` and `rms_norm_backward`, of 37 rows: not a multiple of what a program sums up."""
    x, dy, other, weight = draw(37, width), draw(37, width), draw(37, width), draw(width)
    y, rstd, total = kernels.rms_norm(x, weight, 1e-5, other if residual else None)
    again = kernels.rms_apply(total, weight, rstd)
    dx, dweight = kernels.rms_norm_backward(dy, total, weight, rstd, other if residual else None, trains)
    return [y, rstd, total, again, dx] + ([dweight] if trains else [])


def rope(kernels: Any, width: int, backward: bool) -> Results:
    """24 tokens at 12 positions: two rows side by side."""
    q, k, angle = draw(24, 3, width), draw(24, 1, width), draw(12, width // 2).repeat(1, 2)
    if kernels is ops:
        ops.rope_(q, k, angle.cos(), angle.sin(), backward=backward)
    else:
        kernels.rope_(q, k, angle.cos(), angle.sin(), backward)
    return [q, k]


def lows(ranks: tuple[int, ...], n: int, f: int) -> list[ops.Low | None]:
    """Products of low rank, whose rows are a slice of wider ones as a group's are; none for rank 0."""
    return [(draw(n, 2 * rank)[:, rank:], draw(f, rank) / rank) if rank else None for rank in ranks]


def swiglu(kernels: Any, width: int, ranks: tuple[int, int, int]) -> Results:
    """Forward and backward, with what adapters add; of more rows than the tiles of one program."""
    rows = 300 if width == WIDTHS[0] else 37
    grad, gate, up = draw(rows, width), draw(rows, width), draw(rows, width)
    grad_low, gate_low, up_low = lows(ranks, rows, width)
    y = kernels.swiglu(gate, up, gate_low, up_low)
    kernels.swiglu_backward_(grad, gate, up, grad_low, gate_low, up_low)
    return [y, grad, gate, up]


def nf4(kernels: Any, nested: bool, size: tuple[int, int]) -> Results:
    """A weight that bitsandbytes has quantised; on a CPU it reads rows of 96 wrongly itself (0.50)."""
    packed, state = bnb.functional.quantize_4bit(draw(*size), quant_type="nf4", compress_statistics=nested)
    return [kernels.nf4_dequantize(packed, state, torch.float32)]


def loss(kernels: Any, width: int, gradient: bool) -> Results:
    """Two rows have no target; the last logit of a row is another's target."""
    logits, targets = 3 * draw(19, width), torch.randint(0, width, (19,))
    targets[3] = targets[-1] = -100
    targets[5] = width - 1
    if kernels is ops:
        return [ops.cross_entropy_(logits, targets, gradient=gradient), logits]
    return [kernels.cross_entropy_(logits, targets, gradient), logits]


CASES: dict[str, Callable[[Any], Results]] = {
    **{
        f"norm {w} {r} {t}": lambda k, w=w, r=r, t=t: norm(k, w, r, t)  # type: ignore[misc]
        for w in WIDTHS
        for r in (False, True)
        for t in (False, True)
    },
    **{f"rope {w} {b}": lambda k, w=w, b=b: rope(k, w, b) for w in (16, 48) for b in (False, True)},  # type: ignore[misc]
    **{
        f"swiglu {w} {r}": lambda k, w=w, r=r: swiglu(k, w, r)  # type: ignore[misc]
        for w in WIDTHS
        for r in ((0, 0, 0), (16, 16, 16), (16, 0, 48), (0, 64, 0), (16, 0, 0))
    },
    **{f"nf4 {n} {s}": lambda k, n=n, s=s: nf4(k, n, s) for n in (False, True) for s in ((64, 128), (257, 192))},  # type: ignore[misc]
    **{f"loss {w} {g}": lambda k, w=w, g=g: loss(k, w, g) for w in (50, 512, 9001) for g in (False, True)},  # type: ignore[misc]
}


def run(name: str, kernels: Any) -> Results:
    """A case's results; the same inputs for whichever kernels."""
    torch.manual_seed(len(name))
    return CASES[name](kernels)


def adamw(by_chance: bool) -> None:
    """One update, scaled by what clipping says."""
    from sweeptune.kernels.adamw import Settings
    from sweeptune.kernels.adamw_triton import triton_adamw_

    settings = Settings(1e-3, 0.9, 0.999, 1e-8, 0.01, 1, (1, 2) if by_chance else None)
    triton_adamw_(*(draw(64) for _ in range(4)), settings, torch.ones(()))


def rows_of_a_table(_: Any) -> None:
    """An embedding in the host's memory."""
    from sweeptune.kernels.host_rows_triton import triton_rows

    triton_rows(draw(8, 64), torch.tensor([1, 3]))


OTHERS: dict[str, Callable[[Any], Any]] = {
    "round to fp8": lambda k: k.quantize_rows(draw(4, 64), None),
    "round columns to fp8": lambda k: k.quantize_rows(draw(4, 64), torch.ones(64, dtype=torch.float32)),
    "transpose fp8": lambda k: k.transpose_bytes(torch.zeros(64, 64, dtype=torch.uint8).view(ops.FP8)),
    "adamw": lambda _: adamw(False),
    "adamw by chance": lambda _: adamw(True),
    "rows of a table": rows_of_a_table,
}
"""Kernels that are compared elsewhere, or on a GPU alone."""


class NoDevice:
    """What Triton asks of a driver before it compiles; there is nothing to launch on."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def compile_all() -> None:
    """Compile what every case calls."""
    import triton

    from sweeptune.kernels import triton_ops

    triton.runtime.driver.set_active(NoDevice())
    launch, compiled = triton.JITFunction.run, 0

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return launch(self, *args, grid=grid, warmup=True, **options)

    triton.JITFunction.run = only_compile
    torch.set_default_dtype(torch.bfloat16)
    found = {}
    for name, call in ({name: partial(run, name) for name in CASES} | OTHERS).items():
        compiled = 0
        call(triton_ops)
        found[name] = compiled
    print(json.dumps(found))


def compare() -> None:
    """Compare all."""
    from sweeptune.kernels import triton_ops

    found = {}
    for name in CASES:
        pairs = zip(run(name, triton_ops), run(name, ops), strict=True)
        found[name] = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)
    print(json.dumps(found))


if __name__ == "__main__":
    compile_all() if "compile" in sys.argv else compare()
