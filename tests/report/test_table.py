"""The four forms of a comparison."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sweeptune.report import render, show
from sweeptune.report.cells import count
from sweeptune.report.compare import load
from tests.report.conftest import Leave

EVIL = "=1+1 | <script> [bold]x[/bold]\x1b[31m\nsecond line"


def shown(folder: Path, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    render(load(folder), form)
    return capsys.readouterr().out


@pytest.fixture
def two_groups(leave: Leave, tmp_path: Path) -> Path:
    leave("0", loss=2.5, method="full", memory=4.0)
    leave("1", loss=2.1, exclusive=False)
    leave("2", loss=2.3, quality={"template": "planted"})
    leave("3", status="oom", reason=EVIL)
    return tmp_path


def test_table_has_figures_groups_and_reasons(two_groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(two_groups, "table", capsys)
    for words in (
        "3.000 -> 2.500",
        "3.000 -> 2.100*",
        "~100",
        "50.00 K  2.5",
        "1:01",
        'losses not ranked together because quality.template differs: "chatml" (0, 1) vs "planted" (2)',
        "3 oom: =1+1 | <script> [bold]x[/bold]",
        "its speed is not ranked",
        "one seed per method: differences are undecided until repeated with other seeds",
        "python train.py --multirun ... seed=0,1,2",
        "model tiny, data pydocs, seed 0, 8 steps, 4,096 tokens",
    ):
        assert words in text
    assert "\x1b" not in text
    assert "cost group" not in text


def test_best_is_marked_inside_a_comparable_set_only(two_groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line.split(" | ")[0]: line for line in shown(two_groups, "markdown", capsys).splitlines()}
    assert "**3.000 → 2.100**" in rows["| 1"], "best of group A"
    assert "**3.000" not in rows["| 2"], "alone in group B"
    assert "**3.000" not in rows["| 0"]
    assert "**1.00**" in rows["| 2"], "memory is ranked across both groups, because the cost agrees"


def test_markdown_keeps_foreign_text_from_being_markup(two_groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(two_groups, "markdown", capsys)
    assert "&lt;script&gt;" in text and "<script>" not in text and "\x1b" not in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "every row has the same number of cells"


def test_csv_is_complete_and_harmless(two_groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(shown(two_groups, "csv", capsys))))
    assert [row["name"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["quality_group"] for row in rows] == ["A", "A", "B", ""]
    assert float(rows[0]["loss"]) == 2.5
    assert rows[3]["reason"].startswith("'=1+1") and "\n" not in rows[3]["reason"]


def test_json_has_everything(two_groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(shown(two_groups, "json", capsys))
    assert [run["status"] for run in value["runs"]] == ["completed"] * 3 + ["oom"]
    assert {"kind": "quality", "group": "A", "runs": ["0", "1"]} in value["groups"]
    assert value["differences"] == [
        {"field": "quality.template", "values": {"0": "chatml", "1": "chatml", "2": "planted"}}
    ]
    assert value["ranked"]["loss"] == [{"group": "A", "seed": 0, "runs": ["1", "0"], "best": ["1"]}]
    assert value["ranked"]["tokens_per_s"][0]["runs"] == ["0", "2"]


def test_columns_come_when_runs_differ(leave: Leave, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        leave(str(seed), seed=seed, settings={"method": {"rank": 4 + seed}})
    heading = shown(tmp_path, "markdown", capsys)
    assert "| seed |" in heading and "| settings |" in heading and "rank=5" in heading
    assert "2 seeds" in heading


def test_seeds_of_one_method_are_no_longer_one_seed(
    leave: Leave, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        for method in ("full", "lora"):
            leave(f"{method}-{seed}", seed=seed, method=method)
    text = shown(tmp_path, "table", capsys)
    assert "2 seeds: losses are ranked seed by seed" in text and "one seed per method" not in text


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([{}], "one run has completed"),
        ([{"status": "oom"}, {"status": "crashed"}], "no run has completed"),
        ([{}, {"quality": {"template": "x"}, "cost": {"device": "x"}}], "no two of them may be compared"),
    ],
)
def test_nothing_ranked_is_said(
    leave: Leave, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[dict[str, Any]], reason: str
) -> None:
    for number, given in enumerate(runs):
        leave(str(number), **given)
    text = shown(tmp_path, "table", capsys)
    assert f"nothing is ranked: {reason}" in text
    assert "*" not in text.replace("python train.py", ""), "no best value where nothing is ranked"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_terminal_of_any_width_shows_whole_figures(
    leave: Leave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    for number, method in enumerate(("full", "qlora", "lora_int8")):
        leave(f"{number}", method=method, loss=2.5 - number / 10, model=f"smollm2_{number}", steps=8 + number)
    leave("3", status="oom", reason="no room " * 40)
    monkeypatch.setattr("sweeptune.report.cells.WIDE", width)
    text = shown(tmp_path, "table", capsys)
    table = text.splitlines()[1 : text.splitlines().index(next(x for x in text.splitlines() if "3 oom: " in x))]
    assert max(map(len, table)) <= width
    row = next(line for line in table if line.startswith(" 2 "))
    assert "lora_int8" in row and "3.000 -> 2.300*" in row and " 1.00* " in row and " 100* " in row
    assert ("50.00 K" in row) == (width > 80)
    assert ("not shown at this width" in text) == (width < 140)


def test_digits_of_a_column_are_aligned(leave: Leave, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave("0", memory=10.25, speed=1234.5)
    leave("1", memory=2.5, speed=99.4)
    rows = [line for line in shown(tmp_path, "table", capsys).splitlines() if line.startswith((" 0 ", " 1 "))]
    assert rows[0].index("10.25") + len("10.25") == rows[1].index("2.50") + len("2.50")
    assert rows[0].index("1,234") + len("1,234") == rows[1].index("99") + len("99")
    assert "2.50*" in rows[1] and "1,234*" in rows[0]


@pytest.mark.parametrize(
    ("parameters", "text"), [(None, "-"), (0, "0"), (999, "999"), (921_600, "921.6 K"), (4_884_480, "4.88 M")]
)
def test_counts_are_short(parameters: int | None, text: str) -> None:
    assert count(parameters) == text


def test_show_prints_the_table(two_groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(two_groups)
    assert capsys.readouterr().out == shown(two_groups, "table", capsys)


def test_runs_without_fingerprints_are_named(leave: Leave, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.report.conftest import QUALITY

    leave("0")
    leave("1", without_quality=QUALITY)
    assert "losses of 1 are not ranked: its record has no quality fingerprint" in shown(tmp_path, "table", capsys)
