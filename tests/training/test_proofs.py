"""The proof of gradients passes where gradients are right, fails where they are wrong, and leaves no trace."""

from __future__ import annotations

from contextlib import nullcontext

import bitsandbytes as bnb
import pytest
import torch

from sweeptune.data import collate
from sweeptune.methods import quantized
from sweeptune.training import loop, run
from sweeptune.training.loop import count, prove
from sweeptune.training.proofs import ProofFailed, proof_row, prove_gradients
from sweeptune.training.scoring import evaluate_split
from sweeptune.training.session import open_session
from sweeptune.training.step import train_step

METHODS = ["full", "lora", "qlora", "dora", "rslora", "pissa", "lora_int8", "lora_fp8"]


def change_gradients(session, change):
    """Plant a fault: every gradient goes through it."""
    for parameter in session.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(change)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_proves_its_gradients_and_restores_everything(settings, tmp_path, method, precision):
    session = open_session(settings(f"method={method}", f"hardware.precision={precision}"), tmp_path)
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    generator = torch.get_rng_state()
    session.model.eval()
    prove(session)
    found = session.progress.gradient_proofs[-1]
    assert abs(found["measured"]) > 1e-3, "the step must change the loss to prove anything"
    exact = precision == "fp32" and method != "lora_fp8"
    assert found["relative_error"] <= (0.05 if exact else 0.20)
    assert not session.model.training and torch.equal(torch.get_rng_state(), generator)
    for name, parameter in session.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 1.3])
def test_a_wrongly_scaled_gradient_is_stopped(settings, tmp_path, factor):
    session = open_session(settings("method=lora"), tmp_path)
    change_gradients(session, lambda grad: grad * factor)
    with pytest.raises(ProofFailed, match=r"gradients are wrong|gradient predicts"):
        prove(session)


@pytest.mark.parametrize(("method", "hinted"), [("lora", False), ("lora_fp8", True)])
def test_where_steps_must_be_long_a_failure_says_what_else_it_may_be(settings, tmp_path, monkeypatch, method, hinted):
    session = open_session(settings(f"method={method}"), tmp_path)
    change_gradients(session, torch.neg)
    said = []
    monkeypatch.setattr(loop.log, "info", lambda text, *values: said.append(text % values))
    with pytest.raises(ProofFailed) as failed:
        prove(session)
    assert ("steps that rounding does not hide, lower optim.lr" in str(failed.value)) is hinted
    assert len([text for text in said if "over 16 rows; once more with up to 64" in text]) == hinted


@pytest.mark.parametrize(("steps", "factor", "proven"), [(20, 1.0, True), (32, 2.0, False), (40, 0.5, False)])
def test_a_loss_that_curves_sharply_neither_refuses_right_gradients_nor_hides_wrong_ones(
    settings, tmp_path, steps, factor, proven
):
    config = settings("method=lora", "hardware.precision=bf16", f"train.max_steps={steps}", "train.epochs=null")
    session = open_session(config, tmp_path)
    session.model.train()
    for step in session.steps:  # random weights that have learned a little: the loss of long steps says nothing
        train_step(session, step)
        count(session, step)
    change_gradients(session, lambda grad: grad * factor)
    with nullcontext() if proven else pytest.raises(ProofFailed):
        prove(session)


def test_a_gradient_that_misses_one_half_of_the_adapters_is_stopped(settings, tmp_path):
    session = open_session(settings("method=lora"), tmp_path)
    for name, parameter in session.model.named_parameters():
        if "lora_A" in name:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(ProofFailed):
        prove(session)


def test_what_rounding_hides_from_few_rows_is_proven_with_many(settings, tmp_path, monkeypatch):
    session = open_session(settings("method=lora", "hardware.precision=bf16"), tmp_path)
    asked = []

    def noisy(model, batches, *rest, **more):
        asked.append(sum(len(batch.input_ids) for batch in batches))
        if asked[-1] <= 16:
            raise ProofFailed("off by 26% (allowed 20%)")
        return prove_gradients(model, batches, *rest, **more)

    monkeypatch.setattr(loop, "prove_gradients", noisy)
    prove(session)
    assert asked == [16, min(64, len(session.splits.train))] and len(session.progress.gradient_proofs) == 1


