"""Packed training is unpacked training in fuller rows; a back-end that lets samples see each other is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sweeptune.config.compose import dump
from sweeptune.config.schema import METHOD_SCHEMAS
from sweeptune.data import Packs, Row, Step, collate, collate_packs, samples
from sweeptune.kernels import attention
from sweeptune.kernels.attention import BatchLike, Prepared, may_see, prepare
from sweeptune.training import run
from sweeptune.training.loop import prove, prove_that_samples_are_apart
from sweeptune.training.loss import token_nll
from sweeptune.training.proofs import ProofFailed
from sweeptune.training.proofs_packing import TOKENS, packed_sample
from sweeptune.training.result import loss_share, segment_lengths
from sweeptune.training.session import open_session
from sweeptune.training.step import train_step
from tests.training.helpers import gradients
from tests.training.test_resume import assert_same_end

PACKED = ("data.packing=pack", "data.max_length=384")


def naive(batch: BatchLike, config: Any) -> Prepared:
    """Samples behind each other, as if they were one."""
    return Prepared({"input_ids": batch.input_ids, "use_cache": False}, batch.labels)


def with_a_flat_mask(batch: BatchLike, config: Any) -> Prepared:
    """Position ids that restart, but a 2-D mask beside them: transformers then looks for no boundaries."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    return Prepared(inputs | {"attention_mask": torch.ones_like(batch.input_ids)}, batch.labels)


def with_a_cache(batch: BatchLike, config: Any) -> Prepared:
    """Position ids that restart and no mask, but a cache: the same."""
    return Prepared({"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": True}, batch.labels)


def seeing_one_position(batch: BatchLike, config: Any) -> Prepared:
    """A right mask but for one entry: the last sample's first token sees the token before it."""
    ready = prepare(replace(batch), config)
    if batch.segments is not None:
        mask = may_see(batch.segments).clone()
        first = int((batch.segments[0] == batch.segments.max()).nonzero()[0])
        mask[0, 0, first, first - 1] = True
        ready.inputs["attention_mask"] = mask
    return ready


def seeing_later_tokens(batch: BatchLike, config: Any) -> Prepared:
    """No sample sees another, but each sees its own future."""
    ready = prepare(batch, config)
    if batch.segments is not None:
        ready.inputs["attention_mask"] = batch.segments[:, None, :, None] == batch.segments[:, None, None, :]
    return ready


def without_restart(batch: BatchLike, config: Any) -> Prepared:
    """The right mask, and positions that go on over the samples."""
    ready = prepare(batch, config)
    if batch.segments is not None:
        ready.inputs["position_ids"] = torch.arange(batch.input_ids.shape[1])[None].expand_as(batch.input_ids)
    return ready


def with_the_first_rows_boundaries(batch: BatchLike, config: Any) -> Prepared:
    """Right for a batch of one row: every row is masked as the first one is."""
    ready = prepare(batch, config)
    if batch.segments is not None:
        ready.inputs["attention_mask"] = may_see(batch.segments[:1].expand_as(batch.segments))
    return ready


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[BatchLike, Any], Prepared]) -> None:
    real = attention.INPUTS["sdpa"]

    def faulty(batch: BatchLike, config: Any) -> Prepared:
        monkeypatch.setitem(attention.INPUTS, "sdpa", real)  # a fault may start from what is right
        try:
            return fault(batch, config)
        finally:
            monkeypatch.setitem(attention.INPUTS, "sdpa", faulty)

    monkeypatch.setitem(attention.INPUTS, "sdpa", faulty)


@pytest.mark.parametrize("fault", [naive, with_a_flat_mask, with_a_cache, seeing_one_position])
def test_a_back_end_that_contaminates_is_refused(settings, tmp_path, monkeypatch, fault):
    plant(monkeypatch, fault)
    record = run(settings("method=lora", *PACKED), tmp_path)
    assert record["status"] == "invalid_run", record["reason"]
    assert "model.attention=sdpa: samples that share a row see each other" in record["reason"]
    assert "(must be exactly 0)" in record["reason"]
    assert not (tmp_path / "checkpoints" / "step-000006").exists(), "nothing was learned"


