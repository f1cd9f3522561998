"""The command line as a user meets it: real processes, exit statuses, what is printed and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from sweeptune.config.compose import load
from sweeptune.launch import entry
from sweeptune.launch.entry import main, study_overrides
from sweeptune.tracking.record import read_record

ROOT = Path(__file__).resolve().parents[2]


def train(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def tiny(jsonl: Path) -> list[str]:
    return [
        "model=tiny",
        "hardware=cpu",
        "data=jsonl",
        f"data.path={jsonl}",
        "data.max_length=192",
        "data.eval_fraction=0.15",
        "data.test_fraction=0.1",
        "train.tokens_per_step=512",
        "train.max_steps=7",
    ]


REFUSED = [
    (["method=lorra"], ["method=lorra", "Did you mean method=lora?"]),
    (["method.rnak=4"], ["method.rnak=4", "Did you mean method.rank=4?"]),
    (["+method.rank2=4"], ["+method.rank2=4", "method.rank=4"]),
    (["+method.foo=1"], ["+method.foo=1"]),
    (["+foo=1"], ["+foo=1"]),
    (["optim.lr=fast"], ["optim.lr=fast", "number"]),
    (["method=qlora", "method.rank=0"], ["method.rank=0", "1"]),
    (["data=jsonl", "data.path=missing.jsonl"], ["data.path=missing.jsonl"]),
    (["hardware=cpu", "hardware.precision=fp16"], ["hardware.precision=fp16", "device=cpu", "bf16"]),
    (["train.tokens_per_step=100"], ["train.tokens_per_step=100", "data.max_length"]),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=lambda value: " ".join(value))
def test_a_wrong_override_is_refused_with_its_fix_and_status_2(overrides, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(overrides) == 2
    shown = capsys.readouterr().err
    assert "1 problem with" in shown and "Traceback" not in shown
    for word in words:
        assert word in shown
    assert list(tmp_path.iterdir()) == [], "nothing was started"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["study.trials=30", "study.prune=true"], "study.trials=30, study.prune=true: without --multirun"),
        (["study.name=mine"], "study.name=mine: without --multirun (-m) this is one run"),
        (["study=default"], "study=default: without"),
        (["experiment=demo"], "experiment=demo: without"),
        (["method=lora", "hydra.verbose=false"], None),
    ],
    ids=str,
)
def test_settings_of_a_study_without_multirun_are_said_to_change_nothing(
    overrides: list[str], named: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(entry, "compose_and_run", ran.append)
    assert main(overrides) == 0 and len(ran) == 1
    said = capsys.readouterr().err
    if named is None:
        assert said == ""
    else:
        assert said.count("without --multirun (-m)") == 1 and named in said
        assert f"Add -m for a study: python train.py -m {' '.join(overrides)}" in said
    assert main(["-m", *overrides]) == 0
    assert "without --multirun" not in capsys.readouterr().err


def test_several_wrong_overrides_are_all_listed(tmp_path):
    done = train("method=lorra", "method.rnak=4", "optim.lr=fast", "data.path=missing.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "4 problems" in done.stderr
    for text in ("method=lorra", "method.rnak=4", "optim.lr=fast", "data.path=missing.jsonl"):
        assert text in done.stderr


@pytest.mark.slow
def test_what_only_the_data_can_tell_is_refused_before_weights_are_loaded(tmp_path, tiny):
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    done = train(*tiny, "data.path=bad.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "bad.jsonl:2" in done.stderr and "Traceback" not in done.stderr
    assert "loading" not in done.stderr


def test_cfg_job_prints_the_composed_settings(tmp_path):
    done = train("--cfg", "job", "method=qlora", cwd=tmp_path)
    assert done.returncode == 0 and "name: qlora" in done.stdout and "rank: 16" in done.stdout


def test_help_explains_groups_and_combining(tmp_path):
    done = train("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("qlora", "pydocs", "--multirun", "resume=", "hardware"):
        assert word in done.stdout


@pytest.mark.slow
def test_one_run_leaves_its_folder_and_resume_keeps_a_finished_one(tmp_path, tiny):
    done = train(*tiny, "method=lora", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr  # what Triton, where there is one, may say
    record = read_record(tmp_path / "out")
    assert record["status"] == "completed" and record["command"].startswith("python train.py model=tiny")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "train.log", "eval.jsonl", "checkpoints", "result.json"} <= names
    again = train("resume=out", cwd=tmp_path)
    assert again.returncode == 0 and read_record(tmp_path / "out") == record


@pytest.mark.slow
def test_a_sweep_runs_each_arm_in_its_own_process_and_keeps_what_is_done(tmp_path, tiny):
    sweep = ["--multirun", *tiny, "method=full,lora,qlora", "study.name=arms"]
    done = train(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "multirun" / "arms"
    records = [read_record(folder / str(n)) for n in range(3)]
    assert [record["method"] for record in records] == ["full", "lora", "qlora"]
    starts = [json.loads((folder / str(n) / "attempts.jsonl").read_text()) for n in range(3)]
    assert len({start["pid"] for start in starts}) == 3, "one process per run"
    quality = [record["fingerprint"]["quality"] for record in records]
    assert quality[0] == quality[1] == quality[2], "same weights, tokens, order, template and splits"
    for method in ("full", "lora", "qlora"):
        assert method in done.stdout, "the comparison is printed at the end"
    again = train(*sweep, cwd=tmp_path)
    assert again.returncode == 0
    assert [read_record(folder / str(n)) for n in range(3)] == records, "what is done is kept"
    other = train(*sweep, "seed=1", cwd=tmp_path)
    assert other.returncode == 2 and "study.name=" in other.stderr, "another study never overwrites this one"


@pytest.mark.slow
def test_a_failed_arm_does_not_stop_the_others_and_sets_the_status(tmp_path, tiny):
    done = train("--multirun", *tiny, "method=lora", "optim.lr=1e30,1e-3", cwd=tmp_path)
    statuses = [read_record(tmp_path / "multirun" / "lr" / str(n))["status"] for n in range(2)]
    assert statuses == ["diverged", "completed"]
    assert done.returncode == 1 and "diverged" in done.stdout


@pytest.mark.slow
def test_two_ranks_make_the_same_step_and_the_same_eval_loss(tmp_path, tiny):
    from safetensors.torch import load_file
    from torch.testing import assert_close

    from sweeptune.training.checkpoint import find_checkpoints

    common = [*tiny, "method=full", "train.max_steps=3", "hardware.micro_batch=2", "optim.lr=1e-3", "optim.eps=1e-3"]
    for ranks in (1, 2):
        done = train(*common, f"hardware.gpus_per_trial={ranks}", f"hydra.run.dir=ranks{ranks}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(find_checkpoints(tmp_path / f"ranks{n}")[-1] / "trainable.safetensors") for n in (1, 2))
    for name in one:
        assert_close(one[name], two[name], rtol=0, atol=1e-5)
    records = [read_record(tmp_path / f"ranks{n}") for n in (1, 2)]
    for key in ("initial_loss", "loss"):
        assert records[0]["eval"][key] == pytest.approx(records[1]["eval"][key], abs=1e-4)
    assert records[1]["fingerprint"]["cost"]["ranks"] == 2
    assert records[0]["train"]["tokens"] == records[1]["train"]["tokens"]
    assert records[0]["fingerprint"]["quality"] == records[1]["fingerprint"]["quality"]


@pytest.mark.slow
def test_sigterm_before_any_rank_has_started_stops_torchrun(tmp_path, tiny):
    arguments = ["--multirun", *tiny, "hardware.gpus_per_trial=2", "study.name=early", "study.probe_steps=0"]
    arguments += ["train.max_steps=20000"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "train.epochs=null"]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    started: list[psutil.Process] = []
    while time.monotonic() < deadline and not started:  # git is a child, too, for a moment
        time.sleep(0.02)
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(parent.pid).children()
            started = [child for child in children if "sweeptune.launch.worker" in child.cmdline()]
    [worker] = started
    time.sleep(0.3)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=60)
    assert parent.returncode == 130 and not alive(worker.pid)
    assert read_record(tmp_path / "multirun" / "early" / "0")["status"] == "interrupted"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def start_long_sweep(tmp_path: Path, tiny: list[str], *more: str) -> tuple[subprocess.Popen[str], int]:
    """A sweep whose first run trains for long; with the worker's (rank 0's) process id once it trains."""
    arguments = [
        "--multirun",
        *tiny,
        *more,
        "method=lora,full",
        "study.name=long",
        "train.epochs=null",
        "train.max_steps=20000",
    ]
    parent = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "multirun" / "long" / "0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.05)
    start = json.loads((metrics.parent / "attempts.jsonl").read_text().splitlines()[0])
    return parent, start["pid"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "ranks"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)], ids=["ctrl-c", "sigterm", "ranks"]
)
def test_being_stopped_leaves_a_checkpoint_and_ends_the_sweep(tmp_path, tiny, sign, ranks):
    parent, worker = start_long_sweep(tmp_path, tiny, f"hardware.gpus_per_trial={ranks}")
    parent.send_signal(sign)
    if sign == signal.SIGINT:  # the first one only keeps new trials from beginning
        time.sleep(0.5)
        assert parent.poll() is None and alive(worker)
        parent.send_signal(sign)
    _, shown = parent.communicate(timeout=60)
    assert parent.returncode == 130, shown
    record = read_record(tmp_path / "multirun" / "long" / "0")
    assert record["status"] == "interrupted" and not alive(worker)
    assert list((tmp_path / "multirun" / "long" / "0" / "checkpoints").glob("step-*"))
    assert not (tmp_path / "multirun" / "long" / "1" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses PR_SET_PDEATHSIG")
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_worker_outlives_a_killed_parent(tmp_path, tiny, ranks):
    parent, worker = start_long_sweep(tmp_path, tiny, f"hardware.gpus_per_trial={ranks}")
    family = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    assert worker in family and len(family) >= (1 if ranks == 1 else 3), "one worker, or torchrun and its ranks"
    assert os.getsid(worker) != os.getsid(parent.pid)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, family))


@pytest.mark.slow
def test_a_killed_worker_goes_on_once_from_where_it_was(tmp_path, tiny):
    parent, worker = start_long_sweep(tmp_path, tiny, "train.checkpoint_every=2")
    folder = tmp_path / "multirun" / "long" / "0"
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    attempts = folder / "attempts.jsonl"
    while attempts.read_text().count("\n") < 2 and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    second = json.loads(attempts.read_text().splitlines()[1])["pid"]
    os.kill(second, signal.SIGKILL)
    while not (folder / "result.json").exists() and time.monotonic() < deadline + 120:
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    record = read_record(folder)
    assert record["status"] == "lost" and "killed 2 times" in record["reason"]


@pytest.mark.slow
def test_a_trial_whose_worker_was_killed_ends_as_an_unbroken_run(tmp_path, tiny):
    from sweeptune.training import run

    arguments = ["--multirun", *tiny, "method=lora", "optim.lr=1e-3", "study.name=killed", "study.probe_steps=0"]
    arguments += ["train.max_steps=12", "train.epochs=null", "train.checkpoint_every=2"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    folder = tmp_path / "multirun" / "killed" / "0"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.glob("checkpoints/step-*[0-9]")):
        time.sleep(0.02)
    os.kill(json.loads((folder / "attempts.jsonl").read_text())["pid"], signal.SIGKILL)
    assert not (folder / "result.json").exists(), "it must still have been training"
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 0 and b"the worker was killed; going on with it" in said, said
    record = read_record(folder)
    assert (record["status"], record["attempts"]) == ("completed", 2)
    whole = run(load(folder / "config.yaml"), tmp_path / "whole", "")
    assert record["eval"] == whole["eval"] and record["train"]["tokens"] == whole["train"]["tokens"]


def test_a_study_is_named_after_what_it_sweeps():
    assert study_overrides(["method=full,lora"]) == ["study.name=method", "hardware.on_oom=stop"]
    assert study_overrides(["space=method_tradeoff"])[0] == "study.name=method_tradeoff"
    assert study_overrides(["experiment=demo", "hardware.on_oom=replan"]) == ["study.name=demo"]
    assert study_overrides(["study.name=mine", "seed=0,1", "hardware.on_oom=stop"]) == []


def test_flags_may_stand_behind_the_overrides() -> None:
    from sweeptune.launch.entry import with_more

    assert with_more(["a=1", "b=2", "-m"], ["a=1", "b=2"], ["c=3"]) == ["a=1", "b=2", "c=3", "-m"]
    assert with_more(["-m", "a=1", "--cfg", "job"], ["a=1"], ["c=3"]) == ["-m", "a=1", "c=3", "--cfg", "job"]
    assert with_more(["-m"], [], ["c=3"]) == ["c=3", "-m"]


def test_training_processes_are_given_expandable_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what main sets is undone
        monkeypatch.delenv(name)
    assert main(["method=lorra"]) == 2
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
