"""The forms of a study: whole figures at any width, harmless text, everything for programs, and at once."""

from __future__ import annotations

import csv
import io
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sweeptune.report import show
from sweeptune.report.scatter import Dot, letters, scatter
from sweeptune.report.statistics import Pair
from sweeptune.report.studies import read_study
from sweeptune.report.study_sheets import memory_sheet, methods_sheet, pairs_sheet
from sweeptune.report.study_table import render_study
from sweeptune.report.verdict import Verdict, judge
from sweeptune.report.words import verdict_words
from tests.report.fake_study import examples, leave_confirmed, leave_search, leave_study, leave_trial

EVIL = "=1+1 | <script> [bold]x[/bold]\x1b[31m\nsecond line"
EFFECTS = {"full": 0.035, "lora": 0.0, "qlora": 0.05, "dora": 0.002}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """34 numbers over four methods, confirmed with three seeds; dora is tied with lora."""
    folder = leave_search(tmp_path / "tradeoff", 34)
    draw = random.Random(1)
    luck = {1001: 0.01, 1002: -0.004, 1003: 0.002}
    losses = {m: {s: 1.9 + x + g + draw.gauss(0, 0.002) for s, g in luck.items()} for m, x in EFFECTS.items()}
    leave_confirmed(folder, losses, examples=("test.jsonl", examples(1.9, 0.2, draw)))
    return folder


def shown(folder: Path, capsys: pytest.CaptureFixture[str], form: str = "table") -> str:
    render_study(read_study(folder), form)
    return capsys.readouterr().out


