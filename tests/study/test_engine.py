"""Whole studies with a trainer that costs nothing: what is left behind, however they are treated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sweeptune.study.lease import Leases
from sweeptune.study.working import find_standing
from sweeptune.tracking.record import read_record
from tests.study.fakes import begin, environment, lines, results, run, wait_for, workers

GRID = ["method=full,lora,qlora", "optim.lr=1e-4,1e-3", "method.rank=4,16", "study.name=s"]
POINTS = 10  # full has no rank: 2 + 4 + 4
RATES = "optim.lr=tag(log,interval(1e-5,1e-2))"
TPE = ["method=full,lora", RATES, "method.rank=4,16", "study.trials=8", "study.name=s"]

pytestmark = pytest.mark.slow


def test_a_grid_merges_points_and_leaves_a_folder_each(tmp_path: Path) -> None:
    done = run(tmp_path, *GRID)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "multirun" / "s"
    found = lines(study)
    assert [line["number"] for line in found] == list(range(POINTS))
    assert sum(line["method"] == "full" for line in found) == 2, "a rank means nothing to full: the points merge"
    assert all("method.rank" not in line["params"] for line in found if line["method"] == "full")
    for line in found:
        record = read_record(study / line["folder"])
        assert record["status"] == "completed" and record["eval"]["loss"] == line["eval_loss"]
    kept = [n for n in range(POINTS) if (study / str(n) / "checkpoints").exists()]
    best = {}
    for line in found:
        if line["eval_loss"] < best.get(line["method"], (9, 0))[0]:
            best[line["method"]] = (line["eval_loss"], line["number"])
    assert kept == sorted(number for _, number in best.values()), "only each method's best keeps its weights"


BASED = ["method=full,lora", "optim.lr=5e-5,1e-3", "method.rank=4,16", "study.baselines=true", "study.name=s"]
"""full recommends 5e-5, lora 1e-3 and rank 16: two of the six points are baselines."""


def test_a_point_of_a_grid_that_is_a_baseline_runs_once(tmp_path: Path) -> None:
    study = tmp_path / "multirun" / "s"
    part = run(tmp_path, *BASED, "study.trials=3", "study.sampler=grid")
    assert part.returncode == 0 and len(lines(study)) == 3
    done = run(tmp_path, *BASED, "study.sampler=grid")
    assert done.returncode == 0 and "study s: 6 trials" in done.stderr
    assert "2 of the grid's points are recommended settings" in done.stderr
    found = lines(study)
    assert [line["number"] for line in found] == list(range(6)) == sorted(int(p.name) for p in study.glob("[0-9]*"))
    assert [line["kind"] for line in found] == ["baseline"] * 2 + ["trial"] * 4
    assert [line["params"] for line in found[:2]] == [
        {"method": "full", "optim.lr": 5e-5},
        {"method": "lora", "optim.lr": 1e-3, "method.rank": 16},
    ]
    assert len({json.dumps(line["params"], sort_keys=True) for line in found}) == 6, "every point of the grid once"
    before = results(study)
    again = run(tmp_path, *BASED, "study.sampler=grid")
    assert again.returncode == 0 and results(study) == before


def test_a_grid_that_began_without_merging_keeps_its_numbers(tmp_path: Path) -> None:
    study = tmp_path / "multirun" / "s"
    assert run(tmp_path, *BASED, "study.trials=2", "study.sampler=grid").returncode == 0
    header = json.loads((study / "study.json").read_text())
    del header["merged"]
    (study / "study.json").write_text(json.dumps(header))
    done = run(tmp_path, *BASED, "study.sampler=grid")
    assert done.returncode == 0 and "study s: 8 trials" in done.stderr
    assert [line["params"] for line in lines(study)[2:4]] == [
        {"method": "full", "optim.lr": 5e-5},
        {"method": "full", "optim.lr": 1e-3},
    ]


def test_the_same_command_again_keeps_everything_and_another_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path, *TPE).returncode == 0
    study = tmp_path / "multirun" / "s"
    before = results(study)
    assert len(before) == 8
    again = run(tmp_path, *TPE)
    assert again.returncode == 0 and results(study) == before
    more = run(tmp_path, *[o.replace("trials=8", "trials=11") for o in TPE])
    assert more.returncode == 0 and results(study)[:8] == before and len(results(study)) == 11
    other = run(tmp_path, *[o.replace("4,16", "4,32") for o in TPE], "optim.warmup=0.1")
    assert other.returncode == 2
    for words in ("optim.warmup=0.1", "method.rank", "study.name="):
        assert words in other.stderr
    assert len(results(study)) == 11


SMALL = ["method=full,lora", RATES, "hardware.micro_batch=2,4,8", "study.name=s", "study.trials=9",
         "study.sampler=random", "study.probe_steps=5", "train.max_steps=12",
         "study.constraints={peak_memory_gib: 11.5}"]  # fmt: skip


def test_what_is_predicted_to_break_a_limit_never_runs_and_is_no_trial(tmp_path: Path) -> None:
    """full needs 9, 10 and 12 GiB with 2, 4 and 8 rows, lora 6.2, 7.2 and 9.2; a bound is 15 % higher."""
    done = run(tmp_path, *SMALL, plan={"foreseen": 0.99})
    assert done.returncode == 0, done.stderr
    study = tmp_path / "multirun" / "s"
    found = lines(study)
    misfits = [line for line in found if line["kind"] == "misfit"]
    assert misfits and sum(line["kind"] in ("baseline", "trial") for line in found) == 9, "a misfit is no trial"
    for line in misfits:
        assert (line["method"], line["params"]["hardware.micro_batch"]) == ("full", 8), line["reason"]
        assert line["status"] == "pruned" and "predicted to break study.constraints" in line["reason"]
        assert line["constraints"]["peak_memory_gib"] > 0 and line["peak_memory_gib"] is None and not line["tokens"]
        assert (
            not (study / "probes" / line["cost_class"]).exists()
            and not (study / line["folder"] / "starts.txt").exists()
        )
    for line in [line for line in found if line["kind"] in ("baseline", "trial")]:
        assert line["status"] == "completed" and line["constraints"]["peak_memory_gib"] <= 0
        assert line["predicted_gib"] == pytest.approx(line["peak_memory_gib"], rel=0.012)
    again = results(study)
    assert run(tmp_path, *SMALL, plan={"foreseen": 0.99}).returncode == 0 and results(study) == again


@pytest.mark.parametrize("trouble", ["blind", "mute"])
def test_a_study_whose_predictions_fail_measures_instead(tmp_path: Path, trouble: str) -> None:
    done = run(tmp_path, *SMALL, plan={"foreseen": 1.0, trouble: True})
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "multirun" / "s")
    assert len(found) == 9 and all(line["kind"] in ("baseline", "trial") for line in found)
    assert all(line["predicted_gib"] is None for line in found) and "predicted" in done.stderr
    broke = [line for line in found if line["params"].get("hardware.micro_batch") == 8 and line["method"] == "full"]
    assert broke and all("in the probe" in line["reason"] for line in broke)


def test_a_baseline_and_a_grid_are_tried_whatever_is_predicted(tmp_path: Path) -> None:
    done = run(tmp_path, "method=full,lora", "hardware.micro_batch=2,8", "study.name=s", "study.probe_steps=5",
               "train.max_steps=12", "study.constraints={peak_memory_gib: 11}", plan={"foreseen": 2.0})  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "multirun" / "s")
    assert len(found) == 4 and sum(line["status"] == "completed" for line in found) == 3
    assert all(line["kind"] == "trial" and line["peak_memory_gib"] for line in found)


def test_editing_conf_or_the_code_changes_nothing_that_runs(tmp_path: Path) -> None:
    assert run(tmp_path, *[o.replace("trials=8", "trials=2") for o in TPE]).returncode == 0
    copy = tmp_path / "multirun" / "s" / "code" / "sweeptune"
    assert (copy / "training" / "loop.py").exists()
    text = (copy / "conf" / "optim" / "adamw.yaml").read_text()
    (copy / "conf" / "optim" / "adamw.yaml").write_text(text.replace("beta1: 0.9 ", "beta1: 0.8 "))
    assert run(tmp_path, *[o.replace("trials=8", "trials=3") for o in TPE]).returncode == 0
    config = (tmp_path / "multirun" / "s" / "2" / "config.yaml").read_text()
    assert "beta1: 0.8" in config, "the study composes from its own copy"
    assert json.loads((tmp_path / "multirun" / "s" / "study.json").read_text())["name"] == "s"


def test_a_study_of_a_version_with_other_settings_is_not_run_into_crashes(tmp_path: Path) -> None:
    assert run(tmp_path, *[o.replace("trials=8", "trials=2") for o in TPE]).returncode == 0
    schema = tmp_path / "multirun" / "s" / "code" / "sweeptune" / "config" / "schema.py"
    text = schema.read_text()
    more = [o.replace("trials=8", "trials=3") for o in TPE]
    schema.write_text(text.replace("    batch_tokens: Positive | None = None\n", ""))
    refused = run(tmp_path, *more)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "eval.batch_tokens: no such setting" in refused.stderr
    assert "PYTHONPATH=multirun/s/code before the same" in refused.stderr
    assert not (tmp_path / "multirun" / "s" / "2").exists()
    schema.write_text(text + "# another version, whose settings are the same\n")
    assert run(tmp_path, *more).returncode == 0 and (tmp_path / "multirun" / "s" / "2").exists()


FAULTS = {
    "0": ("oom", "oom"),
    "1": ("nan", "diverged"),
    "2": ("segfault", "crashed"),
    "3": ("silent", "crashed"),
    "4": ("garbage", "crashed"),
    "5": ("disk full", "crashed"),
    "6": ("hang", "timeout"),
    "7": ("killed", "lost"),
}


def test_every_ending_has_its_status_and_stops_nobody_else(tmp_path: Path) -> None:
    plan = {"faults": {number: fault for number, (fault, _) in FAULTS.items()}}
    done = run(tmp_path, *GRID, "study.trial_timeout_s=5", "study.max_failures=99", plan=plan)
    study = tmp_path / "multirun" / "s"
    found = {str(line["number"]): line for line in lines(study)}
    assert len(found) == POINTS, done.stderr
    for number, (fault, status) in FAULTS.items():
        assert found[number]["status"] == status, fault
        assert found[number]["reason"] and read_record(study / number)["status"] == status
        assert not (study / number / "checkpoints").exists()
    assert [found[n]["status"] for n in ("8", "9")] == ["completed"] * 2
    assert done.returncode == 1 and (study / "4" / "result.json.unreadable").exists()


def test_a_study_that_only_fails_ends(tmp_path: Path) -> None:
    done = run(tmp_path, *GRID, "study.max_failures=3", plan={"faults": {str(n): "oom" for n in range(10)}})
    assert len(lines(tmp_path / "multirun" / "s")) == 3 and done.returncode == 1


def test_probes_measure_each_cost_class_once_and_limits_drop_before_training(tmp_path: Path) -> None:
    done = run(tmp_path, *GRID, "study.probe_steps=3", "train.max_steps=10", "study.constraints={peak_memory_gib: 7.5}")
    study = tmp_path / "multirun" / "s"
    found = lines(study)
    assert done.returncode == 0, done.stderr
    assert len(list((study / "probes").iterdir())) == 5, "full, and two ranks of two methods: rates cost nothing"
    full = [line for line in found if line["method"] == "full"]
    assert [line["status"] for line in full] == ["pruned"] * 2 and "study.constraints" in full[0]["reason"]
    assert full[0]["tokens"] == 0 and full[0]["constraints"]["peak_memory_gib"] > 0
    assert all(line["status"] == "completed" for line in found if line["method"] != "full")


def test_a_study_that_cannot_prune_says_so_before_it_begins(tmp_path: Path) -> None:
    done = run(tmp_path, "method=lora", "optim.lr=1e-4,1e-3", "study.prune=true", "study.name=s")
    assert done.returncode == 0 and done.stderr.count("nothing can be pruned") == 1
    assert done.stderr.index("nothing can be pruned") < done.stderr.index("trial 0")


def test_replicates_are_a_mean_over_seeds(tmp_path: Path) -> None:
    done = run(tmp_path, "method=lora,full", "study.replicates=3", "study.name=s", plan={"sd": 0.1})
    study = tmp_path / "multirun" / "s"
    assert done.returncode == 0, done.stderr
    [line, _] = lines(study)
    losses = [read_record(study / "0" / f"seed-{seed}")["eval"]["loss"] for seed in range(3)]
    assert line["eval_loss"] == pytest.approx(sum(losses) / 3) and line["loss_sd"] > 0
    assert read_record(study / "0")["eval"]["loss"] == line["eval_loss"]


def test_the_best_of_each_method_is_confirmed_on_unseen_seeds(tmp_path: Path) -> None:
    done = run(tmp_path, *GRID, "study.confirm_seeds=2", plan={"sd": 0.01})
    study = tmp_path / "multirun" / "s"
    assert done.returncode == 0, done.stderr
    runs = sorted(path.name for path in (study / "confirm").iterdir() if path.is_dir())
    assert runs == sorted(f"{m}-{s}" for m in ("full", "lora", "qlora") for s in (1000, 1001))
    for name in runs:
        record = read_record(study / "confirm" / name)
        assert record["status"] == "completed" and record["test"]["loss"] and record["seed"] >= 1000


def test_ctrl_c_once_ends_what_runs_and_twice_stops_it(tmp_path: Path) -> None:
    study = tmp_path / "multirun" / "s"
    process = begin(tmp_path, *GRID, plan={"step_s": 0.15})
    assert wait_for(lambda: len(lines(study)) >= 1)
    assert wait_for(lambda: workers(study))
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    drained = len(lines(study))
    assert process.returncode == 130 and drained == 2, "the running one ended, no other began"
    process = begin(tmp_path, *GRID, plan={"step_s": 0.15})
    assert wait_for(lambda: (study / "2" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert process.returncode == 130 and len(lines(study)) == drained
    assert read_record(study / "2")["status"] == "interrupted"
    assert run(tmp_path, *GRID).returncode == 0
    assert lines(study)[2]["attempts"] == 2 and len(lines(study)) == POINTS


@pytest.mark.parametrize("count", [2, 8])
def test_several_commands_work_on_one_study(tmp_path: Path, count: int) -> None:
    study = tmp_path / "multirun" / "s"
    searched = [*TPE[:-2], "study.trials=24", "study.name=s", f"hardware.gpus={count}"]
    processes = [begin(tmp_path, *searched, plan={"step_s": 0.02}) for _ in range(count)]
    for process in processes:
        assert process.wait(timeout=200) == 0, (tmp_path / "said.log").read_text()
    assert [line["number"] for line in lines(study)] == list(range(24)), "each number once, and no more than asked for"
    for number in range(24):
        assert (study / str(number) / "starts.txt").read_text().count("\n") == 1, "nobody's trial was taken over"


@pytest.mark.parametrize("storage", ["null", "sqlite:///study.db"])
def test_a_trial_that_optuna_was_told_of_gets_its_line_all_the_same(tmp_path: Path, storage: str) -> None:
    """Its process died between the two, or the machine, before the line was on the disk."""
    study = tmp_path / "multirun" / "s"
    command = [*[o.replace("trials=8", "trials=2") for o in TPE], f"study.storage={storage}"]
    assert run(tmp_path, *command).returncode == 0
    before = results(study)
    text = (study / "trials.jsonl").read_text().splitlines(keepends=True)
    (study / "trials.jsonl").write_text("".join(text[:-1]) + text[-1][:40])
    assert run(tmp_path, *command).returncode == 0
    assert results(study) == before, "the record was there"
    assert (study / "1" / "starts.txt").read_text().count("\n") == 1, "so it is not trained again"


def test_a_trial_whose_line_was_written_is_told_to_optuna_and_not_run_again(tmp_path: Path) -> None:
    command = [o.replace("trials=8", "trials=3") for o in TPE]
    assert run(tmp_path, *command).returncode == 0
    study = tmp_path / "multirun" / "s"
    before, journal = lines(study), (study / "study.journal").read_text().splitlines(keepends=True)
    told = [place for place, text in enumerate(journal) if '"op_code":6' in text and '"trial_id":2' in text]
    assert told, "Optuna's journal has another form"
    (study / "study.journal").write_text("".join(t for place, t in enumerate(journal) if place not in told))
    assert run(tmp_path, *command).returncode == 0
    assert lines(study) == before, "the same line, once"
    assert sum('"op_code":6' in text for text in (study / "study.journal").read_text().splitlines()) == 3


PROBED = ["method=lora", "study.name=s", "study.probe_steps=5", "train.max_steps=12"]


@pytest.mark.parametrize(("fault", "probes"), [("crashed", 2), ("diverged", 2), ("oom", 1)])
def test_only_memory_condemns_a_kind_of_configuration(tmp_path: Path, fault: str, probes: int) -> None:
    run(tmp_path, *PROBED, "optim.lr=1.0,1e-3", plan={"probe_faults": {"lora": fault}})
    study = tmp_path / "multirun" / "s"
    assert [line["status"] for line in lines(study)] == [fault] * 2
    assert len(list((study / "probes").glob("*/starts.txt"))) == probes, "else the next one measures again"
    for settings in (study / "probes").glob("*/config.yaml"):
        assert yaml.safe_load(settings.read_text())["optim"]["lr"] == 1e-3, "the recommended rate, whoever asks"


def test_a_limit_on_what_only_the_end_knows_is_not_judged_by_the_probe(tmp_path: Path) -> None:
    done = run(tmp_path, *PROBED, "optim.lr=1e-3,2e-3", "study.constraints={train.final_loss: 2.5}")
    assert done.returncode == 0, done.stderr
    assert all(line["status"] == "completed" for line in lines(tmp_path / "multirun" / "s"))


def test_more_trials_after_a_confirmation_are_confirmed_on_the_same_seeds(tmp_path: Path) -> None:
    command = ["method=full,lora", RATES, "study.name=s", "study.confirm_seeds=2"]
    assert run(tmp_path, *command, "study.trials=4", plan={"sd": 0.01}).returncode == 0
    confirm = tmp_path / "multirun" / "s" / "confirm"
    before = json.loads((confirm / "plan.json").read_text())
    assert run(tmp_path, *command, "study.trials=6", plan={"sd": 0.01, "effect": {"lora": -1.0}}).returncode == 0
    after = json.loads((confirm / "plan.json").read_text())
    assert after["seeds"] == before["seeds"] and after["lora"] >= 4
    for seed in after["seeds"]:
        assert read_record(confirm / f"lora-{seed}")["test"]["loss"] < 2.0, "the new best"
        assert (confirm / "earlier" / f"{before['lora']}-lora-{seed}" / "result.json").exists(), "nothing is lost"


def confirm(folder: Path, study: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeptune.cli", "compare", str(study), "--confirm", "--seeds", "2"]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=120)


def test_a_confirmation_counts_the_interrupted_trial_that_it_finishes_first(tmp_path: Path) -> None:
    command = ["method=lora", RATES, "study.name=s", "study.trials=2"]
    assert run(tmp_path, *command).returncode == 0
    study = tmp_path / "multirun" / "s"
    text = (study / "trials.jsonl").read_text().splitlines(keepends=True)
    (study / "trials.jsonl").write_text(text[0])
    (study / "1" / "result.json").unlink()
    done = confirm(tmp_path, study)
    assert done.returncode == 0 and "study s: 2 trials in" in done.stderr and "1 done" in done.stderr
    assert "(2 of 2)" in done.stderr and len(lines(study)) == 2, done.stderr
    assert len(list((study / "confirm").glob("lora-*"))) == 2
    assert find_standing(study, Leases()) == "over"


def test_a_study_that_was_left_stays_so_after_its_confirmation(tmp_path: Path) -> None:
    assert (
        run(tmp_path, "method=lora", RATES, "study.name=s", "study.trials=1", "study.confirm_seeds=2").returncode == 0
    )
    study = tmp_path / "multirun" / "s"
    assert find_standing(study, Leases()) == "over"
    header = json.loads((study / "study.json").read_text())
    header["study"]["trials"] = 2
    (study / "study.json").write_text(json.dumps(header))
    assert confirm(tmp_path, study).returncode == 0
    assert find_standing(study, Leases()) == "left" and len(lines(study)) == 1


def test_seeds_of_the_search_confirm_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "method=lora", "seed=1000,1001", "study.confirm_seeds=2", "study.name=s").returncode == 0
    plan = json.loads((tmp_path / "multirun" / "s" / "confirm" / "plan.json").read_text())
    assert len(plan["seeds"]) == 2 and not {1000, 1001} & set(plan["seeds"])


UNBROKEN = {"grid": GRID, "tpe": TPE}


@pytest.fixture(scope="module", params=["grid", "tpe"])
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[tuple]]:
    """A study that nobody disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    overrides = UNBROKEN[request.param]
    assert run(folder, *overrides, plan={"sd": 0.05}).returncode == 0
    return overrides, results(folder / "multirun" / "s")


