"""Studies whose trials are in a database (study.storage) instead of the journal in their folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeptune.config.tracker_rules import has_wandb
from sweeptune.report.dashboard import specification
from sweeptune.report.studies import read_study
from tests.study.fakes import begin, lines, results, run, wait_for, workers

SEARCH = ["method=lora", "optim.lr=tag(log,interval(1e-5,1e-2))", "method.rank=4,16", "study.name=s"]
SQLITE = [*SEARCH, "study.storage=sqlite:///study.db"]

pytestmark = pytest.mark.slow


def test_killed_and_extended_a_study_in_a_database_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Of eight trials of one method the sampler's model proposes the last four."""
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "whole", *SEARCH, "study.trials=8").returncode == 0
    folder, study = tmp_path / "broken", tmp_path / "broken" / "multirun" / "s"
    process = begin(folder, *SQLITE, "study.trials=6", plan={"step_s": 0.05})
    assert wait_for(lambda: (study / "2" / "checkpoints" / "step.json").exists())
    process.kill()
    process.wait()
    assert wait_for(lambda: not workers(study), 5) and len(lines(study)) == 2
    assert run(folder, *SQLITE, "study.trials=6").returncode == 0
    assert [line["number"] for line in lines(study)] == list(range(6)) and lines(study)[2]["attempts"] == 2
    assert run(folder, *SQLITE, "study.trials=8").returncode == 0
    assert results(study) == results(tmp_path / "whole" / "multirun" / "s"), "the database asks what the journal asks"
    assert (folder / "study.db").exists() and not (study / "study.journal").exists()


OPEN = """
import os, sys, time
from pathlib import Path
import alembic.command, sqlalchemy
from sweeptune.config.schema import StudyConfig
from sweeptune.study.store import Store
ended = []
for name in "ab":
    at = time.monotonic() + 0.1
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(at - time.monotonic())
            Store(Path(name)).optuna(StudyConfig(name=name, storage=f"sqlite:///{name}.db")).ask()
            os._exit(0)
    ended += [os.wait()[1] for _ in range(3)]
sys.exit(sum(map(bool, ended)))
"""


def test_a_database_is_made_by_one_of_those_that_open_it_at_once(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OPEN], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_commands_that_begin_at_once_share_a_database(tmp_path: Path) -> None:
    study = tmp_path / "multirun" / "s"
    overrides = [*SQLITE, "study.trials=12", "hardware.gpus=2"]
    processes = [begin(tmp_path, *overrides, plan={"step_s": 0.05}) for _ in range(2)]
    for process in processes:
        assert process.wait(timeout=120) == 0, (tmp_path / "said.log").read_text()
    assert [line["number"] for line in lines(study)] == list(range(12)), "each number once, and no more than asked for"
    for number in range(12):
        assert (study / str(number) / "starts.txt").read_text().count("\n") == 1, "nobody's trial was taken over"


def test_a_study_goes_on_in_its_database_and_shows_its_password_to_nobody(tmp_path: Path) -> None:
    """SQLite knows no passwords, and passes over a parameter of that name."""
    address = "study.storage='sqlite:///file:study.db?uri=true&password=hunter2pw'"
    for trials in (1, 2):
        done = run(tmp_path, *SEARCH, address, f"study.trials={trials}")
        assert done.returncode == 0 and "hunter2pw" not in done.stdout + done.stderr, done.stderr
    study = tmp_path / "multirun" / "s"
    assert len(lines(study)) == 2 and not (study / "study.journal").exists()
    header = json.loads((study / "study.json").read_text())
    assert "password=***" in header["command"] and "hunter2pw" not in header["command"]
    holders = [path for path in study.rglob("*") if path.is_file() and b"hunter2pw" in path.read_bytes()]
    assert holders == [study / "study.json"], "which is where the study finds its database again"
    spec = specification(read_study(study)) if has_wandb() else {}
    assert "hunter2pw" not in json.dumps(spec)
