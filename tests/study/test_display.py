"""The lines that a study says without a terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeptune.study.display import Display


@pytest.mark.parametrize(
    ("point", "begun", "ended"),
    [
        ({"method": "lora", "optim.lr": 2e-4}, "trial 0 method=lora lr=0.0002 on", "completed, method=lora lr=0.0002:"),
        ({}, "trial 0 on cpu 0 -> s/0", "trial 0 completed: loss 2.0000, 3.00 GiB, 900 tokens/s (1 of 1)"),
    ],
)
def test_a_study_without_sweeps_says_nothing_where_settings_stand(
    caplog: pytest.LogCaptureFixture, point: dict[str, Any], begun: str, ended: str
) -> None:
    trial, slot = SimpleNamespace(number=0, point=point, seeds=[0]), SimpleNamespace(name="cpu 0")
    line = {"number": 0, "status": "completed", "params": point, "eval_loss": 2.0, "peak_memory_gib": 3.0}
    with caplog.at_level(logging.INFO, "sweeptune"):
        display = Display("s", 1)
        display.started(SimpleNamespace(kind="loss", trial=trial, slot=slot, folder=Path("s/0")))
        display.finished(line | {"tokens_per_s": 900.0}, 1)
    assert begun in caplog.messages[0] and ended in caplog.messages[1]