def test_contamination_does_not_show_in_the_loss(settings, tmp_path, monkeypatch):
    """Why the proof is needed: without it the run ends like any other."""
    monkeypatch.setattr("sweeptune.training.loop.prove_that_samples_are_apart", lambda session: None)
    plant(monkeypatch, naive)
    assert run(settings("method=lora", *PACKED), tmp_path)["status"] == "completed"


def test_positions_that_do_not_restart_are_refused(settings, tmp_path, monkeypatch):
    """Rotary embeddings do not mind a shift, until the row is longer than the model knows and they are rescaled."""
    dynamic = "+model.architecture.rope_scaling={rope_type: dynamic, factor: 2.0}"
    config = settings("method=lora", *PACKED, dynamic, "model.architecture.max_position_embeddings=120")
    monkeypatch.setattr("sweeptune.training.session.check_positions", lambda *_: None)  # such a run is refused, too
    session = open_session(config, tmp_path)
    for name, parameter in session.model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 10  # random weights attend to everything alike, wherever it stands
    prove_that_samples_are_apart(session)
    plant(monkeypatch, without_restart)
    with pytest.raises(ProofFailed, match=r"off by .* \(allowed 1e-04\), as when position ids do not restart"):
        prove_that_samples_are_apart(session)


def test_a_sample_that_sees_its_future_is_refused(settings, tmp_path, monkeypatch):
    plant(monkeypatch, seeing_later_tokens)
    assert "that of its" in run(settings("method=full", *PACKED), tmp_path)["reason"]


def test_a_row_masked_as_its_neighbour_is_refused(settings, tmp_path, monkeypatch):
    plant(monkeypatch, with_the_first_rows_boundaries)
    assert "the loss of a packed row is" in run(settings("method=full", *PACKED), tmp_path)["reason"]


def test_dropout_inside_attention_does_not_disturb_the_proofs(settings, tmp_path):
    session = open_session(settings("method=full", *PACKED, "+model.architecture.attention_dropout=0.3"), tmp_path)
    prove_that_samples_are_apart(session)
    prove(session)
    rates = {m.attention_dropout for m in session.model.modules() if hasattr(m, "attention_dropout")}
    assert rates == {0.3}


def test_rows_that_would_stretch_the_positions_of_their_batch_are_refused(settings, tmp_path):
    dynamic = "+model.architecture.rope_scaling={rope_type: dynamic, factor: 2.0}"
    record = run(settings("method=lora", dynamic, "model.architecture.max_position_embeddings=60"), tmp_path)
    assert record["status"] == "invalid_config"
    assert "are longer than the 60 tokens that this model was trained on" in record["reason"]


def test_a_leak_that_only_the_gradient_shows_is_refused(settings, tmp_path, monkeypatch):
    """From the second sample to the last: changing the first moves nothing."""
    session = open_session(settings("method=full", *PACKED), tmp_path)
    row = packed_sample(session.splits.train, session.steps, session.device)
    assert len(row) >= 3

    plant(monkeypatch, seeing_one_position)
    where = rf"gradient at the input embeddings of 1 others, .* at sample {len(row) - 1}"
    with pytest.raises(ProofFailed, match=where):
        prove_that_samples_are_apart(session)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHOD_SCHEMAS)
def test_every_method_is_proven_and_left_as_it_was(settings, tmp_path, method, precision, backend):
    config = settings(f"method={method}", f"hardware.precision={precision}", f"model.attention={backend}", *PACKED)
    session = open_session(config, tmp_path)
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    generator = torch.get_rng_state()
    session.model.eval()
    prove_that_samples_are_apart(session)
    proof = session.packing_proof
    assert proof is not None and proof["backend"] == backend and proof["samples"] >= 3 and proof["tokens"] <= 256
    assert proof["relative_difference"] <= proof["tolerance"] == (1e-4 if precision == "fp32" else 2e-2)
    assert not session.model.training and torch.equal(torch.get_rng_state(), generator)
    for name, parameter in session.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


