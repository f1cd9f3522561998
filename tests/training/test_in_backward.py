"""The optimiser's step inside backward: the same weights bit for bit, no gradient left, no half step repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sweeptune.config.compose import compose
from sweeptune.config.rules import validate
from sweeptune.training import run, step
from sweeptune.training.estimate import estimate
from sweeptune.training.oom import OptimizerOutOfMemory
from sweeptune.training.session import open_session
from sweeptune.training.shapes import Shape, Shapes
from tests.training.helpers import lines

PLAIN = ["method=full", "optim.max_grad_norm=0", "train.max_steps=4"]
OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 36.00 MiB. GPU 0 has a total capacity")


def weights(session):
    return {name: parameter.detach().clone() for name, parameter in session.model.named_parameters()}


@pytest.mark.parametrize(
    "overrides",
    [
        ["hardware.micro_batch=2"],
        ["hardware.micro_batch=64", "optim.weight_decay=0.1"],
        ["hardware.gradient_checkpointing=true"],
        ["model.architecture.tie_word_embeddings=true"],
        ["method=lora"],
        ["optim=adamw_8bit"],
    ],
)
def test_the_weights_are_those_of_the_ordinary_step_bit_for_bit(settings, tmp_path, overrides):
    found = []
    for name in ("false", "true"):
        config = settings(*PLAIN, *overrides, f"optim.in_backward={name}")
        session = open_session(config, tmp_path / name)
        session.model.train()
        norms = []
        for number in range(3):
            loss, norm, skipped = step.train_step(session, session.steps[number])
            session.progress.step += 1
            norms += [loss.item(), norm.item()]
            assert not skipped
        assert all(p.grad is None for p in session.model.parameters())
        found.append((weights(session), norms))
    (plain, plain_norms), (fused, fused_norms) = found
    assert plain.keys() == fused.keys()
    for name, weight in plain.items():
        assert torch.equal(weight, fused[name]), name
    assert fused_norms == pytest.approx(plain_norms, rel=1e-6)


def test_a_gradient_is_gone_before_the_next_ones_are_complete(settings, tmp_path):
    session = open_session(settings(*PLAIN, "optim.in_backward=true", "hardware.micro_batch=64"), tmp_path)
    session.model.train()
    most = []
    for parameter in session.model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(p.grad is not None for p in session.model.parameters()))
        )
    step.train_step(session, session.steps[0])
    assert max(most) <= 2, "of all the model's gradients"


def test_a_run_logs_the_norm_goes_on_from_its_checkpoint_and_says_so(settings, tmp_path):
    config = settings(*PLAIN, "optim.in_backward=true", "train.checkpoint_every=2", "train.keep_checkpoints=9")
    record = run(config, tmp_path / "run")
    assert record["status"] == "completed", record["reason"]
    assert record["fingerprint"]["cost"]["in_backward"] is True
    assert all(line["grad_norm"] > 0 for line in lines(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in line)
    session = open_session(config, tmp_path / "run")  # of step 2: the last one keeps its weights only
    assert session.progress.step == 2
    session.model.train()
    for number in (2, 3):
        step.train_step(session, session.steps[number])
        session.progress.step += 1
    from safetensors.torch import load_file

    ended = load_file(tmp_path / "run" / "checkpoints" / "step-000004" / "trainable.safetensors")
    for name, weight in weights(session).items():
        assert torch.equal(weight, ended[name]), name


@pytest.mark.parametrize("when", ["first", "later"])
def test_out_of_memory_once_weights_have_changed_is_the_optimisers(settings, tmp_path, monkeypatch, when):
    session = open_session(settings(*PLAIN, "optim.in_backward=true", "hardware.micro_batch=4"), tmp_path)
    session.model.train()
    plain, calls = session.in_backward.optimizer.step, []

    def fail():
        calls.append(1)
        if len(calls) == (1 if when == "first" else 5):
            raise OOM
        plain()

    monkeypatch.setattr(session.in_backward.optimizer, "step", fail)
    with pytest.raises(OptimizerOutOfMemory, match=r"36\.00 MiB"):
        step.train_step(session, session.steps[0])
    assert session.progress.micro_batch == 4


def test_out_of_memory_before_that_halves_the_micro_batch(settings, tmp_path, monkeypatch):
    session = open_session(settings(*PLAIN, "optim.in_backward=true", "hardware.micro_batch=4"), tmp_path)
    session.model.train()
    plain, calls = step.summed_nll, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise OOM
        return plain(*arguments)

    monkeypatch.setattr(step, "summed_nll", fail)
    step.train_step(session, session.steps[0])
    assert session.progress.micro_batch == 2


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.max_grad_norm=1.0", "optim.max_grad_norm=1.0"),
        ("hardware.precision=fp16", "hardware.precision=fp16"),
        ("hardware.gpus_per_trial=2", "hardware.gpus_per_trial=2"),
    ],
)
def test_what_needs_the_whole_gradient_is_refused(settings, override, named):
    problems = validate(settings(*PLAIN, "optim.in_backward=true", override))
    assert any("optim.in_backward=true" in problem and named in problem for problem in problems)
    assert not any("in_backward" in problem for problem in validate(settings(*PLAIN, "optim.in_backward=true")))


def test_the_prediction_knows_that_gradients_take_no_room():
    def predict(*overrides: str, steps: int):
        config = compose(["model=smollm2_135m", "model.weights=random", "hardware=gpu", *PLAIN, *overrides])
        config = replace(config, hardware=replace(config.hardware, device="cuda"))
        shape = Shape(1, 64, 32, 64, padded=False)
        return estimate(config, Shapes(((shape,) * steps,), shape))

    plain, fused = predict(steps=1), predict("optim.in_backward=true", steps=1)
    weights_gib = 134.5e6 * 4 / 2**30
    # The tied head's gradient is made with the fused loss, and stays until the embedding's joins it at the very end.
    head_gib = 49152 * 576 * 4 / 2**30
    assert weights_gib - 2 * head_gib < plain.peak_memory_gib - fused.peak_memory_gib < weights_gib
    assert predict("optim.in_backward=true", steps=2).peak_memory_gib == pytest.approx(
        predict(steps=2).peak_memory_gib, rel=0.02
    )
