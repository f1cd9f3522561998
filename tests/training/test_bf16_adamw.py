"""AdamW on bf16 weights: optim.rounding=stochastic resumed as unbroken, in the fingerprint, refused where in vain; and
the one that fused kernels bring along against torch's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from sweeptune.config.compose import compose
from sweeptune.config.rules import validate
from sweeptune.training import run, step
from sweeptune.training.bf16_adamw import Bf16AdamW
from sweeptune.training.optimizer import build_optimizer, clip_gradients, load_optimizer_state, state_sizes
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


@pytest.mark.parametrize("most", [0.0, 0.5, 1e9])
def test_the_optimizer_of_fused_kernels_is_torchs_with_clipping(monkeypatch, most):
    torch.manual_seed(0)
    optim = compose(["method=full", "model.dtype=bf16", "optim.lr=1e-2"]).optim
    start = torch.nn.Linear(64, 32).bfloat16()
    ours, theirs = deepcopy(start), deepcopy(start)
    with monkeypatch.context() as patched:
        patched.setattr("sweeptune.training.optimizer.fused", lambda model: object())
        fast = build_optimizer(ours, optim)
    plain = build_optimizer(theirs, optim)
    assert (type(fast), type(plain)) == (Bf16AdamW, torch.optim.AdamW)
    for _ in range(3):
        for one in (ours, theirs):
            one.zero_grad()
        x = torch.randn(16, 64).bfloat16()
        for one in (ours, theirs):
            one(x).square().mean().backward()
        norms = [
            clip_gradients(list(one.parameters()), most, optimizer)
            for one, optimizer in ((ours, fast), (theirs, plain))
        ]
        assert torch.equal(*norms) or norms[0] == pytest.approx(norms[1], rel=0.02)
        fast.step()
        plain.step()
    assert fast.scale is None, "the next step's gradients have a norm of their own"
    for a, b, first in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        moved = (b - first).float()
        assert float((a.float() - b.float()).norm() / moved.norm()) < 0.05
        assert fast.state[a]["step"] == 3


def test_a_state_of_torchs_adamw_goes_on_in_ours_and_back():
    optim = compose(["method=full", "model.dtype=bf16"]).optim
    model = torch.nn.Linear(8, 8).bfloat16()
    model(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
    plain, ours = build_optimizer(model, optim), Bf16AdamW(model.parameters(), lr=1e-3)
    plain.step()
    groups = plain.state_dict()["param_groups"]
    assert len(groups) == 2
    ours = Bf16AdamW([{"params": [model.weight]}, {"params": [model.bias]}], lr=1e-3)
    load_optimizer_state(ours, plain.state_dict())
    ours.step()
    assert ours.state[model.weight]["step"] == 2
    load_optimizer_state(plain, ours.state_dict())
    plain.step()
    assert float(plain.state[model.weight]["step"]) == 3
    assert all(group["fused"] for group in plain.param_groups), "not the one that takes more memory"


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