def terminal(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    def make(file: io.TextIOBase) -> Console:
        return Console(file=file, width=width, force_terminal=True, color_system=None)  # type: ignore[arg-type]

    monkeypatch.setattr("sweeptune.report.cells.Console", make)
    return shown(folder, capsys)


def test_the_table_has_every_part(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(study, capsys)
    for words in (
        "30 trials, 4 of them baselines, of full, lora, qlora, dora; model smollm2_135m_q4, data pydocs",
        "4 predicted not to fit, so never run",
        "retrained with 3 seeds that the search never used (1001, 1002, 1003)",
        "search: the lowest of several, so it flatters",
        "lora - dora   tied",
        "lora - qlora  better",
        "below 0 the first method is better",
        "hypervolume: 84.4 % of the box",
        "the baselines alone 37.6 %",
        "eval loss, over peak GiB",
        "f full, l lora, q qlora, d dora; capitals are the front",
        "Peak memory, predicted against measured",
        "median error 2.1 % over 23 kinds of configuration; worst +7.1 % (trial 23: 4.59 predicted, 4.29 measured)",
        "2  diverged  lora    5, 29   loss is not finite at step",
        "lora has the lowest test loss over 3 seeds: it is better than full and qlora, tied with dora",
    ):
        assert words in text, words
    assert "\x1b" not in text
    lines = text.splitlines()
    row = next(place for place, line in enumerate(lines) if line.lstrip().startswith("qlora       6"))
    below = "\n".join(lines[row : row + 4])
    assert "as trained 1.9" in below and "merged bf16 1.9" in below and "requantized 2.0" in below, "in qlora's row"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_terminal_of_any_width_shows_whole_figures(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    text = terminal(study, capsys, monkeypatch, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in ("-0.0", "±0.0", "12,492", "1.9037", "3.96", "rank=16", "merged bf16"):
        assert figure in text
    assert ("not shown at this width: bits/byte" in text) == (width < 120)


def test_a_sweep_ends_with_the_best_and_the_verdict(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(study)
    text = capsys.readouterr().out
    assert "Best of each method" in text and "Failures" not in text and "Pareto" not in text
    *_, headline, _, _, report = text.splitlines()
    assert headline.startswith("lora has the lowest test loss")
    assert report == f"report: {study / 'report.html'}" and (study / "report.html").exists()


def test_a_small_study_shows_every_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = leave_study(tmp_path / "demo", study={"confirm_seeds": 0})
    for number, method in enumerate(("full", "lora", "qlora")):
        leave_trial(folder, number, method, 2.0 - number / 100, kind="baseline")
    leave_trial(folder, 3, "lora", None, status="oom", reason=EVIL, params={"method": "lora", "optim.lr": 3e-5})
    text = shown(folder, capsys)
    assert "Trials of the search" in text
    assert "3  lora    lr=3e-5      oom" in text
    assert "These are search figures of one seed" in text and text.splitlines()[-1].endswith("--confirm --seeds 3")
    assert "=1+1 | <script> [bold]x[/bold] [31m second line" in text and "\x1b" not in text


def test_an_empty_study_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(leave_study(tmp_path / "s"), capsys)
    assert "0 trials of full, lora, qlora" in text and "no trial has ended yet" in text
    assert "undecided: nothing has completed" in text and "--confirm" not in text


def test_markdown_has_all_columns_and_escapes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_trial(study, 90, "full", None, status="crashed", reason=EVIL)
    text = shown(study, capsys, "markdown")
    assert "| **lora** | 13 |" not in text, "it is tied, so nobody leads"
    assert "bits/byte" in text and "trainable" in text
    assert "- lora has the lowest test loss over 3 seeds" in text
    assert "&lt;script&gt;" in text and "<script>" not in text and "\x1b" not in text
    assert "1.9595<br>as trained" in text
    blocks: dict[int, set[int]] = {}
    for place, block in enumerate(text.split("\n\n")):
        for line in block.splitlines():
            if line.startswith("|"):
                blocks.setdefault(place, set()).add(line.replace("\\|", "").count("|"))
    assert len(blocks) == 5 and all(len(widths) == 1 for widths in blocks.values())


def test_csv_has_a_line_a_trial_and_no_formula(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_trial(study, 90, "full", None, status="crashed", reason=EVIL, params={"method": "full", "=evil": "+1"})
    rows = list(csv.DictReader(io.StringIO(shown(study, capsys, "csv"))))
    assert len(rows) == 35
    assert float(rows[13]["eval_loss"]) == pytest.approx(1.9037, abs=1e-4)
    assert (rows[13]["pareto"], rows[13]["method.rank"]) == ("True", "16")
    assert rows[-1]["reason"].startswith("'=1+1") and rows[-1]["'=evil"] == "'+1"


def test_json_is_everything(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(shown(study, capsys, "json"))
    assert value["verdict"]["split"] == "test"
    assert [(p["a"], p["word"], p["b"]) for p in value["verdict"]["pairs"]][:2] == [
        ("lora", "tied", "dora"),
        ("lora", "better", "full"),
    ]
    arm = value["verdict"]["arms"][-1]
    assert (arm["method"], arm["best"], set(arm["merged"])) == (
        "qlora",
        6,
        {"as_trained", "merged_bf16", "merged_requantized"},
    )
    assert value["front"]["trials"][0] == 13 and 0 < value["front"]["covered"] < 1
    assert value["memory"]["median_error"] == pytest.approx(0.021, abs=1e-3)
    assert len(value["trials"]) == 34 and value["words"]


def test_a_terminal_without_unicode_gets_ascii(study: Path) -> None:
    code = f"from pathlib import Path; from sweeptune.report import show; show(Path({str(study)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""}, check=True
    )
    assert b"+-0.0" in done.stdout and max(done.stdout) < 128


def test_2000_trials_are_compared_in_5_seconds(tmp_path: Path) -> None:
    folder = leave_search(tmp_path / "large", 2000)
    leave_confirmed(folder, {method: {s: 1.9 + x + s / 1e5 for s in range(3)} for method, x in EFFECTS.items()})
    code = f"""
import sys
from sweeptune import cli
sys.argv = ["sweeptune", "compare", {str(folder)!r}]
try:
    cli.main()
finally:
    assert not {{"torch", "optuna", "transformers"}} & sys.modules.keys()
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, of one thread: what a clock says when nothing else runs; tests run side by side.
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    assert "1,9" in done.stdout.splitlines()[0] and "Pareto front" in done.stdout
    assert took < 5, f"{took:.1f} s"


def test_a_drawing_puts_each_point_in_its_place() -> None:
    dots = [Dot(1.0, 2.0, "a", True), Dot(3.0, 1.0, "b", True), Dot(2.0, 1.5, "c", False), Dot(3.0, 2.0, "c", False)]
    lines, outside = scatter(dots, 15, 3)
    assert lines == [
        "2 │A          c",
        "  │      c",
        "1 │           B",
        "  └────────────",
        "   1          3",
    ]
    assert outside == 0


def test_a_far_point_does_not_squeeze_the_others() -> None:
    dots = [Dot(x / 10, 2 - x / 10, "a", True) for x in range(9)]
    lines, outside = scatter([*dots, Dot(900.0, 2.0, "z", False)], 40, 9)
    assert outside == 1 and not any("z" in line for line in lines)
    assert sum(line.count("A") for line in lines) == 9
    assert scatter([Dot(1.0, 1.0, "a", True)], 20, 3)[1] == 0, "one point has no range"


def test_letters_are_free_ones() -> None:
    names = ["full", "lora", "qlora", "dora", "rslora", "pissa", "lora_int8"]
    assert letters(names) == dict(zip(names, "flqdrpo", strict=True))


def test_the_median_of_two_errors_is_between_them(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "s", ("lora",))
    for number, predicted in enumerate((2.2, 2.6)):
        given = {"predicted_gib": predicted, "peak_memory_gib": 2.0, "cost_class": str(number)}
        leave_trial(folder, number, "lora", 2.0, **given)
    [row] = memory_sheet(read_study(folder)).rows
    assert row[-2].text == "20.0 %", "of 10 and 30 %"


def test_holms_p_never_falls(tmp_path: Path) -> None:
    study = read_study(leave_study(tmp_path / "s"))
    pairs = tuple(Pair("a", "b", p=p, divisor=n) for p, n in ((0.016, 3), (0.9, 2), (0.017, 2)))
    rows = pairs_sheet(study, Verdict("test", (), (), (*pairs, Pair("a", "c")))).rows
    assert [row[-1].text for row in rows[:3]] == ["0.0480", "0.9000", "0.0480"]


def test_a_study_without_a_finished_trial_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = leave_study(tmp_path / "s", ("lora",))
    leave_trial(folder, 0, "lora", None, status="oom", seconds=61.0)
    text = shown(folder, capsys)
    assert "no method has a finished trial" in text and "0 seeds" not in text
    assert "trials' wall time" in text and "of training" not in text


def test_a_limit_that_confirmation_broke_is_said_and_the_whole_range_is_shown(tmp_path: Path) -> None:
    folder = leave_study(
        tmp_path / "s", ("full", "lora"), study={"constraints": {"peak_memory_gib": 8}, "probe_steps": 8}
    )
    leave_trial(folder, 0, "full", 2.0, peak_memory_gib=5.0)
    leave_trial(folder, 1, "lora", 1.9, peak_memory_gib=6.68)
    leave_confirmed(folder, {"full": {1: 2.0, 2: 2.01}}, memory=5.9)
    leave_confirmed(folder, {"lora": {1: 1.9, 2: 1.91}}, memory=9.15)
    study = read_study(folder)
    sheet = methods_sheet(study, judge(study))
    place = [column.heading for column in sheet.columns].index("peak GiB")
    assert {row[0].text: row[place].text for row in sheet.rows} == {"lora": "6.68 to 9.15", "full": "5.00 to 5.90"}
    said = "the limit of 8 GiB was kept in the search but not by every confirmation run: lora up to 9.15 GiB"
    assert said in verdict_words(study)
    assert f"to see what kept it: sweeptune recommend {folder} --memory 8GiB" in verdict_words(study)
    assert "tokens/s: of 3 timed steps a probe (study.probe_steps=8, 5 warm up), too few to rank by" in sheet.notes


@pytest.mark.parametrize("exclusive", [True, False, None])
def test_a_speed_that_was_not_measured_alone_is_marked(tmp_path: Path, exclusive: bool | None) -> None:
    folder = leave_study(tmp_path / "s", ("full", "lora"))
    leave_trial(folder, 0, "full", 2.0, exclusive=exclusive)
    leave_trial(folder, 1, "lora", 1.9, exclusive=exclusive)
    study = read_study(folder)
    sheet = methods_sheet(study, judge(study))
    place = [column.heading for column in sheet.columns].index("tokens/s")
    assert all(row[place].text.startswith("~") is (exclusive is False) for row in sheet.rows)
    assert any(note.startswith("~: something else") for note in sheet.notes) is (exclusive is False)
