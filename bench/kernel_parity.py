"""Each fused kernel on a CUDA GPU: against its plain reference, and what it takes.

    python bench/kernel_parity.py --out results/

Parity first: every element-wise kernel, and a decoder block and the loss of each kind of model and method, forward and
backward, in bf16 against an fp32 computation of the same weights on fresh random inputs, beside what the plain code's
bf16 differs by. Then times, at InternLM2-1.8B's shapes: attention back-ends, and the products and passes of a block.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import sweeptune  # noqa: F401  bitsandbytes advises packages where it is imported first

# isort: split
import bitsandbytes as bnb
import torch
from common import head, line
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sweeptune.config.compose import compose
from sweeptune.data.collate import collate_packs
from sweeptune.data.tokenize import Row
from sweeptune.kernels import ops
from sweeptune.kernels.fuse import fuse, obstacle, unfuse
from sweeptune.kernels.interfaces import varlen_kernel, varlen_options
from sweeptune.methods import METHODS
from sweeptune.models import load_model
from sweeptune.training.loss import summed_nll
from sweeptune.training.restore import dequantize

GPU = torch.device("cuda")
DEQUANTIZE = bnb.functional.dequantize_4bit
FLEX: Any = torch.compile(flex_attention, dynamic=False)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4001,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, tied head": LLAMA | {"tie_word_embeddings": True},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True},
}


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative difference by norm."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30))


def ms(run: Callable[[], Any], times: int = 10) -> float:
    """Device time of a call, ms."""
    for _ in range(3):
        run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times


def elementwise() -> list[str]:
    """Every element-wise kernel in bf16: its error and its plain version's, both against fp32."""
    torch.manual_seed(0)
    n, d, f = 301, 2048, 8192
    rand = lambda *size: torch.randn(*size, device=GPU)  # noqa: E731
    x, dy, residual, weight = rand(n, d), rand(n, d), rand(n, d), rand(d).abs()
    gate, up, grad = rand(n, f), rand(n, f), rand(n, f)
    lows = [(rand(n, 32), rand(f, 16) / 4) for _ in range(3)]
    q, k = rand(n, 16, 128), rand(n, 8, 128)
    angle = rand(n, 64).repeat(1, 2)
    logits, targets = 3 * rand(64, 92544), torch.randint(0, 92544, (64,), device=GPU)
    targets[5] = -100

    def norm(t: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        y, rstd, total = ops.rms_norm(t(x), t(weight), 1e-5, t(residual))
        dx, dw = ops.rms_norm_backward(t(dy), total, t(weight), rstd, t(residual), True)
        assert dw is not None
        return [y, total, ops.rms_apply(total, t(weight), rstd), dx, dw]

    def rope(t: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        a, b = t(q).clone(), t(k).clone()
        ops.rope_(a, b, t(angle.cos()), t(angle.sin()))
        c, e = a.clone(), b.clone()
        ops.rope_(c, e, t(angle.cos()), t(angle.sin()), backward=True)
        return [a, b, c, e]

    def glu(t: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        parts = [t(grad).clone(), t(gate).clone(), t(up).clone()]
        y = ops.swiglu(parts[1], parts[2])
        ops.swiglu_backward_(*parts)
        return [y, *parts]

    def adapted(t: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        parts = [t(grad).clone(), t(gate).clone(), t(up).clone()]
        first, second, third = ((t(low)[:, 16:], t(by)) for low, by in lows)
        y = ops.swiglu(parts[1], parts[2], second, third)
        ops.swiglu_backward_(*parts, first, second, third)
        return [y, *parts]

    def loss(t: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        made = t(logits).clone()
        return [ops.cross_entropy_(made, targets, gradient=True), made]

    rows = []
    for name, run in {
        "rms_norm": norm,
        "rope": rope,
        "swiglu": glu,
        "swiglu with adapters": adapted,
        "cross_entropy": loss,
    }.items():
        half, plain_on = (lambda t: t.to(torch.bfloat16)), ops._on_gpu
        fast = run(half)
        ops._on_gpu = lambda _: False  # type: ignore[assignment]
        plain, exact = run(half), run(lambda t: t.clone())
        ops._on_gpu = plain_on
        errors = [max(off(a, b) for a, b in zip(found, exact, strict=True)) for found in (fast, plain)]
        rows.append(line([name, *(f"{e:.2e}" for e in errors)]))
    big = torch.randn(2048, 8192, device=GPU, dtype=torch.bfloat16)
    for nested in (True, False):
        packed, state = bnb.functional.quantize_4bit(big, compress_statistics=nested, quant_type="nf4")
        ours, theirs = partial(ops.nf4_dequantize, packed, state, big.dtype), partial(DEQUANTIZE, packed, state)
        name = f"nf4{', double' if nested else ''}: {ms(ours):.3f} ms, bitsandbytes {ms(theirs):.3f}"
        rows.append(line([name, f"{off(ours(), theirs()):.2e}", "0"]))
    rounded = ops.quantize_rows(x.to(torch.bfloat16), weight)
    rows.append(
        line(
            [
                "round to fp8 (3 bits of mantissa)",
                f"{off(rounded[0].float() * rounded[1][:, None], x * weight):.2e}",
                "-",
            ]
        )
    )
    return [*head(["kernel", "fused bf16, worst", "plain bf16, worst"]), *rows]


def batch() -> Any:
    """Packed rows of random ids."""
    generator = torch.Generator().manual_seed(1)

    def row(length: int) -> Row:
        ids = torch.randint(3, 4000, (length,), generator=generator).tolist()
        return Row(str(length), ids, [False] * 9 + [True] * (length - 9), 1)

    return collate_packs([(row(120), row(77)), (row(200),)], 0, GPU)


def models() -> list[str]:
    """Loss and gradients of whole small models: fused and plain in bf16, each against fp32."""
    found = batch()
    table = head(["model", "method", "loss: fused", "plain", "worst gradient: fused", "plain", "whose"])
    for shape, architecture in SHAPES.items():
        for method in ("full", "lora", "qlora", "rslora", "lora_fp8"):
            config = compose(["model=tiny", f"method={method}", "model.attention=varlen"])
            made = METHODS[method]
            quantization = made.quantization(torch.bfloat16) if made.quantization else None
            model = replace(config.model, architecture=architecture)
            plain = made.attach(
                load_model(model, dtype=torch.bfloat16, device=GPU, quantization=quantization), config.method
            )
            assert obstacle(plain) is None, obstacle(plain)
            for name, p in plain.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(p, std=0.05)

            def gradients(model: Any, half: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
                model.zero_grad(set_to_none=True)
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    loss = summed_nll(model, found)
                loss.backward()
                return loss.item(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}

            a = gradients(plain)
            for recompute in (False, True):
                fuse(plain, torch.bfloat16, recompute=recompute, offload=recompute)
                b = gradients(plain)
                unfuse(plain)
                exact = reference(plain, found)
                loss_errors = [abs(x[0] - exact[0]) / exact[0] for x in (b, a)]
                worst = max(exact[1], key=lambda n: off(b[1][n], exact[1][n]))
                errors = [off(x[1][worst], exact[1][worst]) for x in (b, a)]
                cells = [*(f"{e:.1e}" for e in loss_errors), *(f"{e:.2%}" for e in errors), worst]
                table.append(line([shape + (", offloaded" if recompute else ""), method, *cells]))
    return table


def reference(model: Any, found: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients in fp32, of a copy whose quantised weights are plain numbers."""
    exact = dequantize(deepcopy(model), torch.float32).float()
    exact.config._attn_implementation = "sdpa"
    for part in exact.modules():
        if hasattr(part, "config") and hasattr(part.config, "_attn_implementation"):
            part.config._attn_implementation = "sdpa"
    loss = summed_nll(exact, found)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in exact.named_parameters() if p.grad is not None}


LENGTHS = {"8 x 2048": [2048] * 8, "128 x 128": [128] * 128, "mixed": [37 * (i % 9 + 1) for i in range(88)]}
LENGTHS["documents"] = [211, 3000, 97, 1500, 640, 2900, 88, 1200, 2500, 333, 1915, 2000]


def attention() -> list[str]:
    """Attention back-ends, forward and backward, 16 query and 8 key heads of 128, causal."""
    table = head(["lengths", "back-end", "ms", "TFLOP/s"])
    for what, lengths in LENGTHS.items():
        flops = 3.5 * 2 * 16 * 128 * sum(x * x for x in lengths)
        q, k, v = (
            torch.randn(sum(lengths), h, 128, device=GPU, dtype=torch.bfloat16).requires_grad_() for h in (16, 8, 8)
        )
        for name, run in attentions(lengths, q, k, v).items():
            try:
                took = ms(partial(both, run, (q, k, v)), times=5)
                table.append(line([what, name, f"{took:.3f}", f"{flops / took / 1e9:.0f}"]))
            except Exception as error:
                table.append(line([what, name, "-", str(error).splitlines()[0][:90]]))
    return table


def both(run: Callable[[], torch.Tensor], leaves: Any) -> None:
    """Forward and backward."""
    out = run()
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def attentions(lengths: list[int], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    """Every back-end that can attend within samples behind each other: [n, heads, width] each."""
    kernel, longest, total = varlen_kernel(), max(lengths), sum(lengths)
    assert kernel is not None
    ends = torch.tensor(lengths).cumsum(0)
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), ends]).to(GPU, torch.int32)
    found: dict[str, Any] = {
        "varlen flash": lambda: kernel(q, k, v, bounds, bounds, longest, longest, **varlen_options(kernel, None, True)),
        "varlen cuDNN": lambda: CudnnVarlen.apply(q, k, v, bounds, longest),
    }
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(GPU)
    wide = -total % 128
    numbers = F.pad(numbers, (0, wide), value=-1)

    def rule(b: Any, h: Any, of: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return (numbers[of] == numbers[at]) & (of >= at)

    mask = create_block_mask(rule, None, None, total + wide, total + wide, device="cuda")

    def flex() -> torch.Tensor:
        parts = [F.pad(t, (0, 0, 0, 0, 0, wide)).transpose(0, 1)[None] for t in (q, k, v)]
        made: torch.Tensor = FLEX(*parts, block_mask=mask, enable_gqa=True)
        return made

    found["flex"] = flex
    if len(set(lengths)) == 1:
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            found[f"rows, {backend.name}"] = partial(dense, backend, len(lengths), q, k, v)
    return found


def dense(backend: SDPBackend, samples: int, *leaves: torch.Tensor) -> torch.Tensor:
    """Samples of one length as plain rows."""
    q, k, v = (t.unflatten(0, (samples, -1)).transpose(1, 2) for t in leaves)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


class CudnnVarlen(torch.autograd.Function):
    """cuDNN's attention for samples behind each other."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, bounds: Any, longest: int) -> Any:
        out = torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, bounds, bounds, longest, longest, True, 0.0, True, False, scale=None
        )
        ctx.save_for_backward(q, k, v, out[0], out[1], out[6], out[7], bounds)
        ctx.longest = longest
        return out[0]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        q, k, v, out, lse, seed, offset, bounds = ctx.saved_tensors
        found = torch.ops.aten._cudnn_attention_backward(
            grad, q, k, v, out, lse, seed, offset, None, bounds, bounds, ctx.longest, ctx.longest, 0.0, True, scale=None
        )
        return (*found[:3], None, None)


def passes() -> list[str]:
    """What the passes and products of a block take."""
    n, d, f = 16384, 2048, 8192
    half = torch.bfloat16
    x, wide, wider = torch.randn(n, d, device=GPU, dtype=half), torch.randn(n, f, device=GPU, dtype=half), None
    w, square = torch.randn(f, d, device=GPU, dtype=half), torch.randn(d, d, device=GPU, dtype=half)
    narrow, low = torch.randn(48, d, device=GPU, dtype=half), torch.randn(n, 48, device=GPU, dtype=half)
    b = torch.randn(f, 16, device=GPU, dtype=half)
    weight, rstd = torch.ones(d, device=GPU, dtype=half), torch.ones(n, device=GPU)
    wider = torch.randn_like(wide)
    into = torch.empty(n, 48, device=GPU, dtype=half)
    runs: dict[str, Callable[[], Any]] = {
        "x W^T 2048 -> 8192": lambda: torch.mm(x, w.t()),
        "dy W 8192 -> 2048": lambda: torch.mm(wide, w),
        "x W^T 2048 -> 2048": lambda: torch.mm(x, square.t()),
        "weight gradient 8192 x 2048": lambda: torch.mm(wide.t(), x),
        "x A^T, 48 columns": lambda: torch.mm(x, narrow.t()),
        "y += low B^T, 8192 (in place)": lambda: wide.addmm_(low[:, :16], b.t()),
        "dx += low A, 2048 (in place)": lambda: x.addmm_(low, narrow),
        "dy B, 8192 -> 16": lambda: torch.mm(wide, b),
        "dy B into columns": lambda: torch.mm(wide, b, out=into[:, 16:32]),
        "dy^T low, 8192 x 16, fp32": lambda: torch.mm(wide.t(), low[:, :16], out_dtype=torch.float32),
        "low^T dy, 16 x 8192, fp32": lambda: torch.mm(low[:, :16].t(), wide, out_dtype=torch.float32),
        "low^T x, 48 x 2048, fp32": lambda: torch.mm(low.t(), x, out_dtype=torch.float32),
        "x^T low, 2048 x 48, fp32": lambda: torch.mm(x.t(), low, out_dtype=torch.float32),
        "norm": lambda: ops.rms_norm(x, weight, 1e-5),
        "norm + residual": lambda: ops.rms_norm(x, weight, 1e-5, x),
        "norm backward": lambda: ops.rms_norm_backward(x, x, weight, rstd, x),
        "norm backward, weight": lambda: ops.rms_norm_backward(x, x, weight, rstd, x, True),
        "swiglu": lambda: ops.swiglu(wide, wider),
        "swiglu backward": lambda: ops.swiglu_backward_(wide, wider, wider),
        "addmm into a new tensor, 2048": lambda: torch.addmm(x, x, square.t()),
        "copy 8192": lambda: wider.copy_(wide),
    }  # fmt: skip
    table = head(["what, 16,384 rows", "ms"])
    for name, run in runs.items():
        try:
            table.append(line([name, f"{ms(run):.3f}"]))
        except Exception as error:
            table.append(line([name, str(error).splitlines()[0][:80]]))
    return table


PARTS: dict[str, Any] = {"elementwise": elementwise, "models": models, "attention": attention, "passes": passes}


def main() -> None:
    """Everything, each part on its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="some of the parts")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; on a CPU, pytest tests/kernels compares the kernels' plain twins")
    options.out.mkdir(parents=True, exist_ok=True)
    for part in map(PARTS.get, options.only):
        try:
            text = "\n".join(part())
        except Exception as error:
            text = f"{part.__name__}: {error!r}\n{traceback.format_exc()[-1500:]}"
        print(text, flush=True)
        with (options.out / "kernels.md").open("a") as file:
            file.write(text + "\n\n")


if __name__ == "__main__":
    main()
