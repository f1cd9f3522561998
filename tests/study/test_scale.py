"""A study of two thousand trials: how soon it goes on, and what it costs while its trials run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest
from optuna.trial import create_trial

from sweeptune.config.schema import StudyConfig
from sweeptune.study.ask import ask, next_method, tell
from sweeptune.study.space import Space
from sweeptune.study.store import Store
from tests.study.fakes import begin, lines, run, wait_for, workers

SEARCH = ["method=full,lora,qlora,dora", "optim.lr=tag(log,interval(1e-5,1e-2))", "method.rank=4,8,16,32,64"]
STUDY = [*SEARCH, "study.name=s"]
KNOWN = 1990

pytestmark = pytest.mark.slow


def grow(folder: Path, until: int) -> Store:
    """A study whose first four trials have run; the others are told as if they had, with figures of their own."""
    done = run(folder, *STUDY, "study.trials=4")
    assert done.returncode == 0, done.stderr
    store = Store(folder / "multirun" / "s")
    store.refresh()
    study, draw = store.optuna(settings(store)), random.Random(0)
    first = study.get_trials(deepcopy=False)
    for number in range(4, until):
        like, known = first[number % 4], store.trials[number % 4]
        point = {**known["params"], "optim.lr": 10 ** draw.uniform(-5, -2)}
        values = {"eval_loss": draw.uniform(2, 3), "peak_memory_gib": known["peak_memory_gib"] + draw.random()}
        told = {"params": {**like.params, "optim.lr": point["optim.lr"]}, "distributions": like.distributions}
        attributes = {"kind": "trial", "point": point}
        study.add_trial(create_trial(**told, values=[*values.values()], user_attrs=attributes))
        store.add({**known, **values, "number": number, "params": point, "values": values, "folder": f"{number}"})
    return store


def settings(store: Store) -> StudyConfig:
    return StudyConfig(**store.read()["study"])


def spent(process: psutil.Process) -> float:
    """Processor time of a process alone: what a clock says when nothing else runs; tests run side by side."""
    times = process.cpu_times()
    return times.user + times.system


def test_a_study_of_two_thousand_trials_goes_on_at_once_and_costs_next_to_nothing(tmp_path: Path) -> None:
    store = grow(tmp_path, KNOWN)
    study = store.folder
    process = begin(tmp_path, *STUDY, "study.trials=2000")
    parent = psutil.Process(process.pid)
    assert wait_for(lambda: (study / str(KNOWN) / "starts.txt").exists())
    assert spent(parent) < 5, f"{spent(parent):.1f} s until the first new trial"
    assert process.wait(timeout=60) == 0, (tmp_path / "said.log").read_text()
    assert [line["number"] for line in lines(study)] == list(range(2000))

    # One more trial, and a second place that stays free: what looks for work looks at all trials.
    process = begin(tmp_path, *STUDY, "study.trials=2001", "hardware.gpus=2", plan={"step_s": 1.0})
    parent = psutil.Process(process.pid)
    assert wait_for(lambda: (study / "2000" / "metrics.jsonl").exists())
    time.sleep(0.5)
    shares = []
    for _ in range(3):
        before, began = spent(parent), time.monotonic()
        time.sleep(2.5)
        shares.append((spent(parent) - before) / (time.monotonic() - began))
    assert len(workers(study)) == 1, "the trial must still have been training"
    assert min(shares) < 0.02, f"{shares} of a processor"
    assert process.wait(timeout=60) == 0, (tmp_path / "said.log").read_text()

    store.refresh()
    opened, space = store.optuna(settings(store)), Space.from_dict(store.read()["space"])
    asking, telling = [], []
    for _ in range(3):
        start = time.process_time()
        method = next_method([*store.trials.values()], [], space.methods, "equal")
        trial, point = ask(opened, space, settings(store), 0, method)
        middle = time.process_time()
        tell(opened, trial.number, {**store.trials[2000], "number": trial.number, "params": point}, settings(store))
        asking.append(middle - start)
        telling.append(time.process_time() - middle)
    print(f"overhead {min(shares):.2%}, ask {min(asking):.3f} s, tell {min(telling):.3f} s")
    assert min(asking) < 0.1 and min(telling) < 0.1, (asking, telling)
