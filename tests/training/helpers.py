"""Small tools for the training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sweeptune.config.schema import Config
from sweeptune.data import samples
from sweeptune.training.session import Session, open_session
from sweeptune.training.step import accumulate


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def gradients(config: Config, folder: Path, step: int = 0) -> tuple[Session, dict[str, torch.Tensor]]:
    """The gradients of one step, before clipping."""
    session = open_session(config, folder)
    session.model.train()
    accumulate(session, samples(session.splits.train, session.steps[step].packs), session.steps[step].loss_tokens)
    found = {n: p.grad.clone() for n, p in session.model.named_parameters() if p.grad is not None}
    return session, found
