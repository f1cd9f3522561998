"""A study ends a run through a file in its folder: at the next evaluation, or at once when a signal comes with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.launch.spawn import spawn
from sweeptune.launch.worker import EXIT_CODES
from sweeptune.tracking.files import write_json
from sweeptune.tracking.record import PRUNED, empty_record, is_over, read_pruned, read_record, write_record
from sweeptune.training import loop, run
from sweeptune.training.checkpoint import find_checkpoints
from tests.training.helpers import lines

VERDICT = {"reason": "behind 3 others at 1,024 tokens", "by": [3, 4, 7], "spread": 0.02}
LORA = ("method=lora", "train.max_steps=8", "eval.max_samples=4")


def prune_at(monkeypatch: pytest.MonkeyPatch, folder: Path, step: int, *, with_signal: bool) -> None:
    """Leave the verdict while a step is running, as a study does from outside."""
    step_for_real = loop.train_step

    def during(session, planned):
        if session.progress.step == step - 1:
            write_json(folder / PRUNED, VERDICT)
            if with_signal:
                os.kill(os.getpid(), signal.SIGTERM)
        return step_for_real(session, planned)

    monkeypatch.setattr(loop, "train_step", during)


def evaluations(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder / "metrics.jsonl") if "eval_loss" in line]


def test_a_verdict_ends_the_run_after_the_step_that_is_running(settings, tmp_path, monkeypatch):
    prune_at(monkeypatch, tmp_path, 3, with_signal=False)
    record = run(settings(*LORA, "train.eval_every=2", "train.checkpoint_every=1"), tmp_path)
    assert (record["status"], record["reason"], record["pruned_by"]) == ("pruned", VERDICT["reason"], VERDICT)
    assert record == read_record(tmp_path)
    assert record["train"]["steps"] == 3 and evaluations(tmp_path) == [0, 2]
    kept = [path.name for path in find_checkpoints(tmp_path)]
    assert kept == ["step-000001", "step-000002"], "none after the verdict, although one was due"
    assert record["eval"]["loss"] is None, "not evaluated where it ended; pruned_by has the loss that it was judged by"
    assert record["memory"]["peak_memory_gib"] > 0
    assert record["fingerprint"]["quality"] and record["params"]["trainable"] > 0


def test_a_verdict_with_a_signal_ends_the_run_after_the_step(settings, tmp_path, monkeypatch):
    prune_at(monkeypatch, tmp_path, 3, with_signal=True)
    record = run(settings(*LORA), tmp_path)
    assert (record["status"], record["train"]["steps"], record["eval"]["loss"]) == ("pruned", 3, None)
    assert record["eval"]["initial_loss"] is not None and record["train"]["final_loss"] is not None
    assert not find_checkpoints(tmp_path)


def test_a_signal_alone_still_interrupts(settings, tmp_path, monkeypatch):
    prune_at(monkeypatch, tmp_path / "other", 3, with_signal=True)
    (tmp_path / "other").mkdir()
    record = run(settings(*LORA), tmp_path / "run")
    assert (record["status"], record["pruned_by"]) == ("interrupted", None)
    assert len(find_checkpoints(tmp_path / "run")) == 1


def test_an_attempt_that_finds_a_verdict_trains_no_further(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was made"))
    write_json(tmp_path / PRUNED, VERDICT)
    assert run(settings(*LORA), tmp_path)["status"] == "pruned"


def test_a_pruned_run_is_not_run_again_unless_the_verdict_is_taken_back(settings, tmp_path, monkeypatch):
    config = settings(*LORA, "train.eval_every=2")
    with monkeypatch.context() as patch:
        prune_at(patch, tmp_path, 3, with_signal=False)
        first = run(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert is_over(tmp_path, first) and run(config, tmp_path) == first
    assert (tmp_path / "metrics.jsonl").read_text() == before and len(lines(tmp_path / "attempts.jsonl")) == 1
    (tmp_path / PRUNED).unlink()
    record = run(config, tmp_path)
    assert (record["status"], record["attempts"], record["pruned_by"]) == ("completed", 2, None)
    write_json(tmp_path / PRUNED, VERDICT)
    assert is_over(tmp_path, record) and run(config, tmp_path)["status"] == "completed", "a verdict that came too late"


def test_the_launcher_starts_no_worker_for_a_pruned_run(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a worker was started"))
    config = settings(*LORA)
    write_record(tmp_path, empty_record(config) | {"status": "pruned", "reason": "behind", "pruned_by": VERDICT})
    write_json(tmp_path / PRUNED, VERDICT)
    assert spawn(config, tmp_path, "python train.py")["status"] == "pruned"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"reason": 3}'])
def test_a_verdict_that_cannot_be_read_is_no_verdict(tmp_path, content):
    assert read_pruned(tmp_path) is None
    (tmp_path / PRUNED).write_text(content)
    with pytest.raises(ConfigError, match=r"pruned\.json: .* remove it to let the run go on"):
        read_pruned(tmp_path)
    (tmp_path / PRUNED).write_text(json.dumps(VERDICT))
    assert read_pruned(tmp_path) == VERDICT


def test_being_pruned_is_no_failure():
    assert EXIT_CODES["pruned"] == 0
