"""Sending while a run trains: what arrives, and that nothing about it can hurt the training."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sweeptune.config.compose import load
from sweeptune.config.schema import Config
from sweeptune.tracking import follow as following
from sweeptune.tracking.delivery import LOCK, NOTE, write_note
from sweeptune.tracking.describe import card, row
from sweeptune.tracking.follow import Follower, Sender, await_senders, follow, wait_for_senders
from sweeptune.tracking.sync import sync
from sweeptune.tracking.tracker import Card
from sweeptune.training.run import run as train
from tests.study.fakes import ROOT, wait_for
from tests.tracking import wandb_file
from tests.tracking.conftest import leave_lines, leave_result, leave_start
from tests.tracking.wandb_server import Server, serving
from tests.training.helpers import lines

Make = Callable[..., Path]


class Fake:
    """A tracker that keeps what it gets; as often as ``failures`` says it breaks at its third row."""

    failures = 0
    made: ClassVar[list[Fake]] = []

    def __init__(self, folder: Path, *, online: bool) -> None:
        self.rows: list[int] = []
        self.figures: dict[str, Any] = {}
        self.ok: bool | None = None
        self.card: Card | None = None
        self.path, self.url = "me/p/id", None
        Fake.made.append(self)

    def start(self, card: Card) -> int:
        self.card = card
        return sum(len(one.rows) for one in Fake.made)  # what the server has

    def log(self, row: dict[str, Any], index: int) -> None:
        if Fake.failures and len(self.rows) == 2:
            Fake.failures -= 1
            raise ConnectionError("the line is dead")
        self.rows.append(index)

    def summary(self, figures: dict[str, Any]) -> None:
        self.figures |= figures

    def artifact(self, path: Path) -> None:
        assert path.is_file()

    def finish(self, *, ok: bool) -> None:
        self.ok = ok

    def close(self) -> None:
        pass


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Senders of this process send to fakes, and wait for nothing long."""
    Fake.failures, Fake.made = 0, []
    monkeypatch.setattr(following, "WandbTracker", Fake)
    for name, seconds in (("POLL_S", 0.02), ("RETRY_S", 0.01), ("RECORD_S", 1.0)):
        monkeypatch.setattr(following, name, seconds)
    return Fake.made


def sender(folder: Path, attempt: int = 1, over: threading.Event | None = None) -> Sender:
    if over is None:
        over = threading.Event()
        over.set()
    return Sender(folder, attempt, 0, over, online=True)


def test_a_run_is_followed_to_its_end(make_run: Make, fakes: list[Fake]) -> None:
    run, over = make_run(ended=False), threading.Event()
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(sender(run, over=over).run()))
    thread.start()
    assert wait_for(lambda: fakes and len(fakes[0].rows) == 6)
    leave_lines(run, 3, start=5)
    leave_result(run)
    over.set()
    thread.join(20)
    assert done == [True] and fakes[0].rows == list(range(9)) and fakes[0].ok is True
    assert fakes[0].figures["result/eval_loss"] == 2.5
    assert json.loads((run / NOTE).read_text())["rows"] == 9


def test_a_tracker_that_breaks_is_begun_again_where_it_was(
    make_run: Make, fakes: list[Fake], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "AGAIN_S", 0.0)
    run, over = make_run(ended=False), threading.Event()
    Fake.failures = 2
    thread = threading.Thread(target=sender(run, over=over).run)
    thread.start()
    assert wait_for(lambda: sum(len(fake.rows) for fake in fakes) == 6)
    leave_result(run)
    over.set()
    thread.join(20)
    assert [fake.rows for fake in fakes] == [[0, 1], [2, 3], [4, 5]] and fakes[-1].ok
    said = capsys.readouterr().out
    assert said.count("does not take this run") == 1 and f"sweeptune sync {run}" in said


def test_a_tracker_that_stays_broken_is_left_at_the_end(make_run: Make, fakes: list[Fake]) -> None:
    run = make_run()
    Fake.failures = 99
    assert sender(run).run() is False
    assert not (run / NOTE).exists()


def test_a_killed_run_is_ended_with_its_rows(make_run: Make, fakes: list[Fake]) -> None:
    run = make_run(ended=False)
    assert sender(run).run() is True
    assert fakes[0].rows == list(range(6)) and fakes[0].ok is False
    assert fakes[0].figures["result/status"] == "interrupted" and not (run / NOTE).exists()


def test_the_record_of_a_launcher_is_waited_for(make_run: Make, fakes: list[Fake]) -> None:
    run = make_run(ended=False)
    threading.Timer(0.3, leave_result, (run, "timeout")).start()
    sender(run).run()
    assert fakes[0].figures["result/status"] == "timeout" and fakes[0].ok is False