@pytest.mark.parametrize("seed", range(int(os.environ.get("SWEEPTUNE_CHAOS", "6")) // 2))
def test_killed_at_any_moment_a_study_ends_as_if_it_had_not_been(tmp_path: Path, unbroken, seed: int) -> None:
    overrides, expected = unbroken
    luck = random.Random(f"{overrides[0]} {seed}")
    study = tmp_path / "multirun" / "s"
    plan = {"sd": 0.05, "step_s": 0.03}
    process = begin(tmp_path, *overrides, plan=plan)
    victims = set()
    for _ in range(3):
        time.sleep(luck.uniform(0.0, 5.0))
        target = luck.choice(["parent", "worker", "both"])
        running = workers(study)
        if target != "parent":
            for worker in running:
                if worker.cmdline()[2] not in victims:  # a trial that kills its workers again and again is lost
                    victims.add(worker.cmdline()[2])
                    worker.kill()
        if target != "worker" and process.poll() is None:
            process.kill()
            process.wait()
            assert wait_for(lambda: not workers(study), 5), "a worker outlives its parent"
        if process.poll() is not None:
            process = begin(tmp_path, *overrides, plan=plan)
    assert process.wait(timeout=120) == 0, (tmp_path / "said.log").read_text()
    assert results(study) == expected
    assert wait_for(lambda: not workers(study), 5)
