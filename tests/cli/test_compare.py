"""``sweeptune compare DIR`` and its forms."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeptune.tracking.record import PARTS, write_record
from tests.cli.conftest import Command
from tests.report.fake_study import leave_confirmed, leave_study, leave_trial


def leave(folder: Path, **given: Any) -> None:
    """A completed run of method=lora with an eval loss of 2, except for what is given."""
    record: dict[str, Any] = {"schema": 1, "status": "completed", "method": "lora", "model": "tiny", "data": "pydocs"}
    record |= {"seed": 0, **{part: dict.fromkeys(keys) for part, keys in PARTS.items()}}
    record["eval"] |= {"initial_loss": 3.0, "loss": given.pop("loss", 2.0)}
    record["memory"]["peak_memory_gib"] = 1.5
    record["fingerprint"] = {"quality": {"template": given.pop("template", "auto")}, "cost": {"device": "cpu"}}
    folder.mkdir(parents=True)
    write_record(folder, record | given)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    leave(tmp_path / "0", method="full", loss=2.5)
    leave(tmp_path / "1", loss=2.25)
    leave(tmp_path / "2", method="qlora", template="chatml")
    leave(tmp_path / "3", method="dora", status="oom", reason="no room for the first step")
    return tmp_path


def test_the_table_ranks_and_says_why_not(study: Path, sweeptune: Command) -> None:
    done = sweeptune("compare", str(study))
    assert done.status == 0
    assert "3.000 -> 2.250*" in done.out
    assert 'because quality.template differs: "auto" (0, 1) vs "chatml" (2)' in done.out
    assert "3 oom: no room for the first step" in done.out


def test_json_is_all_of_stdout(study: Path, sweeptune: Command) -> None:
    value = json.loads(sweeptune("compare", str(study), "--json").out)
    assert [run["method"] for run in value["runs"]] == ["full", "lora", "qlora", "dora"]
    assert value["ranked"]["loss"] == [{"group": "A", "seed": 0, "runs": ["1", "0"], "best": ["1"]}]
    assert value["differences"] == [{"field": "quality.template", "values": {"0": "auto", "1": "auto", "2": "chatml"}}]


def test_csv_has_a_line_a_run(study: Path, sweeptune: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(sweeptune("compare", str(study), "--csv").out)))
    assert [row["status"] for row in rows] == ["completed", "completed", "completed", "oom"]


def test_markdown_has_a_row_a_run(study: Path, sweeptune: Command) -> None:
    text = sweeptune("compare", str(study), "--markdown").out
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + 4
    assert "**3.000 → 2.250**" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "no such folder"),
        (["empty"], "holds no run"),
        (["empty", "--json", "--csv"], "exclude each other"),
    ],
)
def test_a_wrong_use_is_explained(tmp_path: Path, sweeptune: Command, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    done = sweeptune("compare", str(tmp_path / arguments[0]), *arguments[1:])
    assert (done.status, done.out) == (2, "")
    assert message in done.err and "Traceback" not in done.err


def test_it_answers_at_once_because_torch_stays_out(study: Path) -> None:
    code = f"""
import sys
from sweeptune import cli
sys.argv = ["sweeptune", "compare", {str(study)!r}]
try:
    cli.main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "3.000 -> 2.250*" in done.stdout and "\x1b" not in done.stdout


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    """A study of two methods, not confirmed."""
    folder = leave_study(tmp_path / "tradeoff", ("full", "lora"))
    for number, method in enumerate(("full", "lora", "lora")):
        params = {"method": method, "optim.lr": number} if number == 2 else {"method": method}
        leave_trial(folder, number, method, 2.0 - number / 10, params=params)
    return folder


def test_a_study_is_judged(trials: Path, sweeptune: Command) -> None:
    done = sweeptune("compare", str(trials))
    assert done.status == 0
    assert "undecided: lora, full." in done.out
    assert done.out.splitlines()[-1] == f"to decide: sweeptune compare {trials} --confirm --seeds 3"
    assert len(json.loads(sweeptune("compare", str(trials), "--json").out)["trials"]) == 3


def test_confirm_runs_first(trials: Path, sweeptune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int | None]] = []

    def confirm(folder: Path, seeds: int | None) -> None:
        asked.append((folder, seeds))
        leave_confirmed(folder, {"full": {7: 2.0, 8: 2.1}, "lora": {7: 1.0, 8: 1.11}})

    monkeypatch.setattr("sweeptune.study.confirm", confirm)
    done = sweeptune("compare", str(trials), "--confirm", "--seeds", "2")
    assert asked == [(trials, 2)]
    assert "retrained with 2 seeds" in done.out


def test_wrong_uses_of_confirm_are_told_together(study: Path, sweeptune: Command) -> None:
    done = sweeptune("compare", str(study), "--confirm", "--json", "--csv")
    assert done.status == 2 and "exclude each other" in done.err and "is no study's folder" in done.err
    assert "give --confirm, too" in sweeptune("compare", str(study), "--seeds", "3").err


def test_a_recommendation_ends_with_the_command(trials: Path, sweeptune: Command) -> None:
    done = sweeptune("recommend", str(trials), "--memory", "4GiB", "--min-tokens-per-s", "10000")
    assert done.status == 0
    assert done.out.splitlines()[-1] == "python train.py model=smollm2_135m_q4 data=pydocs method=lora optim.lr=2"
    assert json.loads(sweeptune("recommend", str(trials), "--json").out)["chosen"]["trial"]["number"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tradeoff", "--memory", "huge"], "give a size such as 8GiB"),
        (["tradeoff", "--memory", "1GiB"], "the smallest needs 3.10 GiB"),
        (["missing"], "no such folder"),
    ],
)
def test_a_wrong_wish_is_explained(trials: Path, sweeptune: Command, arguments: list[str], message: str) -> None:
    done = sweeptune("recommend", str(trials.parent / arguments[0]), *arguments[1:])
    assert (done.status, done.out) == (2, "")
    assert message in done.err and "Traceback" not in done.err