def test_a_later_attempt_ends_the_earlier_sender(make_run: Make, fakes: list[Fake]) -> None:
    run = make_run(ended=False)
    leave_start(run)
    assert sender(run, over=threading.Event()).run() is True
    assert fakes[0].card is not None and "-a1-" in fakes[0].card.id
    assert fakes[0].figures["result/reason"] == "attempt 2 went on with it"


def test_a_hanging_sender_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LAST_S", 0.05)
    monkeypatch.setattr(sys, "stdin", io.StringIO("over\n"))
    left: list[int] = []
    over = threading.Event()
    following._watch(over, left.append)
    assert over.is_set() and left == [1]


def test_a_run_never_waits_for_its_sender() -> None:
    hangs = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        began = time.monotonic()
        Follower(hangs).end()
        assert time.monotonic() - began < 1
    finally:
        hangs.kill()


def test_without_a_tracker_nothing_is_started(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("run", "tracker=none")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert follow(load(run / "config.yaml"), run, 1) is None


def test_only_the_first_rank_has_a_sender(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    training = sys.modules["sweeptune.training.run"]  # the package's attribute of that name is the function
    monkeypatch.setattr(training, "follow", lambda config, folder, attempt: started.append(folder))
    monkeypatch.setattr(training, "train_to_the_end", lambda *given: True)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        train(settings("tracker=wandb_offline"), tmp_path / rank)
    assert started == [tmp_path / "0"]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and a server that nobody is behind, for this process and its children."""
    for key, value in {"BASE_URL": "http://127.0.0.1:9", "API_KEY": "k" * 40, "MODE": "online"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))


def test_what_did_not_arrive_is_counted_at_the_end_of_a_command(
    make_run: Make, online: None, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following.log, "propagate", True)
    sent, lost, other = make_run("0", "tracker=wandb"), make_run("1", "tracker=wandb"), make_run("2", "tracker=none")
    write_note(sent, card(sent), "http://127.0.0.1:9", f"me/sweeptune/{card(sent).id}", None, 6)
    await_senders([sent, other], tmp_path)
    assert caplog.messages == []
    await_senders([sent, lost, other], tmp_path)
    assert "1 of 2 runs are not on http://127.0.0.1:9." in caplog.text and f"sweeptune sync {tmp_path}" in caplog.text
    caplog.clear()
    leave_lines(sent, 1, start=5)  # noted before its last row
    (lost / "attempts.jsonl").unlink()  # as a study leaves what it dropped
    await_senders([sent, lost], tmp_path)
    assert "2 of 2 runs" in caplog.text and "1 of them ended without training" in caplog.text
    monkeypatch.setenv("WANDB_MODE", "offline")
    caplog.clear()
    await_senders([sent, lost], tmp_path)
    assert caplog.messages == []


@pytest.mark.parametrize("fate", ["no server", "killed"])
def test_a_sender_that_sent_nothing_is_not_taken_for_one_that_has(
    make_run: Make, online: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'sweeptune[wandb]'")
    monkeypatch.setattr(following.log, "propagate", True)
    run = make_run("run", "tracker=wandb")
    follower = follow(load(run / "config.yaml"), run, 1)
    assert follower is not None and wait_for(lambda: (run / LOCK).exists())
    if fate == "killed":
        follower._process.kill()
        follower._process.wait()
    follower.end()
    try:
        await_senders([run], run, seconds=0.5)
        (said,) = {text for text in caplog.messages if "1 of 1 runs are not on http://127.0.0.1:9" in text}
        assert f"sweeptune sync {run}" in said and ("still being sent" in said) == (fate == "no server")
    finally:
        _end_with_its_children(follower._process.pid)


def _end_with_its_children(pid: int) -> None:
    """End a sender, and W&B's own process beside it, which its group holds."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.slow
def test_without_a_key_a_run_is_kept_in_its_folder_and_that_is_said(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'sweeptune[wandb]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run, said = make_run("run", "tracker=wandb", ended=False), logging.Handler()
    heard: list[str] = []
    monkeypatch.setattr(said, "emit", lambda record: heard.append(record.getMessage()))
    following.log.addHandler(said)
    try:
        follower = follow(load(run / "config.yaml"), run, 1)
        assert follower is not None and wait_for(lambda: heard)
        leave_result(run)
        follower.end()
        assert wait_for(lambda: list(run.glob("wandb/offline-run-*"))) and wait_for_senders([run], 60) == []
    finally:
        following.log.removeHandler(said)
    assert len(heard) == 1 and "no key" in heard[0] and f"sweeptune sync {run}" in heard[0]
    found = wandb_file.records(wandb_file.the_file(run))
    assert len(wandb_file.rows(found)) == 6 and wandb_file.summary(found)["result/eval_loss"] == 2.5
    assert not (run / NOTE).exists()


@pytest.mark.slow
def test_an_offline_run_and_its_sync_hold_the_same(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'sweeptune[wandb]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "run"
    record = train(settings("tracker=wandb_offline", "train.eval_every=3"), folder)
    assert record["status"] == "completed" and wait_for_senders([folder], 60) == []
    found = wandb_file.records(wandb_file.the_file(folder))
    (run,) = [one.run for one in found if one.WhichOneof("record_type") == "run"][:1]
    known = card(folder)
    assert (run.run_id, run.display_name, run.job_type) == (known.id, known.name, "train")
    assert list(run.tags) == ["lora", "tiny"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["method"]["rank"] == 16 and config["trial"]["attempt"] == 1
    metrics = [one.metric for one in found if one.WhichOneof("record_type") == "metric"]
    by_tokens = {one.glob_name for one in metrics if one.step_metric == "train/tokens"}
    assert by_tokens == {"train/*", "eval/*", "mem/*", "perf/*"}
    written = lines(folder / "metrics.jsonl")
    wanted = [row(line, before) for line, before in zip(written, [None, *written[:-1]], strict=True)]
    logged = [{key: value for key, value in one.items() if not key.startswith("_")} for one in wandb_file.rows(found)]
    assert logged == wanted and any("mem/peak_gib" in one for one in logged)
    offline = {k: v for k, v in wandb_file.summary(found).items() if k.startswith("result/")}
    assert offline["result/eval_loss"] == record["eval"]["loss"]
    assert offline["result/peak_memory_gib"] == record["memory"]["peak_memory_gib"]
    (ended,) = [one.exit for one in found if one.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0
    with serving() as server, monkeypatch.context() as patch:
        for key, value in server.variables().items():
            patch.setenv(key, value)
        assert [[sent.state for sent in sync(folder)] for _ in range(2)] == [["sent"], ["there"]]
        synced = server.runs[known.id]
        assert list(folder.glob("wandb/offline-run-*/*.wandb.synced")), "W&B's own tool passes over it"
        assert synced.result == offline and len(synced.rows) == len(written) and len(server.runs) == 1


@pytest.mark.slow
def test_a_study_arrives_while_it_runs_also_where_a_worker_is_killed(
    server: Server, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["model=tiny", "hardware=cpu", "data=jsonl", f"data.path={jsonl}", "data.max_length=192"]
    overrides += ["train.tokens_per_step=512", "train.max_steps=16", "train.checkpoint_every=2", "method=full,lora"]
    overrides += ["study.name=s", "study.probe_steps=0", "tracker=wandb", "hydra.sweep.dir=multirun/s"]
    command = [sys.executable, str(ROOT / "train.py"), "--multirun", *overrides]
    where = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    with (tmp_path / "said.log").open("wb") as said:
        study = subprocess.Popen(command, cwd=tmp_path, env=os.environ | where, stdout=said, stderr=said)
    folder = tmp_path / "multirun" / "s"
    try:
        metrics = folder / "0" / "metrics.jsonl"
        assert wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 4, 90)
        pid = lines(folder / "0" / "attempts.jsonl")[0]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert study.wait(150) == 0, (tmp_path / "said.log").read_text()
    finally:
        study.kill()
    assert wait_for_senders([folder / "0", folder / "1"], 60) == []
    assert len(server.runs) == 3 and {run.group for run in server.runs.values()} == {"s"}
    first, again, other = (next(run for run in server.runs.values() if part in run.name) for part in PARTS_OF_IDS)
    assert first.result["result/reason"] == "attempt 2 went on with it" and len(first.rows) >= 4
    assert again.config["trial"]["retry_of"] == first.name and again.exit_code == other.exit_code == 0
    for number, run in enumerate((again, other)):
        record = json.loads((folder / str(number) / "result.json").read_text())
        assert run.result["result/eval_loss"] == record["eval"]["loss"]
        assert run.steps() == list(range(len(lines(folder / str(number) / "metrics.jsonl"))))
    assert [sent.state for sent in sync(folder)] == ["there", "there"]
    with serving() as second:  # the same study, never sent to this server
        for key, value in second.variables().items():
            monkeypatch.setenv(key, value)
        _forget_the_first_server()
        assert [[sent.state for sent in sync(folder)] for _ in range(2)] == [["sent"] * 2, ["there"] * 2]
        assert {name: run.result for name, run in second.runs.items()} == {
            run.name: run.result for run in (again, other)
        }
        assert {name: len(run.rows) for name, run in second.runs.items()} == {
            run.name: len(run.rows) for run in (again, other)
        }


PARTS_OF_IDS = ("s-0000-s0-a1-", "s-0000-s0-a2-", "s-0001-s0-a1-")


def _forget_the_first_server() -> None:
    import wandb

    wandb.teardown()
