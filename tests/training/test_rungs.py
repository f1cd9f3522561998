"""Evaluations at shares of the planned tokens: where a study compares its trials."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.compose import compose, dump, load
from sweeptune.config.schema import TrainConfig
from sweeptune.training import loop, run
from sweeptune.training.session import steps_at
from tests.training.helpers import lines

RUNGS = ("method=lora", "train.max_steps=8", "eval.max_samples=4", "train.eval_at=[0.25,0.5]")


@dataclass
class Planned:
    """A step of so many tokens."""

    tokens: int


@pytest.mark.parametrize(
    ("tokens", "shares", "expected"),
    [
        ([10] * 8, [0.25, 0.5], [2, 4]),
        ([10] * 8, [0.26, 0.24, 0.999], [3, 2, 8]),
        ([100, 1, 1, 1], [0.5, 0.99], [1, 3]),  # shares of the tokens, not of the steps
        ([1] * 30, [0.1, 0.7], [3, 21]),  # 0.1 x 30 and 0.7 x 30 are not whole in floating point
        ([7], [0.01, 0.99], [1, 1]),
    ],
)
def test_a_rung_is_the_first_step_that_reaches_its_share_of_the_tokens(tokens, shares, expected):
    assert steps_at(shares, [Planned(n) for n in tokens]) == expected


def logged(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("time", "cost")} for line in lines(folder / "metrics.jsonl")]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [line for line in logged(folder) if "eval_loss" in line]


def test_a_run_is_evaluated_at_its_rungs_beside_the_regular_evaluations(settings, tmp_path):
    record = run(settings(*RUNGS, "train.eval_every=3"), tmp_path)
    found = evaluations(tmp_path)
    steps = {line["step"]: line["tokens"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line}
    rungs = [min(step for step, tokens in steps.items() if tokens >= share * steps[8]) for share in (0.25, 0.5)]
    assert [line["step"] for line in found] == sorted({0, *rungs, 3, 6, 8})
    assert [line["tokens"] for line in found[1:]] == [steps[line["step"]] for line in found[1:]]
    assert record["proofs"]["gradients"]["passed"] == len(found), "proven after each of them"


def test_a_run_that_was_interrupted_at_a_rung_is_evaluated_there_when_it_goes_on(settings, tmp_path, monkeypatch):
    config = settings(*RUNGS)
    whole = run(config, tmp_path / "whole")
    rung = evaluations(tmp_path / "whole")[1]["step"]
    step_for_real = loop.train_step

    def interrupt(session, planned):
        done = step_for_real(session, planned)
        if session.progress.step == rung - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupt)
        assert run(config, tmp_path / "stopped")["train"]["steps"] == rung
    assert run(config, tmp_path / "stopped")["eval"] == whole["eval"]
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")


def test_a_run_folder_from_before_this_setting_can_be_read(settings, tmp_path):
    text = dump(settings())
    old = "".join(line for line in text.splitlines(keepends=True) if "eval_at" not in line)
    assert old != text
    (tmp_path / "config.yaml").write_text(old)
    assert load(tmp_path / "config.yaml") == settings()
    assert TrainConfig.__dataclass_fields__["eval_at"].default_factory() == compose([]).train.eval_at
