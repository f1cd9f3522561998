"""A run that was killed and continued ends bit for bit like one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sweeptune.config.compose import dump
from sweeptune.config.schema import Config
from sweeptune.training import checkpoint, run
from sweeptune.training.checkpoint import find_checkpoints
from tests.training.helpers import lines

LONG = ("train.epochs=null", "train.max_steps=40", "train.checkpoint_every=3", "train.eval_every=15")


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoints(folder)[-1] / "trainable.safetensors")


def assert_same_end(unbroken: Path, resumed: Path) -> None:
    expected, found = final_weights(unbroken), final_weights(resumed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    records = [json.loads((folder / "result.json").read_text()) for folder in (unbroken, resumed)]
    for key in ("eval", "train", "fingerprint"):
        parts = [{k: v for k, v in record[key].items() if k != "seconds"} for record in records]
        assert parts[0] == parts[1], key
    kept = [
        [{k: v for k, v in line.items() if k not in ("time", "cost")} for line in lines(folder / "metrics.jsonl")]
        for folder in (unbroken, resumed)
    ]
    assert kept[0] == kept[1], "each step is logged once, with the same values"


def work(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sweeptune.launch.worker", str(folder), "--command=python train.py ..."]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def kill_at_step(config: Config, folder: Path, step: int) -> None:
    """Start a worker and kill it as soon as it has logged a step."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    process = work(folder)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and any(f'"step": {step},' in line for line in metrics.read_text().splitlines()):
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the worker must still have been training"
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("method", ["full", "lora method.dropout=0.2", "qlora", "pissa"])
def test_resume_after_sigkill_at_a_random_step_is_exact(settings, tmp_path, method):
    config = settings(*(f"method={method}".split()), *LONG)
    assert run(config, tmp_path / "unbroken")["status"] == "completed"
    step = random.randrange(1, 30)
    print(f"killed at step {step}")
    kill_at_step(config, tmp_path / "killed", step)
    record = run(config, tmp_path / "killed")
    assert record["status"] == "completed" and record["attempts"] == 2
    assert_same_end(tmp_path / "unbroken", tmp_path / "killed")


@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit"])
def test_stopping_at_every_kind_of_step_and_going_on_is_exact(settings, tmp_path, monkeypatch, optim):
    config = settings("method=lora", f"optim={optim}", "train.max_steps=9", "train.checkpoint_every=4")
    run(config, tmp_path / "unbroken")
    from sweeptune.training import loop

    step_for_real = loop.train_step
    for attempt in range(3):

        def stop_in_between(session, step, attempt=attempt):
            done = step_for_real(session, step)
            if session.progress.step == (1, 3, 5)[attempt]:
                os.kill(os.getpid(), signal.SIGTERM)
            return done

        monkeypatch.setattr(loop, "train_step", stop_in_between)
        record = run(config, tmp_path / "stopped")
        assert record["status"] == "interrupted" and record["train"]["steps"] == (2, 4, 6)[attempt]
    monkeypatch.setattr(loop, "train_step", step_for_real)
    assert run(config, tmp_path / "stopped")["attempts"] == 4
    assert_same_end(tmp_path / "unbroken", tmp_path / "stopped")


def test_a_half_written_checkpoint_is_never_used(settings, tmp_path, monkeypatch):
    config = settings("method=full", "train.max_steps=9", "train.checkpoint_every=3")
    run(config, tmp_path / "unbroken")

    class Dead(BaseException):
        """Stands for a process that ends between writing and renaming."""

    def die(self: Path, target: Path) -> None:
        raise Dead

    with monkeypatch.context() as patch:
        saves = []

        def rename(self: Path, target: Path) -> Path:
            saves.append(target.name)
            if len(saves) == 2:
                raise Dead
            return os.rename(self, target) or target

        patch.setattr(Path, "rename", rename)
        with pytest.raises(Dead):
            run(config, tmp_path / "dead")
    assert (tmp_path / "dead" / "checkpoints" / "step-000006.part").is_dir(), "the half-written one was left behind"
    assert [path.name for path in find_checkpoints(tmp_path / "dead")] == ["step-000003"]
    run(config, tmp_path / "dead")
    assert_same_end(tmp_path / "unbroken", tmp_path / "dead")


def test_lines_past_the_checkpoint_are_set_aside_not_doubled(settings, tmp_path, monkeypatch):
    from sweeptune.training import loop

    config = settings("method=lora", "train.max_steps=8", "train.checkpoint_every=3")
    step_for_real = loop.train_step

    def crash_at_six(session, step):
        if session.progress.step == 6 and not (tmp_path / "metrics.jsonl.discarded").exists():
            raise RuntimeError("the power went out")
        return step_for_real(session, step)

    monkeypatch.setattr(loop, "train_step", crash_at_six)
    monkeypatch.setattr(checkpoint, "save_checkpoint", checkpoint.save_checkpoint)
    assert run(config, tmp_path)["status"] == "crashed"
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 7, "lo')  # a torn line
    assert run(config, tmp_path)["status"] == "completed"
    steps = [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (tmp_path / "metrics.jsonl.discarded").read_text().rstrip().endswith('{"step": 7, "lo')


def test_a_completed_run_is_not_run_again(settings, tmp_path):
    config = settings("method=lora", "train.max_steps=2")
    first = run(config, tmp_path)
    assert run(config, tmp_path)["train"] == first["train"]
    assert len((tmp_path / "attempts.jsonl").read_text().splitlines()) == 1


def test_checkpoints_are_pruned_and_the_best_one_kept(settings, tmp_path):
    config = settings(
        "method=lora",
        "train.max_steps=10",
        "train.checkpoint_every=2",
        "train.eval_every=2",
        "train.keep_checkpoints=2",
        "train.keep_best=true",
        "optim.lr=0.05",  # high on purpose: eval loss is not at its lowest at the end only
        "optim.schedule=constant",
    )
    record = run(config, tmp_path)
    evals = {line["step"]: line["eval_loss"] for line in lines(tmp_path / "metrics.jsonl") if "eval_loss" in line}
    best = min(evals, key=lambda step: evals[step])
    kept = {int(path.name.removeprefix("step-")) for path in find_checkpoints(tmp_path)}
    assert kept == {8, 10} | ({best} if best else set())
    assert record["eval"]["best_loss"] == pytest.approx(evals[best])
