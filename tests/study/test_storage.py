"""Studies whose trials are in a database (study.storage) instead of the journal in their folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from sweeptune.config.schema import StudyConfig
from sweeptune.config.tracker_rules import has_wandb
from sweeptune.report.dashboard import specification
from sweeptune.report.studies import read_study
from sweeptune.study.database import claim, open_database, owner_of
from sweeptune.study.store import Store
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


DIFFERENT = """
import os, sys, time
from pathlib import Path
import alembic.command, sqlalchemy
from sweeptune.config.schema import StudyConfig
from sweeptune.study.store import Store
ended = []
for turn in range(5):
    at = time.monotonic() + 0.1
    for name in "abc":
        if os.fork() == 0:
            settings = StudyConfig(name=name, storage=f"sqlite:///{turn}.db")
            time.sleep(at - time.monotonic())
            Store(Path(name)).check_storage(settings)
            Store(Path(name)).optuna(settings).ask()
            os._exit(0)
    ended += [os.wait()[1] for _ in range(3)]
sys.exit(sum(map(bool, ended)))
"""


@pytest.mark.parametrize(("code", "timeout"), [(OPEN, 60), (DIFFERENT, 90)], ids=["one study", "different studies"])
def test_processes_that_begin_at_once_make_one_database(tmp_path: Path, code: str, timeout: float) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr


def test_a_name_in_a_database_belongs_to_one_folder(tmp_path: Path) -> None:
    """The second folder's study is refused, nothing is written for it, and the first one goes on."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    grid = ["method=full,lora", f"study.storage=sqlite:///{tmp_path}/both.db", "study.name=s"]
    assert run(first, *grid).returncode == 0
    refused = run(second, *grid)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    for words in (f"its study s belongs to the folder {first}/multirun/s", f"not to {second}", "study.name=s-2"):
        assert words in refused.stderr
    assert not (second / "multirun" / "s" / "study.json").exists()
    assert run(second, *[o.replace("study.name=s", "study.name=s-2") for o in grid]).returncode == 0
    before = results(first / "multirun" / "s")
    (first / "multirun").rename(first / "moved")
    again = run(first, *grid, "hydra.sweep.dir=moved/s")
    assert again.returncode == 0 and results(first / "moved" / "s") == before, "a folder that was moved keeps its study"


def test_of_two_folders_that_claim_a_name_at_once_one_gets_it(tmp_path: Path) -> None:
    storage = open_database(f"sqlite:///{tmp_path}/study.db")
    assert claim(storage, "s", ["minimize"], {"id": "1", "folder": "a"})["id"] == "1"
    assert claim(storage, "s", ["minimize"], {"id": "2", "folder": "b"}) == {"id": "1", "folder": "a"}
    assert claim(storage, "s", ["minimize"], {"id": "1", "folder": "c"})["id"] == "1"


def test_what_a_dead_process_left_unmarked_is_claimed_and_an_older_study_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeptune.study.database.CLAIM_S", 0.1)
    storage = open_database(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(storage=storage, study_name="s", directions=["minimize"])
    settings = StudyConfig(storage=f"sqlite:///{tmp_path}/study.db", objectives=["eval_loss"])
    folder = tmp_path / "s"
    folder.mkdir()
    known = {"schema": 1, "name": "s"}
    (folder / "study.json").write_text(json.dumps(known))
    Store(folder).optuna(settings)
    assert owner_of(storage, "s") is None
    (folder / "study.json").write_text(json.dumps({**known, "id": "1"}))
    Store(folder).optuna(settings)
    assert owner_of(storage, "s") == {"id": "1", "folder": str(folder)}


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
