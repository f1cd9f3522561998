"""What is recommended inside a limit, and on what evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.report.recommend import parse_memory, recommend
from sweeptune.report.recommend_text import render_recommendation
from sweeptune.report.studies import read_study
from tests.report.fake_study import leave_confirmed, leave_record, leave_study, leave_trial

SEEDS = (1001, 1002, 1003)


def around(loss: float, spread: float = 0.001) -> dict[int, float]:
    """Three test losses of one method."""
    return {seed: loss + (place - 1) * spread + loss * place / 1e5 for place, seed in enumerate(SEEDS)}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """full 6.4 GiB and 9,100 tokens/s, lora 3.1 and 12,400, qlora 2.2 and 7,300; lora is best, then full."""
    folder = leave_study(tmp_path / "s")
    leave_trial(folder, 0, "full", 1.95, params={"method": "full", "optim.lr": 1e-5})
    leave_trial(folder, 1, "lora", 1.90, params={"method": "lora", "method.rank": 16})
    leave_trial(folder, 2, "qlora", 2.00)
    leave_trial(folder, 3, "lora", 1.92, peak_memory_gib=2.5, params={"method": "lora", "method.rank": 4})
    leave_trial(folder, 4, "full", None, status="oom", peak_memory_gib=None)
    leave_confirmed(folder, {"full": around(1.93), "lora": around(1.88), "qlora": around(1.98)})
    return folder


def choice(folder: Path, memory: float | None = None, speed: float | None = None) -> tuple[int, str, int | None]:
    found = recommend(read_study(folder), memory, speed)
    return found.chosen.trial.number, found.chosen.split, found.runner_up.trial.number if found.runner_up else None


def test_the_confirmed_best_is_taken_where_it_fits(study: Path) -> None:
    assert choice(study) == (1, "test", 0)
    assert choice(study, memory=3.1) == (1, "test", 2), "a limit is met by what equals it"
    found = recommend(read_study(study), 8.0)
    assert found.chosen.loss.mean == pytest.approx(1.88, abs=0.001) and found.chosen.loss.seeds == 3
    assert found.pair is not None and (found.pair.a, found.pair.word) == ("lora", "better")
    assert (found.fitting, found.measured) == (4, 4)


def test_an_unconfirmed_configuration_wins_only_by_more_than_the_margin(study: Path) -> None:
    assert choice(study, memory=2.6) == (3, "eval", 2), "1.92 in the search against the confirmed qlora's 2.00"
    leave_trial(study, 3, "lora", 1.995, peak_memory_gib=2.5)
    assert choice(study, memory=2.6) == (2, "test", 3)


def test_speed_is_a_limit_too(study: Path) -> None:
    assert choice(study, speed=10_000) == (1, "test", None)
    assert choice(study, memory=3.0, speed=12_000) == (3, "eval", None)


def test_of_tied_methods_the_fastest_is_taken(study: Path) -> None:
    leave_confirmed(study, {"full": around(1.880, 0.01), "lora": around(1.882, 0.01), "qlora": around(1.98, 0.01)})
    found = recommend(read_study(study))
    assert (found.chosen.trial.method, found.why) == (
        "lora",
        "tied with full, which has the lowest test loss, and faster",
    )


def test_without_confirmation_the_search_decides_and_says_so(study: Path) -> None:
    for path in (study / "confirm").rglob("*.json"):
        path.unlink()
    found = recommend(read_study(study), 8.0)
    assert (found.chosen.trial.number, found.chosen.split, found.pair) == (1, "eval", None)
    assert found.chosen.loss.low is None, "one seed has no interval"
    leave_trial(study, 1, "lora", 1.90, seeds=[0, 1, 2], loss_sd=0.01)
    loss = recommend(read_study(study), 8.0).chosen.loss
    assert loss.half == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)


def test_a_search_figure_borrows_the_spread_that_its_methods_confirmation_showed(study: Path) -> None:
    loss = recommend(read_study(study), 2.6).chosen.loss
    assert loss.seeds == 1 and loss.half == pytest.approx(4.303 * 0.001, rel=0.05)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"memory_gib": 2.0},
            r"2\.00GiB: no completed configuration fits; the smallest needs 2\.20 GiB \(trial 2, qlora",
        ),
        ({"min_tokens_per_s": 5e4}, "the fastest has 12,400 "),
        ({"memory_gib": 2.3, "min_tokens_per_s": 12e3}, "keeps 2.30 GiB and 12000 tokens/s together"),
    ],
)
def test_what_cannot_be_is_explained(study: Path, limits: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recommend(read_study(study), **limits)


def test_a_study_without_a_completed_trial_has_nothing_to_recommend(tmp_path: Path) -> None:
    leave_trial(leave_study(tmp_path / "s"), 0, "full", None, status="oom")
    with pytest.raises(ConfigError, match="nothing to recommend"):
        recommend(read_study(tmp_path / "s"), 8.0)


@pytest.mark.parametrize(
    ("text", "gib"),
    [("8GiB", 8.0), ("8", 8.0), ("8g", 8.0), ("24 GB", 22.3517), ("512MiB", 0.5), ("1.5gib", 1.5)],
)
def test_sizes_are_read(text: str, gib: float) -> None:
    assert parse_memory(text) == pytest.approx(gib, rel=1e-4)


@pytest.mark.parametrize("text", ["eight", "-8GiB", "0GiB", "8TiBs", "", "8 bananas"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give a size such as 8GiB"):
        parse_memory(text)


def test_it_prints_the_exact_command_last(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = read_study(study)
    render_recommendation(loaded, recommend(loaded, 3.3))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("s within 3.30 GiB: 3 of 4 configurations fit")
    assert lines[-1] == "python train.py model=smollm2_135m_q4 data=pydocs method=lora method.rank=16"
    text = "\n".join(lines)
    for words in ("lora, trial 1: rank=16", "3.10 GiB, 0.20 GiB below the limit", "a CUDA context comes on top"):
        assert words in text
    assert "runner-up    qlora, trial 2" in text and "lora is better than qlora: 0.1000 nat lower" in text


def test_it_says_how_a_study_goes_on_that_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = leave_study(tmp_path / "s", ("full", "lora"), command="python train.py -m method=full,lora")
    leave_trial(study, 0, "full")
    render_recommendation(read_study(study), recommend(read_study(study)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("no trial ended yet: lora; ") and lines[-1].startswith("python train.py model=")
    assert lines[1].endswith("; to go on: python train.py -m method=full,lora")
    assert lines[0].endswith("s: 1 measured") and lines[2].split() == ["use", "full,", "trial", "0"]
    leave_trial(study, 1, "lora")
    render_recommendation(read_study(study), recommend(read_study(study)))
    assert "to go on" not in capsys.readouterr().out


def test_json_is_all_of_it(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = read_study(study)
    render_recommendation(loaded, recommend(loaded, 8.0), as_json=True)
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert value["chosen"]["trial"]["number"] == 1 and value["pair"]["word"] == "better"
    assert value["command"].startswith("python train.py")


def test_swept_seeds_are_judged_by_their_mean_and_not_by_luck(tmp_path: Path) -> None:
    leave_study(tmp_path, ("full", "lora"))
    for number, (method, loss) in enumerate(
        [("full", 1.90), ("full", 2.06), ("full", 2.05), ("lora", 1.95), ("lora", 1.951), ("lora", 1.949)]
    ):
        leave_trial(tmp_path, number, method, loss, params={"method": method, "seed": number % 3}, seeds=[number % 3])
        leave_record(tmp_path / str(number), method, number % 3, loss=loss)
    found = recommend(read_study(tmp_path))
    assert found.chosen.trial.method == "lora" and found.chosen.loss.mean == pytest.approx(1.95)


def test_a_confirmation_that_needed_more_memory_counts(tmp_path: Path) -> None:
    leave_study(tmp_path, ("lora",))
    leave_trial(tmp_path, 0, "lora", 1.9, peak_memory_gib=7.9)
    leave_confirmed(tmp_path, {"lora": {1001: 1.9, 1002: 1.91}}, memory=8.4)
    assert recommend(read_study(tmp_path), memory_gib=8.5).chosen.peak_gib == (7.9, 8.4)
    with pytest.raises(ConfigError, match="no completed configuration fits"):
        recommend(read_study(tmp_path), memory_gib=8.0)


def test_what_one_configuration_needed_counts_for_all_that_cost_the_same(tmp_path: Path) -> None:
    leave_study(tmp_path, ("lora",))
    leave_trial(tmp_path, 0, "lora", 1.9, peak_memory_gib=7.9, cost_class="eight rows")
    leave_trial(tmp_path, 1, "lora", 2.0, peak_memory_gib=7.9, cost_class="eight rows")
    leave_trial(tmp_path, 2, "lora", 2.1, peak_memory_gib=5.0, cost_class="four rows")
    leave_confirmed(tmp_path, {"lora": {1001: 1.9, 1002: 1.91}}, memory=8.4)
    assert recommend(read_study(tmp_path), memory_gib=8.0).chosen.trial.number == 2
