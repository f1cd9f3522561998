"""Who a run is for a tracker, and what its lines and records become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.describe import card, figures, probe_record, row, run_figures
from sweeptune.tracking.record import read_record
from tests.tracking.conftest import leave_result, leave_start

Make = Callable[..., Path]


def leave_header(study: Path, created: float = 1.0) -> None:
    study.mkdir(parents=True, exist_ok=True)
    (study / "study.json").write_text(json.dumps({"schema": 1, "name": study.name, "created": created}))


def test_a_trial_is_named_by_study_number_method_and_seed(make_run: Make) -> None:
    run = make_run("multirun/demo/7", "method=qlora", "method.rank=8", "tracker.project=mine")
    leave_header(run.parent)
    (run / "trial.json").write_text(json.dumps({"number": 7, "kind": "baseline", "probe": None}))
    found = card(run)
    assert found.id.startswith("demo-0007-s0-a1-") and found.name == "0007-qlora-r8-lr0.001"
    assert (found.group, found.job_type, found.project) == ("demo", "baseline", "mine")
    assert found.tags == ("qlora", "tiny", "baseline")
    assert found.config["method"]["rank"] == 8 and found.config["trial"]["number"] == 7
    assert not {"study", "space", "tracker", "resume"} & found.config.keys()


def test_a_later_attempt_has_another_id_and_names_the_one_before(make_run: Make) -> None:
    run = make_run()
    first = card(run)
    leave_start(run)
    second = card(run)
    assert second.id == first.id.replace("-a1-", "-a2-")
    assert second.config["trial"]["retry_of"] == first.id
    assert card(run, attempt=1).id == first.id


def test_studies_of_one_name_have_different_ids_and_a_moved_run_keeps_its_own(make_run: Make, tmp_path: Path) -> None:
    here, there = make_run("a/demo/0"), make_run("b/demo/0")
    leave_header(here.parent, created=1.0)
    leave_header(there.parent, created=2.0)
    assert card(here).id != card(there).id
    alone = make_run("outputs/morning")
    before = card(alone).id
    assert card(alone.rename(tmp_path / "kept")).id == before


def test_replicates_and_confirmations_are_runs_of_their_own(make_run: Make) -> None:
    seed = make_run("demo/3/seed-1", "seed=1")
    again = make_run("demo/confirm/lora-1000", "seed=1000")
    former = make_run("demo/confirm/earlier/2-lora-1000", "seed=1000")
    leave_header(again.parents[1])
    (again.parent / "plan.json").write_text(json.dumps({"lora": 3, "seeds": [1000]}))
    assert card(seed).name == "0003-lora-r16-lr0.001-s1"
    assert card(again).name == "confirm-0003-lora-r16-lr0.001-s1000" and "confirm" in card(again).tags
    assert card(former).name == "confirm-0002-lora-r16-lr0.001-s1000"
    assert len({card(run).id for run in (seed, again, former)}) == 3


def test_memory_and_speed_are_the_probes(make_run: Make) -> None:
    run = make_run("demo/0")
    leave_header(run.parent)
    probe = run.parent / "probes" / "abc"
    probe.mkdir(parents=True)
    leave_result(probe, loss=9.0, memory=7.5)
    (run / "trial.json").write_text(json.dumps({"number": 0, "kind": "trial", "probe": "probes/abc"}))
    found = figures(read_record(run), probe_record(run))
    assert found["result/peak_memory_gib"] == 7.5 and found["result/eval_loss"] == 2.5
    (run / "trial.json").unlink()  # as a study of an earlier version left it
    assert figures(read_record(run), probe_record(run))["result/peak_memory_gib"] == 3.0
    (run.parent / "trials.jsonl").write_text(json.dumps({"number": 0, "folder": "0", "cost_class": "abc"}) + "\n")
    assert figures(read_record(run), probe_record(run))["result/peak_memory_gib"] == 7.5


def test_what_a_confirmation_measured_itself_is_not_under_a_probes_name(make_run: Make) -> None:
    run = make_run("demo/confirm/lora-1000", "seed=1000")
    leave_header(run.parents[1])
    found = run_figures(run, read_record(run))
    assert found["result/own_peak_memory_gib"] == 3.0 and found["result/eval_loss"] == 2.5
    assert not {"result/peak_memory_gib", "result/tokens_per_s", "result/exclusive"} & found.keys()
    alone = make_run("outputs/morning")
    assert run_figures(alone, read_record(alone))["result/peak_memory_gib"] == 3.0


def test_a_line_becomes_a_row_against_tokens() -> None:
    before = {"step": 1, "tokens": 100, "loss": 2.0, "time": 10.0}
    line = {"step": 2, "tokens": 300, "loss": 1.5, "grad_norm": None, "time": 12.0}
    assert row(line, before) == {
        "train/tokens": 300,
        "train/step": 2,
        "train/loss": 1.5,
        "perf/tokens_per_s": 100.0,
    }
    judged = {"step": 2, "tokens": 300, "eval_loss": 1.0, "cost": {"peak_memory_gib": 2.0}}
    assert row(judged, line) == {"train/tokens": 300, "train/step": 2, "eval/loss": 1.0, "mem/peak_gib": 2.0}


def test_a_failure_keeps_its_reason() -> None:
    found = figures(
        {"status": "oom", "reason": "the first step did not fit", "test": None}
        | {part: {} for part in ("eval", "memory", "speed", "train", "params")}
    )
    assert found == {
        "result/status": "oom",
        "result/reason": "the first step did not fit",
        "result/failed": 1,
    }


def test_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        card(tmp_path)
