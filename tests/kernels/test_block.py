"""Fused blocks and loss against transformers' and PEFT's own code: loss and every gradient, in fp32 on the CPU."""

from __future__ import annotations

import pytest
import torch

from sweeptune.kernels import interfaces, ops
from sweeptune.kernels.fuse import fuse, fused, unfuse
from sweeptune.training.loss import summed_nll
from tests.kernels.helpers import SHAPES, batch, build, compare, gradients
from tests.kernels.test_attention import varlen_reference

KINDS = ["even", "padded", "packed"]
MODES = {"kept": {}, "recomputed": {"recompute": True}, "offloaded": {"offload": True}}


@pytest.fixture(autouse=True)
def _varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "varlen_kernel", lambda: varlen_reference)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_with_every_kind_of_batch(shape, attention, kind):
    compare(build(shape, "lora", attention), batch(kind))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["full", "lora", "rslora", "pissa", "qlora"])
@pytest.mark.parametrize("shape", ["llama, tied", "internlm2", "qwen3"])
def test_every_method_however_activations_are_kept(shape, method, mode, tmp_path):
    model = build(shape, method, "varlen", tmp_path / "start.safetensors")
    compare(model, batch("packed"), **MODES[mode])


@pytest.mark.parametrize(
    "modules", [["q_proj"], ["v_proj", "gate_proj"], ["o_proj", "down_proj"], ["up_proj", "k_proj"]]
)
@pytest.mark.parametrize("rank", [3, 16, 40, 64, 80])
def test_adapters_of_any_rank_on_any_layers(rank, modules):
    """Ranks that fill no tile, those that the kernel adds, and those above which a product does."""
    assert ops.LATE_RANK == 64
    compare(
        build("llama", "lora", rank=rank, alpha=2.5 * rank, target_modules=modules), batch("padded"), recompute=True
    )


def test_norms_and_a_head_that_train_beside_a_frozen_base():
    model = build("qwen3", "full")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "norm" in name or "embed" in name
    compare(model, batch("padded"))


def test_gradients_add_up_over_micro_batches():
    model = build("llama", "lora")
    parts = batch("padded"), batch("packed")
    expected = [gradients(model, part)[1] for part in parts]
    fuse(model, torch.float32)
    model.zero_grad(set_to_none=True)
    for part in parts:
        summed_nll(model, part).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            total = expected[0][name] + expected[1][name]
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-5 * float(total.abs().max()))


def test_adapters_that_changed_are_used_as_they_are_now():
    model = build("llama", "lora")
    fuse(model, torch.float32)
    first = summed_nll(model, batch("even")).item()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.5)
    assert abs(summed_nll(model, batch("even")).item() - first) > 1e-3
    changed = summed_nll(model, batch("even")).item()
    unfuse(model)
    assert summed_nll(model, batch("even")).item() == pytest.approx(changed, rel=1e-6)


def test_a_second_backward_pass_through_recomputed_blocks_is_an_error():
    model = build("llama", "lora")
    fuse(model, torch.float32, recompute=True)
    fast = fused(model)
    assert fast is not None
    ids = batch("even").input_ids
    out = fast.hidden({"input_ids": ids, "use_cache": False}).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward pass runs once"):
        out.backward()


def begun_to_learn():
    """What draws, and a layer in bf16 whose adapter has learned next to nothing, with its A and B."""
    from sweeptune.kernels.linear import Group, Projection

    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    base = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    base.weight.copy_(draw(64, 64) / 8)
    a, b = torch.nn.Parameter(draw(16, 64) / 8), torch.nn.Parameter(2e-4 * draw(64, 16))
    return draw, Group([Projection(base, a, b, 1.0)], torch.bfloat16), a, b


@pytest.mark.parametrize("large", [False, True])
def test_what_an_adapter_adds_survives_what_is_much_larger(large):
    """Added to a sum that bf16 has rounded already, most of it would vanish."""
    draw, group, a, b = begun_to_learn()
    x, residual = draw(16384, 64).bfloat16(), 16 * draw(16384, 64).bfloat16()
    into = residual if large else None
    (without,), _ = group.forward(x, into=into)
    for to, of, times in group.casts():
        to.copy_(of * times)
    (found,), _ = group.forward(x, into=into)
    added = x.float() @ a.T @ b.T
    kept = ((found.float() - without.float()) * added).sum() / added.square().sum()
    assert added.std() < 0.002 * without.float().std() and 0.8 < kept < 1.2


def test_what_reaches_the_input_through_an_adapter_survives_what_is_much_larger():
    draw, group, a, b = begun_to_learn()
    dy = draw(16384, 64).bfloat16()
    without, _ = group.into_input([dy])
    for to, of, times in group.casts():
        to.copy_(of * times)
    found, _ = group.into_input([dy])
    added = dy.float() @ b @ a
    kept = ((found.float() - without.float()) * added).sum() / added.square().sum()
    assert 0.8 < kept < 1.2


def test_swiglu_keeps_what_an_adapter_has_just_begun_to_learn():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    gate, up = draw(4096, 64).bfloat16(), draw(4096, 64).bfloat16()
    lows = [(draw(4096, 16).bfloat16(), 2e-4 * draw(64, 16).bfloat16()) for _ in range(2)]
    exact = [x.float() + low.float() @ by.float().T for x, (low, by) in zip((gate, up), lows, strict=True)]
    added = torch.nn.functional.silu(exact[0]) * exact[1] - torch.nn.functional.silu(gate.float()) * up.float()
    found = ops.swiglu(gate, up, *lows).float() - ops.swiglu(gate, up).float()
    assert 0.9 < (found * added).sum() / added.square().sum() < 1.1
