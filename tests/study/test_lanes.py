"""Runs that share a slot (study.trials_per_gpu), and probes, which never do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from sweeptune.tracking.record import read_record
from tests.study.fakes import lines, run

SHARED = ["method=full,lora", "optim.lr=1e-4,3e-4,1e-3", "study.trials_per_gpu=2", "study.probe_steps=3"]

pytestmark = pytest.mark.slow


class Ran(NamedTuple):
    """When a run trained, by the clock of the file system, in ns, and where."""

    name: str
    slot: str
    began: int
    ended: int


def ran(study: Path, said: str) -> list[Ran]:
    """Every run: what the command said of its place, what the worker left of its time."""
    found = []
    for slot, name in re.findall(r" on (cpu \d) -> multirun/s/(\S+)", said):
        began, ended = (study / name / file for file in ("starts.txt", "result.json"))
        assert began.read_text().count("\n") == 1, f"{name}: started once"
        found.append(Ran(name, slot, began.stat().st_mtime_ns, ended.stat().st_mtime_ns))
    return found


def beside(one: Ran, all_: list[Ran]) -> list[Ran]:
    """What else ran in the same slot when a run began."""
    return [o for o in all_ if o is not one and o.slot == one.slot and o.began <= one.began < o.ended]


@pytest.mark.parametrize("slots", [1, 2])
def test_two_runs_share_a_slot_and_a_probe_has_it_alone(tmp_path: Path, slots: int) -> None:
    done = run(tmp_path, *SHARED, f"hardware.gpus={slots}", "study.name=s", plan={"step_s": 0.05})
    study = tmp_path / "multirun" / "s"
    assert done.returncode == 0, done.stderr
    found = ran(study, done.stderr)
    probes = [one for one in found if one.name.startswith("probes/")]
    assert len(probes) == 2 and len({one.name for one in found}) == len(found) == 2 + 6
    assert {one.slot for one in found} == {f"cpu {n}" for n in range(slots)}
    together = [len(beside(one, found)) for one in found]
    assert max(together) == 1, "two at a time, and no more"
    assert not any(beside(probe, found) for probe in probes), "no probe begins beside a run"
    assert not any(set(probes) & set(beside(one, found)) for one in found), "nor a run beside a probe"


def test_runs_spread_over_the_slots(tmp_path: Path) -> None:
    """Four runs, two slots with four places each: two in each, not four in the first."""
    settings = ["optim.lr=1e-4,2e-4,3e-4,4e-4", "hardware.gpus=2", "study.trials_per_gpu=4", "study.probe_steps=0"]
    done = run(tmp_path, *settings, "study.name=s", plan={"step_s": 0.2})
    assert done.returncode == 0, done.stderr
    assert sorted(one.slot for one in ran(tmp_path / "multirun" / "s", done.stderr)) == 2 * ["cpu 0"] + 2 * ["cpu 1"]


def test_memory_and_speed_are_those_of_the_probe(tmp_path: Path) -> None:
    """Of a run that shared its device they mean nothing; the loss is the run's own."""
    done = run(tmp_path, *SHARED, "study.name=s")
    study = tmp_path / "multirun" / "s"
    assert done.returncode == 0, done.stderr
    for line in lines(study):
        probe, own = read_record(study / "probes" / line["cost_class"]), read_record(study / line["folder"])
        assert line["peak_memory_gib"] == probe["memory"]["peak_memory_gib"] != own["memory"]["peak_memory_gib"]
        assert line["tokens_per_s"] == probe["speed"]["tokens_per_s"] != own["speed"]["tokens_per_s"]
        assert line["eval_loss"] == own["eval"]["loss"]
        assert line["tokens"] == own["train"]["tokens"], "the probe's tokens are nobody's"


def test_a_study_that_goes_on_says_how_much_of_it_is_done(tmp_path: Path) -> None:
    grid = ["optim.lr=1e-4,2e-4,3e-4", "study.probe_steps=0", "study.name=s"]
    first = run(tmp_path, *grid, "study.trials=2")
    assert "study s: 2 trials in multirun/s\n" in first.stderr and "(2 of 2)" in first.stderr
    again = run(tmp_path, *grid, "study.trials=3")
    assert "study s: 3 trials in multirun/s, 2 done\n" in again.stderr and "(3 of 3)" in again.stderr
