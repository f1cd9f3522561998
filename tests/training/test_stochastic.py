"""Runs with optim.rounding=stochastic: resumed as unbroken, in the fingerprint, refused where in vain."""

from __future__ import annotations

import pytest
import torch

from sweeptune.config.compose import compose
from sweeptune.config.rules import validate
from sweeptune.training import run, step
from sweeptune.training.optimizer import build_optimizer, load_optimizer_state, state_sizes
from sweeptune.training.session import open_session

PURE = ["method=full", "model.dtype=bf16", "optim.rounding=stochastic"]


def test_a_run_in_pure_bf16_ends_and_says_how_it_rounded(settings, tmp_path):
    record = run(settings(*PURE, "train.max_steps=4", "optim.lr=1e-3"), tmp_path)
    assert record["status"] == "completed", record["reason"]
    assert record["fingerprint"]["cost"]["rounding"] == "stochastic"
    assert record["eval"]["loss"] < record["eval"]["initial_loss"]


@pytest.mark.parametrize("in_backward", ["false", "true"])
def test_a_resumed_run_draws_what_an_unbroken_one_draws(settings, tmp_path, in_backward):
    more = ["optim.max_grad_norm=0", f"optim.in_backward={in_backward}", "train.checkpoint_every=2"]
    config = settings(*PURE, *more, "train.max_steps=4", "train.keep_checkpoints=9")
    assert run(config, tmp_path)["status"] == "completed"
    session = open_session(config, tmp_path)
    assert session.progress.step == 2
    session.model.train()
    for number in (2, 3):
        step.train_step(session, session.steps[number])
        session.progress.step += 1
    from safetensors.torch import load_file

    ended = load_file(tmp_path / "checkpoints" / "step-000004" / "trainable.safetensors")
    for name, parameter in session.model.named_parameters():
        assert parameter.dtype is torch.bfloat16
        assert torch.equal(parameter.detach(), ended[name]), name


def test_the_state_is_two_moments_in_bf16_and_round_trips():
    optim = compose(PURE).optim
    model = torch.nn.Linear(64, 8).bfloat16()
    optimizer = build_optimizer(model, optim)
    model(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    again = build_optimizer(model, optim)
    load_optimizer_state(again, optimizer.state_dict())
    for parameter in model.parameters():
        old, new = optimizer.state[parameter], again.state[parameter]
        assert (old["step"], new["step"]) == (1, 1)
        for key in ("exp_avg", "exp_avg_sq"):
            assert new[key].dtype is torch.bfloat16 and torch.equal(old[key], new[key])
        held = [v.nbytes for v in new.values() if isinstance(v, torch.Tensor)]
        assert held == [size for size, _ in state_sizes(parameter, "adamw", "stochastic")]


def test_other_seeds_round_otherwise():
    def ended(seed: int) -> torch.Tensor:
        model = torch.nn.Linear(64, 64, bias=False).bfloat16()
        torch.nn.init.ones_(model.weight)
        optimizer = build_optimizer(model, compose(PURE).optim, seed)
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        return model.weight.detach()

    assert torch.equal(ended(0), ended(0)) and not torch.equal(ended(0), ended(1))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["method=lora"], "method=lora"),
        (["model.dtype=auto"], "model.dtype=auto"),
        (["optim=adamw_8bit"], "optim=adamw_8bit"),
    ],
)
def test_it_is_refused_where_it_is_in_vain(settings, overrides, named):
    problems = [p for p in validate(settings(*PURE, *overrides)) if "optim.rounding=stochastic" in p]
    assert len(problems) == 1 and named in problems[0]
    assert validate(settings(*PURE)) == []
