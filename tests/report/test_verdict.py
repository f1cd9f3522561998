"""From a study's folder to its words."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.report.findings import find_failures, find_front, find_predictions, why_none
from sweeptune.report.html import write_report
from sweeptune.report.studies import read_study
from sweeptune.report.study_sheets import methods_sheet
from sweeptune.report.verdict import judge
from sweeptune.report.words import verdict_words
from sweeptune.study.working import at_work, set_over
from tests.report.fake_study import example_tokens, examples, leave_confirmed, leave_record, leave_study, leave_trial

SEEDS = (1001, 1002, 1003)


def confirmed(folder: Path, draw: random.Random, effects: dict[str, float], seeds: tuple[int, ...] = SEEDS) -> Path:
    """A study whose methods differ by ``effects``, in deviations of a per-seed difference, 0.01 nat each."""
    shutil.rmtree(folder, ignore_errors=True)
    leave_study(folder, tuple(effects), study={"margin": 0.0})
    for number, method in enumerate(effects):
        leave_trial(folder, number, method, 2.0, kind="baseline")
    luck = {seed: draw.gauss(0, 0.03) for seed in seeds}
    noise = 0.01 / 2**0.5
    losses = {
        method: {seed: 1.9 + effect * 0.01 + luck[seed] + draw.gauss(0, noise) for seed in seeds}
        for method, effect in effects.items()
    }
    leave_confirmed(folder, losses)
    return folder


def words(folder: Path) -> str:
    return "\n".join(verdict_words(read_study(folder)))


def test_of_200_studies_without_a_difference_at_most_5_percent_declare_one(tmp_path: Path) -> None:
    draw, wrong = random.Random(0), 0
    for _ in range(200):
        folder = confirmed(tmp_path / "aa", draw, {"full": 0.0, "lora": 0.0, "qlora": 0.0})
        wrong += any(pair.word != "undecided" for pair in judge(read_study(folder)).pairs)
    assert wrong <= 10, f"{wrong} of 200 A/A studies declare a difference"


def test_a_planted_effect_of_three_deviations_is_found(tmp_path: Path) -> None:
    """With the four methods and three seeds of the shipped space; found: lora is better than some other method."""
    draw, found = random.Random(1), 0
    for _ in range(60):
        folder = confirmed(tmp_path / "ab", draw, {"full": 3.0, "lora": 0.0, "qlora": 3.0, "dora": 3.0})
        found += any(pair.a == "lora" and pair.word == "better" for pair in judge(read_study(folder)).pairs)
    assert found >= 0.8 * 60, f"found in {found} of 60"


def test_what_is_open_is_counted(tmp_path: Path) -> None:
    """lora and qlora differ by half a deviation: too little for three seeds, and enough for more of them."""
    folder = leave_study(tmp_path / "s", ("full", "lora", "qlora"), study={"margin": 0.001})
    for number, method in enumerate(("full", "lora", "qlora")):
        leave_trial(folder, number, method, 2.0, kind="baseline")
    lora, qlora = (
        dict(zip(SEEDS, (1.900, 1.912, 1.905), strict=True)),
        dict(zip(SEEDS, (1.909, 1.908, 1.914), strict=True)),
    )
    leave_confirmed(folder, {"full": dict.fromkeys(SEEDS, 2.5), "lora": lora, "qlora": qlora})
    assert "to decide the open pair: sweeptune compare" in words(folder)
    leave_confirmed(folder, {"full": dict.fromkeys(SEEDS, 1.9), "lora": lora, "qlora": qlora})
    assert "of the 3 open pairs: " in words(folder) or "all 3 open pairs: " in words(folder)


def test_a_winner_is_named_first(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(2), {"full": 30.0, "lora": 0.0, "qlora": 60.0})
    verdict = judge(read_study(folder))
    assert (verdict.split, verdict.seeds) == ("test", SEEDS)
    assert [arm.method for arm in verdict.arms] == ["lora", "full", "qlora"]
    assert verdict_words(read_study(folder)) == [
        "lora is best: its test loss over 3 seeds is better than full and qlora",
        "among the others, full is better than qlora",
    ]


def test_one_seed_is_undecided_and_the_command_that_would_decide_is_printed(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(2), {"full": 300.0, "lora": 0.0}, seeds=(7,))
    assert {pair.word for pair in judge(read_study(folder)).pairs} == {"undecided"}
    assert "undecided: lora has the lowest test loss, of one seed" in words(folder)
    assert f"to decide: sweeptune compare {folder} --confirm --seeds 3" in words(folder)


def test_search_figures_decide_nothing(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "a study")
    for number, (method, loss) in enumerate([("full", 9.0), ("lora", 1.0), ("lora", 1.1), ("qlora", 5.0)]):
        leave_trial(
            folder, number, method, loss, seeds=[0, 1, 2], loss_sd=0.001, params={"method": method, "x": number}
        )
    verdict = judge(read_study(folder))
    assert (verdict.split, verdict.pairs) == (None, ())
    assert [(arm.method, arm.best.number if arm.best else None) for arm in verdict.arms] == [
        ("lora", 1),
        ("qlora", 3),
        ("full", 0),
    ]
    assert words(folder).startswith(
        "undecided: lora, qlora, full. These are search figures: each method's best was chosen"
    )
    assert words(folder).endswith(f"to decide: sweeptune compare '{folder}' --confirm --seeds 3")


def test_a_study_that_was_left_goes_on_before_anything_is_confirmed(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora", "qlora"), command="python train.py -m method=full,lora,qlora")
    assert words(folder).endswith("to go on: python train.py -m method=full,lora,qlora"), "nothing has ended"
    leave_trial(folder, 0, "full", 2.0)
    assert words(folder).splitlines()[-2:] == [
        "no trial ended yet: lora and qlora; the command that began the study goes on with it",
        "to go on: python train.py -m method=full,lora,qlora",
    ]
    assert "--confirm" not in words(folder)
    with at_work(folder):
        assert "to go on" not in words(folder), "somebody is at it"
    set_over(folder, True)  # two trials were all that was asked for
    assert "no trial ended" not in words(folder) and "--confirm" in words(folder)


def test_a_command_that_had_a_password_is_not_offered(tmp_path: Path) -> None:
    folder = leave_study(
        tmp_path / "s", ("full", "lora"), command="python train.py -m study.storage=postgresql://a:b@h/d"
    )
    leave_trial(folder, 0, "full", 2.0)
    assert words(folder).endswith("no trial ended yet: lora; the command that began the study goes on with it")


def test_a_method_that_never_fits_has_been_tried(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora", "qlora"), study={"constraints": {"peak_memory_gib": 4.0}})
    leave_trial(folder, 0, "full", None, kind="misfit")
    leave_trial(folder, 1, "lora", 2.0)
    leave_trial(folder, 2, "qlora", None, status="oom")
    assert "no trial ended" not in words(folder) and "--confirm" in words(folder)
    assert "not compared: full (predicted not to fit), qlora (nothing completed inside the constraints)" in words(
        folder
    )
    study = read_study(folder)
    assert [why_none(study, method) for method in ("full", "qlora")] == [
        "predicted not to fit",
        "nothing completed inside the constraints",
    ]
    shown = "\n".join(cell.text for row in methods_sheet(study, judge(study)).rows for cell in row)
    page = write_report(folder).read_text()
    assert all(words in shown and words in page for words in ("predicted not to fit", "inside the constraints"))


def test_a_method_that_ended_behind_the_confirmation_is_not_left_out(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(2), {"full": 30.0, "lora": 0.0})
    header = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(header | {"methods": ["full", "lora", "qlora"]}))
    leave_trial(folder, 2, "qlora", 1.0)
    assert words(folder).splitlines()[-2:] == [
        "confirmation runs that did not complete: qlora: not run yet",
        f"to decide: sweeptune compare {folder} --confirm",
    ]


def test_a_grid_over_seeds_with_one_configuration_each_is_judged_on_eval(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"), study={"confirm_seeds": 0})
    for number in range(6):
        method, seed = ("full", "lora")[number % 2], number // 2
        params = {"method": method, "seed": seed}
        leave_trial(
            folder, number, method, 2.0 - (number % 2) / 2 + seed / 50 + number / 900, params=params, seeds=[seed]
        )
    verdict = judge(read_study(folder))
    assert (verdict.split, verdict.seeds) == ("eval", (0, 1, 2))
    assert "lora is best: its eval loss over 3 seeds is better than full" in words(folder)
    assert "to decide" not in words(folder)
    leave_trial(folder, 4, "full", None, status="oom", params={"method": "full", "seed": 2}, seeds=[2])
    assert judge(read_study(folder)).pairs[0].seeds == (0, 1), "a failure takes its seed away, not the verdict"


def test_replicates_of_one_configuration_are_judged_on_eval(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"), study={"replicates": 3})
    for number, (method, losses) in enumerate([("full", (2.0, 2.1, 2.05)), ("lora", (1.5, 1.61, 1.54))]):
        leave_trial(folder, number, method, sum(losses) / 3, seeds=[0, 1, 2])
        replicates = [{"seed": seed, "loss": loss} for seed, loss in enumerate(losses)]
        leave_record(folder / str(number), method, 0, replicates=replicates)
    assert [(pair.a, pair.word, pair.seeds) for pair in judge(read_study(folder)).pairs] == [
        ("lora", "better", (0, 1, 2))
    ]


@pytest.mark.parametrize("field", ["weights", "template", "budget_tokens", "test_split", "data_order"])
def test_arms_of_other_quality_are_not_compared(tmp_path: Path, field: str) -> None:
    folder = confirmed(tmp_path / "s", random.Random(3), {"full": 30.0, "lora": 0.0, "qlora": 60.0})
    leave_record(folder / "confirm" / "full-1002", "full", 1002, test=1.9, quality={field: 5000})
    reasons = {(pair.a, pair.b): pair.reason for pair in judge(read_study(folder)).pairs}
    assert f"quality.{field} differs at seed 1002" in str(reasons["lora", "full"])
    assert reasons["lora", "qlora"] is None
    assert f"lora is undecided against full: not comparable: quality.{field} differs" in words(folder)


def test_a_search_over_the_batch_size_may_end_in_different_batches(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(3), {"full": 30.0, "lora": 0.0})
    leave_trial(folder, 2, "lora", 3.0, params={"method": "lora", "train.tokens_per_step": 512})
    for seed in SEEDS:
        batch = {"tokens_per_step": 1024, "data_order": "other", "budget_tokens": 4100}
        leave_record(folder / "confirm" / f"full-{seed}", "full", seed, test=2.2 + seed / 9e4, quality=batch)
    assert judge(read_study(folder)).pairs[0].word == "better"
    for seed in SEEDS:
        batch["budget_tokens"] = 8192
        leave_record(folder / "confirm" / f"full-{seed}", "full", seed, test=2.2 + seed / 9e4, quality=batch)
    assert "budget_tokens differs" in str(judge(read_study(folder)).pairs[0].reason), (
        "twice the tokens is no batch size"
    )


def test_the_spread_over_examples_stands_beside(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"))
    half = {}
    for rows in (50, 200):
        draw = random.Random(rows)
        for method, loss in (("full", 2.0), ("lora", 1.9)):
            for seed in SEEDS:
                scores = ("test.jsonl", examples(loss, 0.3, draw, rows))
                leave_record(
                    folder / "confirm" / f"{method}-{seed}", method, seed, test=loss + seed / 1e5, examples=scores
                )
        half[rows] = judge(read_study(folder)).pairs[0].examples or 0
        tokens = [example_tokens(row) for row in range(rows)]
        error = 0.3 * (2 / 3) ** 0.5 * sum(t * t for t in tokens) ** 0.5 / sum(tokens)  # two methods, three seeds
        assert half[rows] == pytest.approx(1.98 * error, rel=0.3)
    assert half[200] < half[50]


def test_missing_confirmations_are_named(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(4), {"full": 30.0, "lora": 0.0})
    leave_record(folder / "confirm" / "full-1002", "full", 1002, status="oom", reason="no room")
    shutil.rmtree(folder / "confirm" / "lora-1003")
    text = words(folder)
    assert "did not complete: lora-1003: not run yet, full-1002: oom" in text
    assert judge(read_study(folder)).pairs[0].seeds == (1001,)


def test_open_pairs_are_told_how_many_seeds_would_decide(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"))
    leave_confirmed(folder, {"full": {1: 2.0, 2: 2.1, 3: 2.05}, "lora": {1: 1.99, 2: 2.06, 3: 2.03}})
    with at_work(folder):
        set_over(folder, True)
    text = words(folder)
    assert text.startswith("lora has the lowest test loss over 3 seeds: it is undecided against full")
    assert "nat in 80 % of studies" in text
    seeds = int(text.rpartition("--seeds ")[2])
    assert 3 < seeds <= 50


def test_joint_allocation_prints_the_unequal_tuning(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"), study={"allocate": "joint"})
    for number, method in enumerate(["full", *["lora"] * 4]):
        leave_trial(folder, number, method, 2.0, tokens=100, params={"method": method, "x": number})
    assert "(study.allocate=joint): of all tokens full 20 %, lora 80 %" in words(folder)
    equal = leave_study(tmp_path / "equal", ("full", "lora"))
    for number, method in enumerate(["full", "full", "lora", "lora", "lora"]):
        leave_trial(equal, number, method, 2.0, tokens=100, params={"method": method, "x": number})
    assert "unequal" not in words(equal), "one trial apart is as equal as trials can be"


def test_qloras_three_losses_come_from_its_confirmations_else_its_baseline(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(2), {"lora": 0.0, "qlora": 10.0})
    merged = judge(read_study(folder)).arm("qlora").merged
    assert merged is not None and merged["as_trained"].seeds == 3
    assert merged["merged_requantized"].mean - merged["as_trained"].mean == pytest.approx(0.048)
    assert judge(read_study(folder)).arm("lora").merged is None
    shutil.rmtree(folder / "confirm")
    leave_record(folder / "1", "qlora", 0, merged=(2.0, 2.1, 2.2))
    merged = judge(read_study(folder)).arm("qlora").merged
    assert merged is not None and [found.mean for found in merged.values()] == [2.0, 2.1, 2.2]


def test_trials_outside_the_constraints_are_nobodys_best(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"), study={"constraints": {"peak_memory_gib": 4}})
    leave_trial(folder, 0, "full", 1.0, constraints={"peak_memory_gib": 2.4})
    leave_trial(folder, 1, "lora", 2.0, constraints={"peak_memory_gib": -1.0})
    study = read_study(folder)
    assert judge(study).arm("full").best is None
    assert [trial.number for trial in find_front(study).trials] == [1]


def test_the_last_line_of_a_number_counts_and_torn_lines_are_passed_over(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s")
    leave_trial(folder, 1, "lora", 2.0)
    leave_trial(folder, 0, "full", None, status="lost")
    leave_trial(folder, 0, "full", 1.5, attempts=2, tomorrow="a key of a later version")
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"number": 2, "kin')
    trials = read_study(folder).trials
    assert [(trial.number, trial.status, trial.attempts) for trial in trials] == [
        (0, "completed", 2),
        (1, "completed", 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read as JSON"), ("[]", "must hold a JSON object"), ('{"schema": 2}', "schema is 2")],
)
def test_a_header_that_cannot_be_read_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path)


def test_other_folders_are_no_studies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no study\.json"):
        read_study(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        read_study(tmp_path / "missing")


def test_failures_that_differ_in_numbers_only_are_one(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s")
    for number, reason in enumerate(["7.9 GiB are not enough", "8.1 GiB are not enough", "segmentation fault"]):
        leave_trial(folder, number, "full", None, status="oom" if number < 2 else "crashed", reason=reason)
    leave_trial(folder, 3, "full", 2.0, status="pruned", reason="behind")
    leave_trial(folder, 4, "full", None, status="pruned", kind="misfit", reason="predicted not to fit")
    assert [(f.status, f.numbers, f.reason) for f in find_failures(read_study(folder))] == [
        ("oom", (0, 1), "7.9 GiB are not enough"),
        ("crashed", (2,), "segmentation fault"),
    ]


def test_predictions_are_judged_once_a_kind_by_the_probe(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s")
    for number in range(3):
        given = {"predicted_gib": 4.2, "cost_class": "a", "params": {"method": "lora", "optim.lr": number}}
        leave_trial(folder, number, "lora", 2.0, **given)
    leave_trial(folder, 3, "full", None, status="oom", predicted_gib=7.0, cost_class="b", peak_memory_gib=None)
    leave_trial(folder, 4, "full", None, status="pruned", kind="misfit", predicted_gib=9.0, cost_class="c")
    leave_record(folder / "probes" / "a", "lora", 0, memory=4.0)
    found = find_predictions(read_study(folder))
    assert [(p.cost_class, p.predicted_gib, p.measured_gib) for p in found.points] == [
        ("a", 4.2, 4.0),
        ("b", 7.0, None),
    ]
    assert found.median_error == pytest.approx(0.05)
    assert (found.misfits, [p.number for p in found.surprises]) == (1, [3])


def test_the_front_is_over_the_studys_objectives(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", study={"objectives": ["eval_loss", "tokens_per_s"]})
    for number, (loss, speed) in enumerate([(2.0, 100.0), (1.9, 50.0), (2.1, 90.0), (2.2, 200.0)]):
        kind = "baseline" if number == 0 else "trial"
        leave_trial(folder, number, "lora", loss, tokens_per_s=speed, kind=kind)
    found = find_front(read_study(folder))
    assert [trial.number for trial in found.trials] == [1, 0, 3], "speed grows better"
    assert found.covered is not None and found.by_baselines is not None
    assert 0 < found.by_baselines < found.covered <= 1
    assert found.reference["tokens_per_s"] == pytest.approx(35.0)
    json.dumps(found.reference)


def test_the_fronts_corner_keeps_its_sign(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", study={"objectives": ["eval_loss", "tokens_per_s"]})
    for number, (loss, speed) in enumerate([(2.0, 1000.0), (1.9, 50.0)]):
        leave_trial(folder, number, "lora", loss, tokens_per_s=speed)
    assert find_front(read_study(folder)).reference["tokens_per_s"] == pytest.approx(50 - 95)


def test_a_better_trial_after_the_confirmation_leaves_its_method_undecided(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "s", random.Random(1), {"full": 0.0, "lora": -40.0})
    assert "lora is best" in words(folder)
    leave_trial(folder, 7, "full", 1.5, params={"method": "full", "optim.lr": 1e-4})
    found = judge(read_study(folder))
    assert [pair.word for pair in found.pairs] == ["undecided"]
    assert "trial 7 of full came after" in words(folder) and "--confirm" in words(folder)
