"""``sweeptune sync``: everything once, however often, however it was interrupted."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.delivery import LOCK, NOTE, Rows
from sweeptune.tracking.describe import card
from sweeptune.tracking.sync import find_runs, line_of, summary_of, sync
from sweeptune.tracking.wandb_run import WandbTracker
from tests.tracking.conftest import leave_lines, leave_result, leave_start
from tests.tracking.test_describe import leave_header
from tests.tracking.wandb_server import Server

pytestmark = pytest.mark.slow

Make = Callable[..., Path]


def test_a_run_without_wandb_is_sent_once(make_run: Make, server: Server) -> None:
    run = make_run("run", "tracker=none")
    assert [(sent.state, sent.rows) for sent in sync(run)] == [("sent", 6)]
    found = server.runs[card(run).id]
    assert found.steps() == [0, 1, 2, 3, 4, 5] and found.exit_code == 0
    assert [row["train/tokens"] for row in found.rows] == [0, 100, 200, 300, 400, 500]
    assert found.result["result/eval_loss"] == 2.5 and found.result["result/status"] == "completed"
    assert json.loads(found.files["result.json"])["eval"]["loss"] == 2.5
    metrics = {name: metric for metric in found.config["_wandb"]["m"] for name in (metric.get("2"), metric.get("1"))}
    assert {"train/*", "eval/*", "mem/*", "perf/*", "train/tokens"} <= metrics.keys()
    asked = len(server.asked)
    assert [sent.state for sent in sync(run)] == ["there"]
    assert len(server.asked) == asked, "what the note says is not asked again"
    (run / NOTE).unlink()
    assert [(sent.state, sent.rows) for sent in sync(run)] == [("sent", 0)]
    assert found.steps() == [0, 1, 2, 3, 4, 5] and len(server.runs) == 1, "the server itself says what it has"


def test_a_partly_sent_run_is_completed(make_run: Make, server: Server) -> None:
    run = make_run(ended=False)
    tracker = WandbTracker(run, online=True)
    rows = Rows(run, tracker.start(card(run)))
    for index, row in list(rows.fresh())[:3]:
        tracker.log(row, index)
    tracker.finish(ok=False)  # the sender ended here
    assert server.runs[card(run).id].steps() == [0, 1, 2]
    leave_lines(run, 2, start=5)
    leave_result(run)
    assert [(sent.state, sent.rows) for sent in sync(run)] == [("sent", 5)]
    assert server.runs[card(run).id].steps() == list(range(8))


def test_a_record_that_changed_is_sent_again_without_its_rows(make_run: Make, server: Server) -> None:
    run = make_run()
    sync(run)
    leave_result(run, "timeout", loss=2.75)
    assert [(sent.state, sent.rows) for sent in sync(run)] == [("sent", 0)]
    found = server.runs[card(run).id]
    assert found.result["result/status"] == "timeout" and found.exit_code == 1 and len(found.rows) == 6


def test_a_killed_run_keeps_its_rows_and_its_next_attempt_is_another(make_run: Make, server: Server) -> None:
    run = make_run(ended=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tok')  # torn
    assert [(sent.state, sent.rows) for sent in sync(run)] == [("sent", 6)]
    killed = server.runs[card(run).id]
    assert len(killed.rows) == 6 and killed.result["result/status"] == "interrupted"
    assert [sent.state for sent in sync(run)] == ["there"]
    leave_start(run)
    leave_result(run)
    assert [sent.state for sent in sync(run)] == ["sent"]
    assert len(server.runs) == 2 and len(killed.rows) == 6
    assert server.runs[card(run).id].config["trial"]["retry_of"] == killed.name


def test_a_run_that_ended_after_all_keeps_nothing_of_its_earlier_end(make_run: Make, server: Server) -> None:
    run = make_run(ended=False)
    sync(run)
    found = server.runs[card(run).id]
    assert found.result["result/reason"] == "its process ended without a record"
    leave_result(run, "timeout", loss=2.75)
    record = json.loads((run / "result.json").read_text())
    record |= {"reason": "too slow", "test": {"loss": 2.0}}
    (run / "result.json").write_text(json.dumps(record))
    sync(run)
    assert (found.result["result/reason"], found.result["result/test_loss"]) == ("too slow", 2.0)
    leave_result(run)
    assert [sent.state for sent in sync(run)] == ["sent"]
    assert (found.result["result/status"], found.result["result/reason"]) == ("completed", "")
    assert "result/test_loss" not in found.result and found.result["result/eval_loss"] == 2.5


def test_a_study_is_sent_without_its_probes_and_dry_run_sends_nothing(make_run: Make, server: Server) -> None:
    study = make_run("demo/0").parent
    leave_header(study)
    make_run("demo/1/seed-0")
    make_run("demo/1/seed-1", "seed=1")
    make_run("demo/probes/abc")
    would = sync(study, dry_run=True)
    assert [(sent.folder.name, sent.state) for sent in would] == [
        ("0", "would send"),
        ("seed-0", "would send"),
        ("seed-1", "would send"),
    ]
    assert not server.runs and not list(study.rglob(NOTE)) and not list(study.rglob(LOCK))
    sent = sync(study, project="elsewhere")
    assert summary_of(sent) == "3 sent" and line_of(sent[0]).startswith(f"{study / '0'}  sent  demo-0000-s0-a1-")
    assert {run.group for run in server.runs.values()} == {"demo"}
    assert {run.project for run in server.runs.values()} == {"elsewhere"}
    with FileLock(study / "0" / LOCK):
        assert sync(study, project="elsewhere")[0].state == "busy"


def test_a_server_that_is_down_is_one_clear_error(make_run: Make, server: Server) -> None:
    run = make_run()
    server.down = True
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="did not take it") as raised:
        patch.setattr("sweeptune.tracking.wandb_run.INIT_S", 2.0)
        sync(run)
    assert "the same command goes on" in str(raised.value) and not (run / NOTE).exists()
    server.down = False
    assert [sent.state for sent in sync(run)] == ["sent"]


def test_what_cannot_be_sent_is_said(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        find_runs(tmp_path / "empty")
    run = make_run()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("sweeptune.tracking.sync.has_wandb", lambda: True)
    with pytest.raises(ConfigError, match="wandb login"):
        sync(run)
    monkeypatch.setattr("sweeptune.tracking.sync.has_wandb", lambda: False)
    with pytest.raises(ConfigError, match="not installed"):
        sync(run)
    (run / "config.yaml").write_text("method: [")
    assert [sent.state for sent in sync(run, dry_run=True)] == ["unreadable"]


def test_rows_that_are_made_again_keep_their_place(make_run: Make) -> None:
    run = make_run(steps=4)
    rows = Rows(run)
    assert [index for index, _ in rows.fresh()] == [0, 1, 2, 3, 4]
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:3]
    (run / "metrics.jsonl").write_text("".join(kept))  # back to a checkpoint
    assert list(rows.fresh()) == []
    leave_lines(run, 4, start=2)
    assert [(index, row["train/tokens"]) for index, row in rows.fresh()] == [(5, 500), (6, 600)]


def test_rows_keep_their_place_also_where_the_file_has_grown_again_before_the_next_look(make_run: Make) -> None:
    run = make_run(steps=4)
    rows, metrics = Rows(run), run / "metrics.jsonl"
    assert len(list(rows.fresh())) == 5
    kept = metrics.read_text().splitlines(keepends=True)[:2]
    leave_lines(run, 5, start=1)
    again = metrics.read_text().splitlines()[5:]
    metrics.write_text("".join(kept) + "".join(f"{line:120}\n" for line in again))  # to step 1, and on to step 6
    assert [(index, row["train/tokens"]) for index, row in rows.fresh()] == [(5, 500), (6, 600)]
    leave_lines(run, 1, start=6)
    assert [(index, row["train/tokens"]) for index, row in rows.fresh()] == [(7, 700)]


def leave_lease(folder: Path, machine: str, pid: int, **more: object) -> Path:
    path = folder / ".lease-1.json"
    started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 1.0
    path.write_text(json.dumps({"machine": f"{machine} boot pid", "pid": pid, "started": started, **more}))
    return path


def state(run: Path) -> str:
    (found,) = sync(run, dry_run=True)
    return found.state


def test_a_run_of_another_machine_is_running_while_its_study_touches_its_lease(make_run: Make) -> None:
    run = make_run("demo/3/seed-1", "seed=1", ended=False)
    leave_header(run.parents[1])
    last = json.dumps({"time": 2.0, "host": "elsewhere", "pid": 1})
    (run / "attempts.jsonl").write_text(last + "\n")
    (run / "metrics.jsonl").unlink()
    os.utime(run / "attempts.jsonl", (1.0, 1.0))
    assert state(run) == "would send"
    lease = leave_lease(run.parent, "elsewhere", 1)
    assert state(run) == "running"
    os.utime(lease, (1.0, 1.0))
    assert state(run) == "would send", "its owner is dead"
    leave_lease(run.parent, "elsewhere", 1, released=True)
    assert state(run) == "would send"
    leave_lease(run.parent, "elsewhere", 1)
    leave_result(run)
    assert state(run) == "would send", "a seed that has ended need not wait for the trial's others"


def test_on_this_machine_the_owner_of_a_lease_is_asked(make_run: Make) -> None:
    run, here = make_run("demo/3", ended=False), socket.gethostname()
    leave_lease(run, here, os.getpid())
    assert state(run) == "running"
    leave_lease(run, here, 2**22 + 1)  # no process has so high a number
    assert state(run) == "would send"


def test_a_run_alone_on_another_machine_is_running_while_it_writes(make_run: Make) -> None:
    run = make_run(ended=False)
    (run / "attempts.jsonl").write_text(json.dumps({"time": 2.0, "host": "elsewhere", "pid": 1}) + "\n")
    assert state(run) == "running"
    for name in ("metrics.jsonl", "attempts.jsonl"):
        os.utime(run / name, (1.0, 1.0))
    assert state(run) == "would send"


def test_a_run_on_this_machine_is_running_while_its_process_lives(make_run: Make, server: Server) -> None:
    run = make_run(ended=False)
    start = {"time": time.time(), "host": socket.gethostname(), "pid": os.getppid()}
    (run / "attempts.jsonl").write_text(json.dumps(start) + "\n")
    (sent,) = sync(run)
    assert sent.state == "running" and "sync again" in sent.note and not server.runs and not (run / NOTE).exists()
    leave_result(run)
    assert state(run) == "would send"


def test_a_run_that_has_only_settings_waits_and_one_that_was_dropped_does_not(make_run: Make) -> None:
    run = make_run(ended=False)
    (run / "attempts.jsonl").unlink()
    assert state(run) == "running", "its id comes from its first start"
    leave_result(run, "pruned")
    assert state(run) == "would send"
