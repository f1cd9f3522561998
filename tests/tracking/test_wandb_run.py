"""What `WandbTracker` guards against: each test fails where its guard is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeptune.tracking.delivery import Rows, conclude
from sweeptune.tracking.describe import card
from sweeptune.tracking.sync import sync
from sweeptune.tracking.wandb_run import NotArrived, WandbTracker
from tests.study.fakes import wait_for
from tests.tracking import wandb_file
from tests.tracking.test_describe import leave_header
from tests.tracking.wandb_server import Server, serving

pytestmark = pytest.mark.slow

Make = Callable[..., Path]


@pytest.fixture
def offline() -> Iterator[None]:
    """W&B's own process is ended afterwards: it remembers how it was begun."""
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install 'sweeptune[wandb]'")
    yield
    wandb.teardown()


def send(run: Path, *, online: bool) -> None:
    tracker = WandbTracker(run, online=online)
    for index, row in Rows(run, tracker.start(card(run))).fresh():
        tracker.log(row, index)
    conclude(run, tracker)


def test_rows_that_the_server_lost_are_not_taken_for_sent(make_run: Make, server: Server) -> None:
    run = make_run()
    server.loses = True
    with pytest.raises(NotArrived, match="0 of 6 rows"):
        send(run, online=True)
    server.loses = False
    send(run, online=True)
    assert server.runs[card(run).id].steps() == list(range(6))


def test_variables_of_one_run_do_not_become_those_of_all(
    make_run: Make, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    for name in ("RUN_ID", "RUN_GROUP", "NAME", "JOB_TYPE", "TAGS", "SWEEP_ID"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    monkeypatch.setenv("WANDB_RESUME", "never")
    send(run, online=True)
    send(run, online=True)  # which `never` would forbid
    known, (found,) = card(run), server.runs.values()
    assert (found.name, found.group, found.display_name) == (known.id, None, known.name)
    assert (found.job_type, tuple(found.tags)) == ("train", known.tags)


def test_rows_are_on_disk_shortly_after_they_were_logged(make_run: Make, offline: None) -> None:
    run = make_run()
    tracker = WandbTracker(run, online=False)
    tracker.start(card(run))
    for index in range(2):  # W&B itself keeps a row back until the next one
        tracker.log({"train/tokens": index}, index)
    try:
        assert wait_for(lambda: wandb_file.rows(wandb_file.records(wandb_file.the_file(run))), 6), "15 s by default"
    finally:
        tracker.close()


def test_a_study_that_was_kept_offline_is_sent_whole(
    make_run: Make, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(f"demo/{number}", "tracker=wandb_offline", steps=3 + number) for number in range(3)]
    leave_header(runs[0].parent)
    for run in runs:
        send(run, online=False)
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    kept = [wandb_file.records(wandb_file.the_file(run)) for run in runs]
    with serving() as server:
        for key, value in server.variables().items():
            monkeypatch.setenv(key, value)
        assert [[sent.state for sent in sync(runs[0].parent)] for _ in range(2)] == [["sent"] * 3, ["there"] * 3]
        assert len(server.runs) == 3
        for run, records in zip(runs, kept, strict=True):
            found, summary = server.runs[card(run).id], wandb_file.summary(records)
            assert found.group == "demo" and found.result == {k: v for k, v in summary.items() if k[:7] == "result/"}
            assert [row["train/tokens"] for row in found.rows] == [
                row["train/tokens"] for row in wandb_file.rows(records)
            ]
            assert list(run.glob("wandb/offline-run-*/*.wandb.synced"))
