"""bench/estimate.py evaluates as the training loop does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeptune.config.schema import Config
from sweeptune.training.session import open_session

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import estimate


@pytest.mark.slow
def test_it_judges_a_session(settings: Callable[..., Config], tmp_path: Path) -> None:
    session = open_session(settings("method=lora", "eval.batch_tokens=128"), tmp_path)
    estimate.judge(session)
    assert session.meter.phases["eval"]["host_gib"] > 0
