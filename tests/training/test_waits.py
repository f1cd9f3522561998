"""A step gives the device its work and never waits for a result: nothing in it reads a tensor's content."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sweeptune.kernels import fuse as fusing
from sweeptune.kernels import interfaces
from sweeptune.training import step as stepping
from sweeptune.training.session import open_session
from sweeptune.training.step import train_step
from sweeptune.training.values import send_back


class Waits(TorchDispatchMode):
    """Counts operations whose result the host reads: item, tolist, a truth value; and nonzero, whose size it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique"):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def attend(query, key, value, *bounds, scale=None, enable_gqa=False, window_size=None):
    """Attention over all samples at once: of the right shape, and it reads nothing."""
    q, k, v = (t.transpose(0, 1) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa).transpose(0, 1)


@pytest.fixture
def session(settings, tmp_path, monkeypatch):
    """As on a GPU: varlen attention and, where they can be, fused kernels."""
    monkeypatch.setattr(interfaces, "varlen_kernel", lambda: attend)
    monkeypatch.setattr(fusing, "machine_lacks", lambda device: None)
    monkeypatch.setattr(fusing, "plain_reason", lambda model, wanted, compute: wanted if wanted == "plain" else None)

    def make(*overrides: str):
        opened = open_session(settings("hardware.micro_batch=3", *overrides), tmp_path)
        opened.model.set_attn_implementation(interfaces.VARLEN)
        opened.model.train()
        return opened

    return make


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full"],
        ["method=lora"],
        ["method=lora", "hardware.gradient_checkpointing=true"],
        ["method=lora", "data.packing=pack"],
        ["method=lora", "optim.max_grad_norm=0.01"],
        ["method=dora", "hardware.kernels=plain"],
        ["method=full", "hardware.kernels=plain", "hardware.gradient_checkpointing=true"],
    ],
    ids=" ".join,
)
def test_nothing_in_a_step_waits_for_the_device(session, overrides):
    running = session(*overrides)
    assert (fusing.fused(running.model) is None) == ("hardware.kernels=plain" in overrides)
    train_step(running, running.steps[0])  # the first one makes the optimiser's states
    with Waits() as waits:
        loss, norm, _ = train_step(running, running.steps[1])
        arriving = send_back(loss, norm)
    assert waits.seen == []
    assert arriving.wait() == pytest.approx([loss.item(), norm.item()])


def test_a_wait_would_be_seen(session, monkeypatch):
    running = session("method=lora")
    real = stepping.summed_nll

    def curious(model, batch):
        nll = real(model, batch)
        return nll if nll > 0 else -nll

    monkeypatch.setattr(stepping, "summed_nll", curious)
    with Waits() as waits:
        train_step(running, running.steps[0])
    assert "aten::_local_scalar_dense" in waits.seen
