"""The W&B workspace and report of a study: their specification is held in golden files.

To write them again after a change that was meant: SWEEPTUNE_GOLDEN=1 pytest tests/report/test_dashboard.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.report.dashboard.story import tell
from sweeptune.report.studies import read_study
from tests.report.fake_study import leave_search, leave_study, leave_trial
from tests.tracking.conftest import leave_start
from tests.tracking.wandb_server import Server, serving

pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces: pip install 'sweeptune[wandb]'")
from sweeptune.report.dashboard import save, specification

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search with failures, at a place that has the same name everywhere."""
    monkeypatch.chdir(tmp_path)
    return leave_search(Path("demo"), 16)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import wandb

    with serving() as found:
        for key, value in found.variables().items():
            monkeypatch.setenv(key, value)
        yield found
        wandb.teardown()


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_the_specification_is_the_golden_one(study: Path, part: str) -> None:
    text = json.dumps(specification(read_study(study), entity="team")[part], indent=1, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{part}.json"
    if os.environ.get("SWEEPTUNE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels of a workspace by their section."""
    sections = spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_every_promised_panel_is_there_and_reads_what_runs_write(study: Path) -> None:
    found = panels(specification(read_study(study)))
    kinds = [panel["viewType"] for own in found.values() for panel in own]
    assert {"Scatter Plot", "Run History Line Plot", "Bar Chart", "Parallel Coordinates Plot"} <= set(kinds)
    assert {"Parameter Importance", "Run Comparer", "Markdown Panel"} <= set(kinds)
    scatter = found["Loss against cost"][0]["config"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:result/peak_memory_gib", "summary:result/eval_loss")
    assert scatter["chartTitle"].endswith("limit 8")
    curve = found["Loss against cost"][1]["config"]
    assert (curve["xAxis"], curve["metrics"], curve["groupArea"]) == ("train/tokens", ["eval/loss"], "stddev")
    columns = [column["accessor"] for column in found["Settings"][0]["config"]["columns"]]
    assert columns[:3] == ["config:method.value.name", "config:optim.value.lr", "config:hardware.value.micro_batch"]
    assert columns[-1] == "summary:result/eval_loss"


def test_two_calls_give_the_same_and_only_this_studys_runs_are_shown(study: Path) -> None:
    first, again = (specification(read_study(study)) for _ in range(2))
    assert first == again
    (runs,) = first["workspace"]["spec"]["section"]["runSets"]
    assert tell(read_study(study)).key in json.dumps(runs["filters"])
    assert "interrupted" in json.dumps(runs["filters"])


def test_confirmations_are_not_mixed_into_what_is_compared(study: Path) -> None:
    spec = specification(read_study(study))
    (runs,) = spec["workspace"]["spec"]["section"]["runSets"]
    assert job_type(runs) == ("!=", "confirm")
    grids = [block for block in spec["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    sets = {runs["name"]: job_type(runs) for block in grids for runs in block["metadata"]["runSets"]}
    assert sets == {"search": ("!=", "confirm"), "failed": None, "confirm": ("=", "confirm")}


def job_type(runs: dict[str, Any]) -> tuple[str, str] | None:
    """What a set of runs asks of the job type."""
    found = [item for item in _filters(runs["filters"]) if item["key"] == {"section": "run", "name": "jobType"}]
    return (found[0]["op"], found[0]["value"]) if found else None


def _filters(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in part.get("filters") or []:
        yield from [item] if "key" in item else _filters(item)


def test_the_best_full_run_is_the_baseline(study: Path) -> None:
    story = tell(read_study(study))
    assert story.baseline is None, "no run folder is there"
    for number in range(16):
        folder = study / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text("method: {name: full}\nmodel: {name: tiny}\nseed: 0\n")
        leave_start(folder)
    story = tell(read_study(study))
    full = [trial for trial in read_study(study).trials if trial.method == "full" and trial.eligible]
    best = min(full, key=lambda trial: trial.eval_loss or 9.0)
    assert story.baseline == f"demo-{best.number:04d}-s0-a1-{story.key}"


def test_what_users_wrote_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leave_study(Path("s"), ["full"], name="<b>s</b> \N{ROCKET}")
    leave_trial(Path("s"), 0, "full", None, status="crashed", reason="<script>alert(1)</script> | `x`")
    spec = specification(read_study("s"))
    text = json.dumps([panel for own in panels(spec).values() for panel in own])
    assert "<script>" not in text and "<b>" not in text and "alert" in text
    assert spec["workspace"]["name"] == "sweeptune: bsb"


def test_a_second_call_changes_what_the_first_one_made(study: Path, server: Server) -> None:
    first = save(read_study(study), project="p")
    again = save(read_study(study), project="p")
    assert first == again and json.loads((study / "dashboard.json").read_text())["project"] == "me/p"
    workspaces = [view for view in server.views if view["type"] == "project-view"]
    reports = [view for view in server.views if view["type"] == "runs"]
    assert len(workspaces) == len(reports) == 2
    assert "id" not in workspaces[0] and workspaces[1]["id"] == first.workspace_id
    assert reports[0].get("id") is None and reports[1]["id"] == first.report_id
    assert "result/eval_loss" in workspaces[0]["spec"] and "result/eval_loss" in reports[0]["spec"]


def test_without_a_key_it_says_how(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="--dry-run writes the specification"):
        save(read_study(study))