@pytest.mark.parametrize(
    ("packing", "micro_batch", "rows"),
    [("pack", 1, 4), ("none", 1, 1), ("pack", 8, 4)],  # the last: no step has more than 512 tokens
)
def test_short_rows_share_a_pass_as_far_as_training_has_tokens_in_one(
    settings, tmp_path, monkeypatch, packing, micro_batch, rows
):
    long = (f"data.packing={packing}", "data.max_length=512", "train.tokens_per_step=512", "model.attention=eager")
    config = settings("method=lora", "hardware.precision=bf16", f"hardware.micro_batch={micro_batch}", *long)
    session, sizes = open_session(config, tmp_path), []

    def watched(model, batches, *rest, **more):
        sizes.append([tuple(batch.input_ids.shape) for batch in batches])
        return prove_gradients(model, batches, *rest, **more)

    monkeypatch.setattr(loop, "prove_gradients", watched)
    prove(session)
    assert [found[0] for found in sizes[0]] == [rows] * (16 // rows)
    longest = 512 if packing == "pack" else max(row.length for row in session.splits.train)
    assert max(count * length for count, length in sizes[0]) <= longest


def test_a_weight_without_a_gradient_is_stopped_unless_the_loss_does_not_need_it(settings, tmp_path):
    session = open_session(settings("method=full"), tmp_path)
    session.model.unused = torch.nn.Parameter(torch.ones(3))
    prove(session)
    norm = session.model.model.norm
    norm.forward = lambda x: x * norm.weight.detach()
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    with pytest.raises(ProofFailed, match=r"model\.norm\.weight has none, although the loss depends on it"):
        prove(session)
    assert all(torch.equal(p, before[n]) for n, p in session.model.named_parameters())


def test_weights_stored_in_bf16_are_proven_as_what_they_are(settings, tmp_path):
    session = open_session(settings("method=full", "model.dtype=bf16"), tmp_path)
    assert session.placement.compute is torch.float32 and session.placement.arithmetic is torch.bfloat16
    prove(session)
    assert session.progress.gradient_proofs[-1]["tolerance"] == 0.20


def test_dropout_does_not_disturb_the_proof(settings, tmp_path):
    session = open_session(settings("method=lora", "method.dropout=0.5"), tmp_path)
    prove(session)
    rates = {module.p for module in session.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.5}


@pytest.mark.skipif(not bnb.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu, reason="this CPU has no AVX512-BF16")
def test_the_cpu_trap_of_4_bit_layers_is_avoided_and_would_be_seen(settings, tmp_path, monkeypatch):
    """The real path: an evaluation repacks the 4-bit weights for inference, and training gradients are wrong after."""
    config = settings("method=qlora", "train.eval_every=2", "train.max_steps=4")
    assert run(config, tmp_path / "avoided")["status"] == "completed"

    monkeypatch.setattr(quantized, "keep_trainable_on_cpu", lambda model: None)
    (tmp_path / "walked").mkdir()
    session = open_session(config, tmp_path / "walked")
    prove(session)  # nothing is wrong yet
    evaluate_split(session, "into the trap")
    with pytest.raises(ProofFailed):
        prove(session)
    record = run(config, tmp_path / "run")
    assert record["status"] == "invalid_run" and "gradient" in record["reason"]


def test_proof_row_keeps_loss_tokens_of_a_long_prompt(settings, tmp_path):
    from sweeptune.data import Row

    row = Row("x", list(range(500)), [False] * 400 + [True] * 100, 10)
    cut = proof_row(row)
    assert cut.length == 128 and cut.loss_tokens == 96 and cut.input_ids[0] == 368
    batch = collate([cut], 0, torch.device("cpu"))
    assert batch.loss_tokens == 96
