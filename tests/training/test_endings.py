"""Whatever happens, a record says how it ended, and nothing that was written is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.record import read_record
from sweeptune.training import loop, run, step
from sweeptune.training.checkpoint import find_checkpoints
from sweeptune.training.loss import summed_nll, token_nll
from sweeptune.training.oom import brief
from tests.training.helpers import gradients, lines


def failing_at(calls: set[int], error: Exception, loss=summed_nll):
    """A loss that fails at some of its calls."""
    count = 0

    def nll(model, batch):
        nonlocal count
        count += 1
        if count in calls:
            raise error
        return loss(model, batch)

    return nll


OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_out_of_memory_in_forward_halves_the_micro_batch_and_repeats_the_step(settings, tmp_path, monkeypatch):
    config = settings("method=full", "hardware.micro_batch=4", "train.max_steps=3", "optim.eps=1e-3")
    plain = run(config, tmp_path / "plain")
    monkeypatch.setattr(step, "summed_nll", failing_at({2}, OOM))
    record = run(config, tmp_path / "oom")
    assert record["status"] == "completed"
    assert [(r["step"], r["micro_batch"]) for r in record["train"]["replans"]] == [(0, 2)]
    assert record["fingerprint"]["cost"]["micro_batch"] == 2
    assert record["eval"]["loss"] == pytest.approx(plain["eval"]["loss"], abs=1e-5)
    assert "micro-batch 4 -> 2" in (tmp_path / "oom" / "train.log").read_text()


def test_out_of_memory_in_backward_drops_the_gradients_of_the_step(settings, tmp_path, monkeypatch):
    config = settings("method=full", "hardware.micro_batch=4")
    _, expected = gradients(config, tmp_path / "a")
    from sweeptune.training.session import open_session

    session = open_session(config, tmp_path / "b")
    backward, calls = session.accelerator.backward, []

    def fail_once(loss):
        calls.append(1)
        backward(loss)  # gradients of this part are there already when memory runs out
        if len(calls) == 2:
            raise OOM

    monkeypatch.setattr(session.accelerator, "backward", fail_once)
    seen = {}
    monkeypatch.setattr(
        step, "update", lambda s: seen.update({n: p.grad.clone() for n, p in s.model.named_parameters()}) or (0, False)
    )
    session.model.train()
    step.train_step(session, session.steps[0])
    assert session.progress.micro_batch == 2
    for name, grad in expected.items():
        torch.testing.assert_close(seen[name], grad, rtol=1e-4, atol=1e-6)


def test_generators_are_restored_before_a_step_is_repeated(settings, tmp_path, monkeypatch):
    """With dropout, one row a time: the repeated step must draw what the first try drew."""
    config = settings("method=lora", "method.dropout=0.5", "hardware.micro_batch=2", "train.max_steps=1")
    drawn = []

    def watch(fail: bool):
        count = 0

        def nll(model, batch):
            nonlocal count
            count += 1
            if fail and count == 3:
                raise OOM
            drawn.append(torch.rand(1).item())
            return summed_nll(model, batch)

        return nll

    monkeypatch.setattr(step, "summed_nll", watch(fail=True))
    run(config, tmp_path)
    assert drawn[0] == drawn[2], "the first draw of the repeated step"
    assert drawn[0] != drawn[1]


def test_out_of_memory_in_the_optimiser_restarts_from_the_checkpoint(settings, tmp_path, monkeypatch):
    config = settings("method=full", "train.max_steps=5", "train.checkpoint_every=2", "optim.eps=1e-3")
    plain = run(config, tmp_path / "plain")
    adam_step, calls = torch.optim.AdamW.step, []

    def half_a_step(self, closure=None):
        calls.append(1)
        if len(calls) == 4:
            self.param_groups[0]["params"][0].data.fill_(123.0)  # a half-applied update
            raise OOM
        return adam_step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", half_a_step)
    record = run(config, tmp_path / "oom")
    assert record["status"] == "completed" and len(calls) == 7, "steps 1-4, the fourth failed; again from step 3"
    assert record["fingerprint"]["cost"]["micro_batch"] == 2
    assert record["eval"]["loss"] == pytest.approx(plain["eval"]["loss"], abs=1e-5)
    assert [x["step"] for x in lines(tmp_path / "oom" / "metrics.jsonl") if "loss" in x] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("overrides", [("hardware.on_oom=stop",), ("hardware.micro_batch=1",)])
def test_out_of_memory_ends_the_run_where_nothing_can_be_halved(settings, tmp_path, monkeypatch, overrides):
    monkeypatch.setattr(step, "summed_nll", failing_at(set(range(3, 99)), OOM))
    record = run(settings("method=full", *overrides), tmp_path)
    assert record["status"] == "oom" and "out of memory" in record["reason"]
    assert record == read_record(tmp_path)
    assert record["eval"]["initial_loss"] is not None, "what was measured before stays"


def test_out_of_memory_in_evaluation_halves_the_eval_batch(settings, tmp_path, monkeypatch):
    from sweeptune.training import evaluate

    config = settings("method=lora", "train.max_steps=2", "eval.batch_size=8")
    plain = run(config, tmp_path / "plain")
    monkeypatch.setattr(evaluate, "token_nll", failing_at({2}, OOM, token_nll))
    record = run(config, tmp_path / "oom")
    assert record["train"]["replans"][0]["eval_batch"] == 4
    assert record["eval"]["loss"] == pytest.approx(plain["eval"]["loss"], abs=1e-4)


def test_out_of_memory_in_evaluation_with_one_row_at_a_time_is_not_tried_again(settings, tmp_path, monkeypatch):
    from sweeptune.training import evaluate

    failing = failing_at(set(range(99)), OOM, token_nll)
    monkeypatch.setattr(evaluate, "token_nll", failing)
    record = run(settings("method=lora", "train.max_steps=2", "eval.batch_size=8", "eval.batch_tokens=1"), tmp_path)
    assert record["status"] == "oom" and "eval.batch_size, eval.batch_tokens: 1 x " in record["reason"]
    assert not record["train"]["replans"]


def test_a_loss_that_is_not_a_number_is_diverged(settings, tmp_path, monkeypatch):
    count = 0

    def nll(model, batch):
        nonlocal count
        count += 1
        return summed_nll(model, batch) * (float("nan") if count == 9 else 1.0)

    monkeypatch.setattr(step, "summed_nll", nll)
    record = run(settings("method=lora"), tmp_path)
    assert record["status"] == "diverged" and "nan" in record["reason"]
    assert "NaN" not in (tmp_path / "result.json").read_text() + (tmp_path / "metrics.jsonl").read_text()
    assert not find_checkpoints(tmp_path), "broken weights are not kept"


def test_a_gradient_of_exactly_zero_is_an_invalid_run(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "summed_nll", lambda model, batch: summed_nll(model, batch) * 0.0)
    record = run(settings("method=lora"), tmp_path)
    assert record["status"] == "invalid_run" and "exactly zero" in record["reason"]


def test_a_crash_leaves_its_traceback_in_the_log(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "summed_nll", failing_at({5}, RuntimeError("a bug of ours")))
    record = run(settings("method=lora"), tmp_path)
    assert record["status"] == "crashed" and record["reason"] == "RuntimeError: a bug of ours"
    log = (tmp_path / "train.log").read_text()
    assert "Traceback (most recent call last)" in log and "raise error" in log


def test_ctrl_c_leaves_a_checkpoint_and_a_record(settings, tmp_path, monkeypatch):
    step_for_real = loop.train_step

    def interrupt(session, planned):
        if session.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step_for_real(session, planned)

    monkeypatch.setattr(loop, "train_step", interrupt)
    record = run(settings("method=lora"), tmp_path)
    assert record["status"] == "interrupted" and record["train"]["steps"] == 3
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-000003"]
    assert f"resume={tmp_path}" in (tmp_path / "train.log").read_text()


def test_a_folder_that_cannot_be_written_is_a_clear_error(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be written .*hydra\.run\.dir="):
        run(settings(), tmp_path / "file" / "run")


def test_a_folder_of_other_settings_is_refused(settings, tmp_path):
    run(settings("train.max_steps=1"), tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        run(settings("train.max_steps=2"), tmp_path)


def test_a_full_disk_loses_nothing_that_was_written(settings, tmp_path, monkeypatch):
    from sweeptune.training import checkpoint

    save_for_real, saves = checkpoint.save_file, []

    def save(tensors, path):
        saves.append(path)
        if len(saves) == 2:
            save_for_real(tensors, path)  # most of it was written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save_for_real(tensors, path)

    config = settings("method=lora", "train.max_steps=9", "train.checkpoint_every=3")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save)
        record = run(config, tmp_path)
    assert record["status"] == "crashed" and "no room" in record["reason"] and "resume=" in record["reason"]
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-000003"]
    assert not list(Path(tmp_path / "checkpoints").glob("*.part"))
    assert run(config, tmp_path)["status"] == "completed"


def test_record_has_every_part_and_plain_json(settings, tmp_path):
    begin = time.perf_counter()
    record = run(settings("method=lora", "train.max_steps=8", "eval.test=true"), tmp_path, command="python train.py x")
    assert json.loads((tmp_path / "result.json").read_text())["command"] == "python train.py x"
    assert record["eval"]["loss"] < record["eval"]["initial_loss"]
    assert record["test"]["samples"] > 0 and record["test"]["loss"] != record["eval"]["loss"]
    assert record["speed"]["tokens_per_s"] > 0 and record["speed"]["step_ms"] > 0
    assert 0 < record["memory"]["peak_memory_gib"] <= record["memory"]["host_peak_gib"]
    phases = record["memory"]["phases"]
    assert {"load", "proof", "first_step", "steady", "eval", "save"} <= set(phases)
    seconds = [phase["seconds"] for phase in phases.values()]
    assert min(seconds) > 0 and sum(seconds) < time.perf_counter() - begin
    assert record["proofs"]["gradients"]["passed"] == 2
    assert record["train"]["tokens"] == lines(tmp_path / "metrics.jsonl")[-2]["tokens"]
    examples = lines(tmp_path / "eval.jsonl")
    nll, tokens = sum(e["nll"] for e in examples), sum(e["loss_tokens"] for e in examples)
    assert record["eval"]["loss"] == pytest.approx(nll / tokens) and len(examples) == record["eval"]["samples"]


def test_a_tokenizer_of_another_model_is_refused_before_weights_are_loaded(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeptune.training.session.build_model", lambda *_: pytest.fail("weights were loaded"))
    record = run(settings("model.architecture.vocab_size=200"), tmp_path)
    assert record["status"] == "invalid_config"
    assert "258 tokens, and the model has embeddings for 200" in record["reason"]


def test_a_reason_for_out_of_memory_is_a_sentence():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 36.00 MiB. GPU 0 has a total capacity of 79")
    assert brief(error) == "CUDA out of memory. Tried to allocate 36.00 MiB"
    assert brief(RuntimeError("DefaultCPUAllocator: can't allocate memory\nand more")).endswith("can't allocate memory")
