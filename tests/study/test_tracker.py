"""What a study leaves for a tracker, with a trainer that costs nothing (and sends nothing)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sweeptune.config.tracker_rules import has_wandb
from sweeptune.tracking.describe import card, figures, probe_record
from sweeptune.tracking.record import read_record
from sweeptune.tracking.sync import sync
from tests.study.fakes import lines, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_wandb(), reason="needs wandb: pip install 'sweeptune[wandb]'"),
]
STUDY = ["method=full,lora", "optim.lr=1e-4,1e-3", "study.name=s", "study.probe_steps=2", "study.confirm_seeds=2"]
LIMIT = "study.constraints={peak_memory_gib: 9}"  # full needs more


def tracker(folder: Path) -> str:
    return str(yaml.safe_load((folder / "config.yaml").read_text())["tracker"]["name"])


def test_a_study_goes_on_with_another_tracker_and_its_runs_know_what_they_are(tmp_path: Path) -> None:
    study = tmp_path / "multirun" / "s"
    assert run(tmp_path, *STUDY, LIMIT, "study.trials=2", plan={"sd": 0.01}).returncode == 0
    before = len([line for line in lines(study) if line["kind"] != "duplicate"])
    more = run(tmp_path, *STUDY, LIMIT, "study.trials=4", "tracker=wandb_offline", plan={"sd": 0.01})
    assert more.returncode == 0, more.stderr
    found = [line for line in lines(study) if line["kind"] != "duplicate"]  # which says nothing new
    later = len(found) - before
    assert [tracker(study / one["folder"]) for one in found] == ["none"] * before + ["wandb_offline"] * later
    assert before and later
    assert {tracker(folder) for folder in (study / "probes").iterdir() if folder.is_dir()} == {"none"}
    for line in found:
        folder = study / line["folder"]
        sent = figures(read_record(folder), probe_record(folder))
        assert sent["result/peak_memory_gib"] == line["peak_memory_gib"], "as the study's own table says"
        assert card(folder).config["trial"]["number"] == line["number"]
        assert json.loads((folder / "trial.json").read_text())["kind"] == line["kind"]
    dropped = [line for line in found if line["status"] == "pruned"]
    assert any(line["method"] == "full" for line in dropped)
    would = {str(one.folder.relative_to(study)): one.state for one in sync(study, dry_run=True)}
    assert set(would.values()) == {"would send"} and not any("probes" in name for name in would)
    assert {line["folder"] for line in found} < would.keys(), "also what its probe ruled out"
    confirmed = [name for name in would if name.startswith("confirm/")]
    assert len(confirmed) >= 2 and all("lora" in name for name in confirmed)


def test_a_study_whose_runs_did_not_arrive_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    done = run(tmp_path, "method=lora", "optim.lr=1e-4,1e-3", "study.name=s", "tracker=wandb")
    assert done.returncode == 0, done.stderr
    assert "W&B: 2 of 2 runs are not on http://127.0.0.1:9" in done.stderr
    assert "sweeptune sync" in done.stderr.replace("\n", " ")
