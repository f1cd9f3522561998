"""Optimisers keep their storage across a checkpoint."""

from __future__ import annotations

import pytest
import torch

from sweeptune.config.compose import compose
from sweeptune.training.memory import paged_bytes
from sweeptune.training.optimizer import build_optimizer, load_optimizer_state


@pytest.mark.skipif(not torch.cuda.is_available(), reason="paging moves state between a GPU and the host")
def test_paged_states_are_pages_again_after_a_checkpoint():
    paged = compose(["hardware=gpu", "optim=paged_adamw_8bit"]).optim
    model = torch.nn.Linear(512, 512, device="cuda")
    optimizer = build_optimizer(model, paged)
    model(torch.ones(1, 512, device="cuda")).sum().backward()
    optimizer.step()
    saved, held = optimizer.state_dict(), paged_bytes()
    assert held >= 2 * 512 * 512
    again = build_optimizer(model, paged)
    load_optimizer_state(again, saved)
    assert paged_bytes() == held
    for state in again.state.values():
        assert getattr(state["state1"], "is_paged", False) == (state["state1"].numel() >= 1e5)
    old, new = optimizer.state[model.weight], again.state[model.weight]
    assert torch.equal(old["state1"].cpu(), new["state1"].cpu()) and torch.equal(
        old["state2"].cpu(), new["state2"].cpu()
    )
    again.step()
    torch.cuda.synchronize()
