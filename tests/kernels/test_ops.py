"""The element-wise steps: plain ones against torch's autograd, Triton's against the plain ones, by its interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from sweeptune.kernels import ops
from tests.kernels.elementwise import CASES, lows


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    """How far every Triton kernel is from its plain version; in a new process, as Triton reads a variable at import."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (there is none for this system): its kernels cannot be interpreted here")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.elementwise"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_triton_kernel_computes_what_its_plain_version_does(name, interpreted):
    assert interpreted[name] < 1e-5


@pytest.mark.slow
def test_every_triton_kernel_compiles_for_a_gpu():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (there is none for this system): its kernels cannot be compiled here")
    command = [sys.executable, "-m", "tests.kernels.elementwise", "compile"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    compiled = json.loads(ran.stdout.splitlines()[-1])
    assert set(compiled) > set(CASES) and min(compiled.values()) > 0


def close(ours: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_the_norm_is_llamas(residual):
    torch.manual_seed(0)
    module = LlamaRMSNorm(24, 1e-5)
    module.weight.data.normal_()
    x, other, dy = (torch.randn(7, 24) for _ in range(3))
    leaves = [t.clone().requires_grad_() for t in (x, other)]
    total = leaves[0] + leaves[1] if residual else leaves[0]
    expected = module(total)
    # what reaches the sum past the norm has the gradient ``other``
    grads = torch.autograd.grad([expected, total], [leaves[0], module.weight], [dy, other if residual else 0 * other])
    y, rstd, kept = ops.rms_norm(x, module.weight.detach(), 1e-5, other if residual else None)
    close(y, expected)
    close(kept, total)
    close(ops.rms_apply(kept, module.weight.detach(), rstd), expected)
    found = ops.rms_norm_backward(dy.clone(), kept, module.weight.detach(), rstd, other if residual else None, True)
    close(found[0], grads[0])
    close(found[1], grads[1])
    assert ops.rms_norm_backward(dy.clone(), kept, module.weight.detach(), rstd)[1] is None


def test_the_norm_rounds_where_llamas_does():
    torch.manual_seed(0)
    module = LlamaRMSNorm(64, 1e-5).to(torch.bfloat16)
    module.weight.data.normal_()
    x = torch.randn(9, 64, dtype=torch.bfloat16)
    assert torch.equal(ops.rms_norm(x, module.weight.detach(), 1e-5)[0], module(x))


def test_rotation_is_llamas_and_backward_is_its_gradient():
    torch.manual_seed(0)
    rows, length, width = 2, 5, 8
    q, k = torch.randn(rows * length, 4, width), torch.randn(rows * length, 2, width)
    angle = torch.randn(length, width // 2).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    leaves = [t.view(rows, length, -1, width).transpose(1, 2).clone().requires_grad_() for t in (q, k)]
    expected = apply_rotary_pos_emb(*leaves, cos[None], sin[None])
    flat = [t.transpose(1, 2).reshape(rows * length, -1, width) for t in expected]
    ours = q.clone(), k.clone()
    ops.rope_(*ours, cos, sin)
    for a, b in zip(ours, flat, strict=True):
        close(a, b)
    cotangents = [torch.randn_like(t) for t in flat]
    grads = torch.autograd.grad(flat, leaves, cotangents)
    ops.rope_(*cotangents, cos, sin, backward=True)
    for a, b in zip(cotangents, grads, strict=True):
        close(a, b.transpose(1, 2).reshape(rows * length, -1, width))


@pytest.mark.parametrize("ranks", [(0, 0, 0), (4, 4, 4), (0, 4, 0)])
def test_swiglu_and_its_gradients(ranks):
    torch.manual_seed(0)
    gate, up, dy = (torch.randn(6, 10) for _ in range(3))
    grad_low, gate_low, up_low = lows(ranks, 6, 10)

    def whole(x: torch.Tensor, low: ops.Low | None) -> torch.Tensor:
        return x.clone() if low is None else x + low[0] @ low[1].t()

    g, u = whole(gate, gate_low).requires_grad_(), whole(up, up_low).requires_grad_()
    expected = F.silu(g) * u
    close(ops.swiglu(gate, up, gate_low, up_low), expected)
    grads = torch.autograd.grad(expected, [g, u], whole(dy, grad_low))
    ops.swiglu_backward_(dy, gate, up, grad_low, gate_low, up_low)
    for found, wanted in zip((dy, gate, up), (expected, *grads), strict=True):
        close(found, wanted)


@pytest.mark.parametrize("gradient", [False, True])
def test_cross_entropy_and_its_gradient_in_place(gradient):
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 30), torch.randint(0, 30, (8,))
    targets[2] = -100
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf, targets, ignore_index=-100, reduction="none")
    before = logits.clone()
    close(ops.cross_entropy_(logits, targets, gradient=gradient), expected)
    close(logits, torch.autograd.grad(expected.sum(), leaf)[0] if gradient else before)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_is_bitsandbytes(nested):
    torch.manual_seed(0)
    packed, state = bnb.functional.quantize_4bit(torch.randn(32, 64), quant_type="nf4", compress_statistics=nested)
    expected = bnb.functional.dequantize_4bit(packed, state)
    assert torch.equal(ops.nf4_dequantize(packed, state, torch.float32), expected)
    assert ops.nf4_dequantize(packed, state, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("capability", "multiplies"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_only_newer_gpus_compute_in_8_bits(monkeypatch, capability, multiplies):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert ops.multiplies_fp8.__wrapped__(torch.device("cuda:0")) is multiplies
    assert not ops.multiplies_fp8(torch.device("cpu"))


@pytest.mark.parametrize("multiplies", [False, True])
def test_a_gpu_without_products_in_8_bits_computes_them_plainly(monkeypatch, multiplies):
    asked = []
    kernels = SimpleNamespace(
        quantize_rows=lambda x, columns: asked.append("round"), transpose_bytes=lambda x: asked.append("transpose")
    )
    monkeypatch.setattr(ops, "_on_gpu", lambda _: True)
    monkeypatch.setattr(ops, "multiplies_fp8", lambda _: multiplies)
    monkeypatch.setattr(ops, "triton_ops", lambda: kernels)
    monkeypatch.setattr(torch, "_scaled_mm", lambda *_, **__: asked.append("multiply"))
    x = torch.randn(16, 16)
    rounded = (x.to(ops.FP8), torch.ones(16))
    ops.quantize_rows(x)
    ops.fp8_transpose(rounded[0])
    ops.fp8_matmul(rounded, rounded, torch.bfloat16)
    assert asked == (["round", "transpose", "multiply"] if multiplies else [])
