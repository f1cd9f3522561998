"""A run folder as training leaves it, and a stand-in for W&B's server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.compose import compose, dump
from sweeptune.tracking.record import PARTS
from tests.tracking.wandb_server import Server, serving


def leave_lines(folder: Path, steps: int, start: int = 0) -> None:
    """Lines of metrics.jsonl: an evaluation, then steps."""
    lines: list[dict[str, Any]] = [] if start else [{"step": 0, "tokens": 0, "eval_loss": 4.0}]
    for step in range(start + 1, start + steps + 1):
        lines.append({"step": step, "tokens": 100 * step, "loss": 3 - step / 100, "lr": 1e-3, "time": float(step)})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def leave_start(folder: Path) -> None:
    """Note an attempt, of a process of this machine that is gone: its number has another holder, who began later."""
    with (folder / "attempts.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1.0, "host": socket.gethostname(), "pid": 1}) + "\n")


def leave_result(folder: Path, status: str = "completed", loss: float = 2.5, memory: float = 3.0) -> None:
    """A record."""
    record: dict[str, Any] = {part: dict.fromkeys(keys) for part, keys in PARTS.items()}
    record |= {"schema": 1, "attempts": 1, "command": "", "reason": None, "method": "lora", "seed": 0, "test": None}
    record |= {"status": status, "model": "tiny", "data": "jsonl"}
    record["eval"] |= {"loss": loss, "tasks": {}}
    record["memory"]["peak_memory_gib"] = memory
    (folder / "result.json").write_text(json.dumps(record))


def leave_run(folder: Path, *overrides: str, steps: int = 5, ended: bool = True) -> Path:
    """A run folder with five steps, completed unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(compose(["model=tiny", "method=lora", "hardware=cpu", *overrides])))
    leave_start(folder)
    leave_lines(folder, steps)
    if ended:
        leave_result(folder)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run("multirun/demo/0", "tracker=wandb", ended=False)``"""
    return lambda name="run", *overrides, **given: leave_run(tmp_path / name, *overrides, **given)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that this process and its children send to."""
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install 'sweeptune[wandb]'")
    with serving() as found:
        for key, value in found.variables().items():
            monkeypatch.setenv(key, value)
        yield found
        wandb.teardown()  # it remembers the address
