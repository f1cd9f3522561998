"""Clocks that are set while a study runs: nobody's trial is taken over, and none is lost."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.study.fakes import begin, lines, run, wait_for, workers

DAY = 86_400
GRID = ["method=lora", "optim.lr=1e-4,1e-3", "study.name=s"]
CLOCK = f"""
import os, time
real = time.time
time.time = lambda: real() + {DAY} * float(os.environ["DAYS"])
"""

pytestmark = pytest.mark.slow


def begin_another_day(folder: Path, days: int) -> subprocess.Popen[bytes]:
    """A command whose clock is some days off: Python reads the file at every start."""
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAYS", str(days))
        patch.setenv("PYTHONPATH", str(folder / "clock"), prepend=os.pathsep)
        return begin(folder, *GRID, "hardware.gpus=2", plan={"step_s": 1.2})


@pytest.mark.parametrize("days", [-1, 1])
def test_a_living_owner_elsewhere_keeps_its_trial(tmp_path: Path, days: int) -> None:
    """The lease says that it is another machine's, so all that the second command has to go by is the file's time."""
    study = tmp_path / "multirun" / "s"
    first = begin(tmp_path, *GRID, plan={"step_s": 1.2})  # long enough for the second command to come in time
    assert wait_for(lambda: (study / "0" / "metrics.jsonl").exists())
    lease = study / "0" / ".lease-1.json"
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"machine": "elsewhere"}))
    os.utime(lease, (time.time() + days * DAY,) * 2)
    second = begin_another_day(tmp_path, days)
    assert first.wait(timeout=60) == 0 and second.wait(timeout=60) == 0, (tmp_path / "said.log").read_text()
    assert [line["number"] for line in lines(study)] == [0, 1]
    for number in range(2):
        assert (study / str(number) / "starts.txt").read_text().count("\n") == 1, "nobody's trial was taken over"
    ended = [line["ended"] for line in lines(study)]
    assert round((ended[1] - ended[0]) / DAY) == days, "the clocks did differ"


@pytest.mark.parametrize("days", [-1, 1])
def test_a_dead_owners_trial_goes_on_whatever_day_it_is(tmp_path: Path, days: int) -> None:
    study = tmp_path / "multirun" / "s"
    process = begin(tmp_path, *GRID, plan={"step_s": 0.2})
    assert wait_for(lambda: (study / "0" / "checkpoints" / "step.json").exists())
    process.kill()
    process.wait()
    assert wait_for(lambda: not workers(study), 5)
    for path in study.rglob("*"):
        os.utime(path, (time.time() + days * DAY,) * 2)
    done = run(tmp_path, *GRID)
    assert done.returncode == 0, done.stderr
    assert [(line["number"], line["attempts"]) for line in lines(study)] == [(0, 2), (1, 1)]
