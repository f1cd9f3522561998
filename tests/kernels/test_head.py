"""The head with its loss: in chunks, at loss tokens only, against logits made at once."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from torch.nn import functional as F

from sweeptune.kernels import head, ops
from sweeptune.kernels.fuse import fuse
from sweeptune.kernels.head import chunk_rows, summed_loss, token_losses
from sweeptune.kernels.linear import dense, nf4_parts
from sweeptune.training.loss import loss_tokens, token_nll
from tests.kernels.helpers import batch, build


def nf4_head(out: int, columns: int, nested: bool) -> bnb.nn.Linear4bit:
    torch.manual_seed(0)
    kind = {"compress_statistics": nested, "quant_type": "nf4"}
    layer = bnb.nn.Linear4bit(columns, out, bias=False, **kind)
    layer.weight = bnb.nn.Params4bit(torch.randn(out, columns) / 8, requires_grad=False, module=layer, **kind).to("cpu")
    return layer


CHUNKS = [1, 7, 10, 30, None]


def case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 50, bias=False, dtype=dtype)
    hidden = torch.randn(40, 16, dtype=dtype, requires_grad=True)
    places = torch.randperm(40)[:30].sort().values
    return hidden, layer, places, torch.randint(0, 50, (30,))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_and_gradients_do_not_depend_on_the_chunks(chunk):
    hidden, layer, places, targets = case()
    expected = F.cross_entropy(layer(hidden[places]), targets, reduction="sum")
    wanted = torch.autograd.grad(3 * expected, [hidden, layer.weight])
    found = summed_loss(hidden, layer, places, targets, torch.float32, chunk)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, plain in zip(torch.autograd.grad(3 * found, [hidden, layer.weight]), wanted, strict=True):
        assert float((ours - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("size", [(50, 64), (92, 2048), (1000, 576)])
def test_parts_of_a_head_in_nf4_are_the_whole(size, nested):
    layer = nf4_head(*size, nested)
    whole = dense(layer, torch.bfloat16)
    for weights, number in ((1, None), (3 * 16384, None), (10**6, 1)):
        parts = list(nf4_parts(layer, torch.bfloat16, weights))
        assert [at.start for at, _ in parts] == [0, *(at.stop for at, _ in parts[:-1])]
        assert torch.equal(torch.cat([numbers for _, numbers in parts]), whole)
        assert number is None or len(parts) == number


def test_a_head_in_nf4_is_dequantised_in_parts(monkeypatch):
    monkeypatch.setattr(head, "PART_WEIGHTS", 3 * 16384)
    layer = nf4_head(92, 2048, True)
    made = []
    plain = ops.nf4_dequantize
    monkeypatch.setattr(ops, "nf4_dequantize", lambda *a: made.append(plain(*a)) or made[-1])
    hidden = torch.randn(40, 2048, requires_grad=True)
    places, targets = torch.arange(30), torch.randint(0, 92, (30,))
    found = summed_loss(hidden, layer, places, targets, torch.float32, 16)
    (ours,) = torch.autograd.grad(found, [hidden])
    assert [len(part) for part in made] == [24, 24, 24, 20] * 2 * 2  # two chunks, forward and backward
    expected = F.cross_entropy(hidden[places] @ dense(layer, torch.float32).t(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(expected, [hidden])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5
    each = token_losses(hidden, layer, places, targets, torch.float32)
    assert each.sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_what_trains_gets_a_gradient():
    hidden, layer, places, targets = case()
    layer.weight.requires_grad = False
    summed_loss(hidden, layer, places, targets, torch.float32).backward()
    assert hidden.grad is not None and layer.weight.grad is None
    idle = torch.ones(40, dtype=torch.bool)
    idle[places] = False
    assert not hidden.grad[idle].any() and hidden.grad[places].any(dim=1).all()


def test_a_batch_without_loss_tokens_is_zero_and_has_gradients_of_zero():
    hidden, layer, places, targets = case()
    loss = summed_loss(hidden, layer, places[:0], targets[:0], torch.float32)
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and not hidden.grad.any()
    assert token_losses(hidden, layer, places[:0], targets[:0], torch.float32).shape == (0,)


def test_sums_of_a_head_in_fp32_are_kept_in_fp32():
    hidden, layer, places, targets = case()
    summed_loss(hidden, layer, places, targets, torch.bfloat16, 4).backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == hidden.grad.dtype == torch.float32  # type: ignore[union-attr]
    expected = F.cross_entropy(layer(hidden[places]), targets, reduction="sum")
    (plain,) = torch.autograd.grad(expected, layer.weight)
    assert float((layer.weight.grad - plain).norm() / plain.norm()) < 0.01


def test_each_tokens_loss_adds_up_to_the_sum(monkeypatch):
    monkeypatch.setattr(head, "chunk_rows", lambda _: 8)
    hidden, layer, places, targets = case()
    each = token_losses(hidden, layer, places, targets, torch.float32)
    plain = F.cross_entropy(layer(hidden[places]), targets, reduction="none")
    torch.testing.assert_close(each, plain, rtol=1e-5, atol=1e-6)
    assert not each.requires_grad and each.dtype == torch.float32


@pytest.mark.parametrize(("vocabulary", "rows"), [(92544, 1024), (50_000, 1920), (2_000_000, 128), (512, 196_608)])
def test_chunks_are_whole_tiles_of_about_192_mib(vocabulary, rows):
    assert chunk_rows(vocabulary) == rows


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("kind", ["even", "padded", "packed"])
def test_token_losses_are_in_their_rows_as_without_fused_kernels(kind, attention, monkeypatch):
    from sweeptune.kernels import interfaces
    from tests.kernels.test_attention import varlen_reference

    monkeypatch.setattr(interfaces, "varlen_kernel", lambda: varlen_reference)
    monkeypatch.setattr(head, "chunk_rows", lambda _: 5)
    model, found = build("llama, tied", "lora", attention).eval(), batch(kind)

    def rows() -> list[torch.Tensor]:
        with torch.no_grad():
            return [row[row != 0] for row in token_nll(model, found)]

    plain = rows()
    fuse(model, torch.float32)
    fast = rows()
    assert sum(map(len, plain)) == found.loss_tokens
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_loss_tokens_are_found_on_the_host():
    from sweeptune.kernels.attention import prepare

    found = batch("packed")
    places, targets = loss_tokens(prepare(found, build("llama").config), found.input_ids.device)
    flat = found.input_ids.flatten()
    assert len(places) == found.loss_tokens and torch.equal(flat[places + 1], targets)
