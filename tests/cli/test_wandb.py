"""``sweeptune sync`` and ``sweeptune dashboard`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.report.fake_study import leave_search
from tests.tracking.conftest import leave_run


def test_a_dry_run_of_sync_lists_what_would_be_sent(sweeptune: Command, tmp_path: Path) -> None:
    leave_run(tmp_path / "a")
    leave_run(tmp_path / "b", steps=2)
    done = sweeptune("sync", str(tmp_path), "--dry-run")
    first, second, last = done.out.splitlines()
    assert (done.status, last) == (0, "2 would send")
    assert first.startswith(f"{tmp_path / 'a'}  would send  run-s0-a1-") and first.endswith("6 rows")
    assert second.endswith("3 rows")


def test_sync_of_what_is_no_run_says_what_one_is(sweeptune: Command, tmp_path: Path) -> None:
    done = sweeptune("sync", str(tmp_path))
    assert done.status == 2 and "A run folder has a config.yaml" in done.err


def test_a_dry_run_of_dashboard_is_json_and_nothing_else(sweeptune: Command, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces: pip install 'sweeptune[wandb]'")
    study = leave_search(tmp_path / "demo", 8)
    done = sweeptune("dashboard", str(study), "--dry-run", "--project", "mine", "--entity", "team")
    found = json.loads(done.out)
    assert (done.status, found["project"], found["entity"]) == (0, "mine", "team")
    assert not (study / "dashboard.json").exists()


def test_dashboard_of_what_is_no_study_says_so(sweeptune: Command, tmp_path: Path) -> None:
    done = sweeptune("dashboard", str(tmp_path), "--dry-run")
    assert done.status == 2 and "holds no study.json" in done.err