@pytest.mark.parametrize("changed", ["hardware.gradient_checkpointing=true", "method.dropout=0.5"])
def test_neither_recomputation_nor_dropout_disturbs_the_proof(settings, tmp_path, changed):
    prove_that_samples_are_apart(open_session(settings("method=lora", changed, *PACKED), tmp_path))


def test_a_proof_that_does_not_fit_is_an_error_and_never_skipped(settings, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("sweeptune.training.loop.prove_packing", full)
    record = run(settings("method=lora", *PACKED), tmp_path)
    assert record["status"] == "oom" and record["train"]["steps"] == 0
    assert "proof" in record["memory"]["phases"]


def test_the_row_of_the_proof_is_one_of_the_training(settings, tmp_path):
    session = open_session(settings("method=lora", *PACKED), tmp_path)
    row = packed_sample(session.splits.train, session.steps, session.device)
    packs = samples(session.splits.train, [pack for step in session.steps[:4] for pack in step.packs])
    assert any(list(row) == list(pack[: len(row)]) for pack in packs)
    assert len(row) >= 3 and sum(piece.length for piece in row) <= TOKENS["cpu"]


def test_long_samples_are_cut_for_the_proof():
    long = [Row(str(i), list(range(400)), [False] * 200 + [True] * 200, 1) for i in range(2)]
    steps = [Step(Packs([[(0, 0, 400)], [(1, 0, 400)]]), 800, 400, 1.0)]
    row = packed_sample(long, steps, torch.device("cpu"))
    assert [piece.length for piece in row] == [85, 85, 85] and all(piece.loss_tokens for piece in row)


@pytest.mark.parametrize("packing", ["pack", "split"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_gradient_of_a_packed_step_is_the_unpacked_definition(settings, tmp_path, packing, size):
    config = settings("method=full", f"hardware.micro_batch={size}", f"data.packing={packing}", "data.max_length=200")
    session, found = gradients(config, tmp_path)
    step = session.steps[0]
    pieces = [row for pack in samples(session.splits.train, step.packs) for row in pack]
    assert len(step.packs) > 1 and len(pieces) > len(step.packs) + 2, "rows must be shared to prove anything"
    session.model.zero_grad()
    total, tokens = torch.zeros(()), 0
    for row in pieces:  # one sample at a time, with a loss of its own
        ids = torch.tensor([row.input_ids])
        logits = session.model(input_ids=ids).logits[0, :-1].double()
        nll = -logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        mask = torch.tensor(row.loss_mask[1:], dtype=torch.bool)
        total, tokens = total + nll[mask].sum(), tokens + int(mask.sum())
    assert tokens == step.loss_tokens
    (total / tokens).backward()
    for name, parameter in session.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-5)


def test_the_loss_of_samples_behind_each_other_comes_back_row_by_row(settings, tmp_path, monkeypatch):
    """varlen flattens a batch; what evaluation sums is still one row's."""
    from sweeptune.kernels import interfaces
    from tests.kernels.test_attention import varlen_reference

    session = open_session(settings("method=full"), tmp_path)
    rows = sorted(session.splits.train, key=lambda row: row.length)[:: len(session.splits.train) // 4]
    batches = [collate(rows, 256, session.device), collate_packs([rows[:2], rows[2:]], 256, session.device)]
    with torch.no_grad():
        expected = [token_nll(session.model, batch).sum(dim=1) for batch in batches]
        monkeypatch.setattr(interfaces, "varlen_kernel", lambda: varlen_reference)
        session.model.config._attn_implementation = interfaces.VARLEN
        for batch, nll in zip(batches, expected, strict=True):
            torch.testing.assert_close(token_nll(session.model, batch).sum(dim=1), nll, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", METHOD_SCHEMAS)
@pytest.mark.parametrize("packing", ["pack", "split"])
def test_every_method_trains_on_packed_rows(settings, tmp_path, method, packing):
    session = open_session(settings(f"method={method}", f"data.packing={packing}", "data.max_length=256"), tmp_path)
    prove_that_samples_are_apart(session)
    session.model.train()
    for step in session.steps[:2]:
        loss, norm, skipped = train_step(session, step)
        assert 3 < loss.item() / step.loss_tokens < 9 and norm.item() > 0 and not skipped


def test_eval_loss_does_not_depend_on_packing_and_the_data_order_does(settings, tmp_path):
    records = [
        run(settings("method=full", f"data.packing={packing}", "train.max_steps=1"), tmp_path / packing)
        for packing in ("none", "pack", "split")
    ]
    assert len({record["eval"]["initial_loss"] for record in records}) == 1
    quality, cost = ([record["fingerprint"][part] for record in records] for part in ("quality", "cost"))
    assert len({part["data_order"] for part in quality}) == 3
    assert len({part["eval_split"] for part in quality}) == 1
    assert [(part["attention"], part["packing"]) for part in cost] == [
        ("sdpa", "none"),
        ("sdpa", "pack"),
        ("sdpa", "split"),
    ]
    assert records[0]["proofs"]["packing"] is None
    assert all(record["proofs"]["packing"]["seconds"] < 5 for record in records[1:])


@pytest.mark.parametrize("packing", ["pack", pytest.param("split", marks=pytest.mark.slow)])
def test_stopping_in_the_middle_of_an_epoch_and_going_on_is_exact(settings, tmp_path, monkeypatch, packing):
    config = settings(
        "method=lora",
        "method.dropout=0.2",
        f"data.packing={packing}",
        "data.max_length=128",
        "train.max_steps=7",
        "train.tokens_per_step=256",
    )
    run(config, tmp_path / "unbroken")
    from sweeptune.training import loop

    step_for_real = loop.train_step

    def stop_in_between(session, step):
        done = step_for_real(session, step)
        if session.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(loop, "train_step", stop_in_between)
    stopped = run(config, tmp_path / "stopped")
    assert stopped["status"] == "interrupted" and stopped["train"]["steps"] == 3
    monkeypatch.setattr(loop, "train_step", step_for_real)
    record = run(config, tmp_path / "stopped")
    assert record["proofs"]["packing"]["samples"] >= 3, "it is proven again"
    assert_same_end(tmp_path / "unbroken", tmp_path / "stopped")


def test_attention_costs_the_squares_of_samples_not_of_rows(settings, tmp_path):
    session = open_session(settings("method=full", *PACKED), tmp_path / "pack")
    assert sorted(segment_lengths(session)) == sorted(row.length for row in session.splits.train)
    session = open_session(settings("method=full", "data.packing=split", "data.max_length=32"), tmp_path / "split")
    pieces = [piece for step in session.steps for pack in step.packs for piece in pack]
    assert sorted(segment_lengths(session)) == sorted(piece.end - piece.begin for piece in pieces)
    assert max(segment_lengths(session)) == 32 and 0 < loss_share(session) < 1


def test_two_ranks_learn_what_one_learns(settings, tmp_path):
    from safetensors.torch import load_file

    from sweeptune.training.checkpoint import find_checkpoints

    ends = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        config = settings(
            "method=full",
            "data.packing=pack",
            "data.max_length=160",
            "train.max_steps=2",
            "optim.lr=1e-3",
            "optim.eps=1e-3",
            f"hardware.gpus_per_trial={ranks}",
        )
        (folder / "config.yaml").write_text(dump(config))
        command = ["-m", "sweeptune.launch.worker", str(folder), "--command=python train.py ..."]
        if ranks > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command]
        subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=300)
        record = json.loads((folder / "result.json").read_text())
        assert record["status"] == "completed" and record["proofs"]["packing"]
        ends.append(load_file(find_checkpoints(folder)[-1] / "trainable.safetensors"))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=0, atol=1e-5)
