"""Studies with a fake trainer, as real processes: see fake_worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_worker.py")
COMMON = ["model=tiny", "hardware=cpu", "train.max_steps=10", "study.probe_steps=0"]


def environment(folder: Path, **plan: Any) -> dict[str, str]:
    """Variables that put the fake trainer in the real one's place."""
    path = folder / "fake.json"
    path.write_text(json.dumps(plan))
    found = {**os.environ, "SWEEPTUNE_WORKER": f"{sys.executable} {FAKE}", "SWEEPTUNE_FAKE": str(path)}
    if "foreseen" in plan:
        found |= {"SWEEPTUNE_PREDICTOR": f"{sys.executable} -m tests.study.fake_predictor"}
        found |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return found


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--multirun", *COMMON, *overrides]


def run(folder: Path, *overrides: str, plan: dict[str, Any] | None = None, timeout: float = 120) -> Any:
    """A study from the command line to its end."""
    return subprocess.run(
        command(*overrides),
        cwd=folder,
        env=environment(folder, **(plan or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def begin(folder: Path, *overrides: str, plan: dict[str, Any] | None = None) -> subprocess.Popen[bytes]:
    """A study that goes on while the test does something to it; what it says is added to ``said.log``."""
    with (folder / "said.log").open("ab") as said:
        return subprocess.Popen(
            command(*overrides), cwd=folder, env=environment(folder, **(plan or {})), stderr=said, stdout=said
        )


def lines(study: Path) -> list[dict[str, Any]]:
    """trials.jsonl; each number exactly once."""
    path = study / "trials.jsonl"
    found = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    assert len({line["number"] for line in found}) == len(found), "a number twice"
    return sorted(found, key=lambda line: line["number"])


def results(study: Path) -> list[tuple[Any, ...]]:
    """What two studies must agree in: parameters, statuses and losses."""
    return [(line["number"], line["params"], line["status"], line["eval_loss"]) for line in lines(study)]


def wait_for(condition: Any, seconds: float = 60.0) -> bool:
    """Wait until something is so; False when it never was."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def workers(study: Path) -> list[psutil.Process]:
    """Living workers of a study."""
    found = []
    for process in psutil.process_iter(["cmdline", "status", "cwd"]):
        words = process.info["cmdline"] or []
        inside = process.info["cwd"] and str(study).startswith(process.info["cwd"])
        if str(FAKE) in words and inside and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
