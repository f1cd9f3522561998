"""The report in one HTML file: what it says, that no text of a user is markup, that it asks no network, its size."""

from __future__ import annotations

import json
import random
import re
import stat
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.report.html import watch_report, write_report
from sweeptune.report.html.records import POINTS, curve, ledger_rows, phases, proof_rows
from sweeptune.report.html.tables import sort_value
from sweeptune.report.html.write import embed
from sweeptune.report.studies import read_study
from sweeptune.report.words import verdict_words
from sweeptune.study.working import at_work
from tests.report.fake_study import (
    EFFECTS,
    leave_confirmed,
    leave_metrics,
    leave_record,
    leave_search,
    leave_study,
    leave_trial,
)

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{data}} \x1b[31m\u202e\ud800\u2028"


class Reader(HTMLParser):
    """Tags, attributes and texts of a page, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self.inside == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """34 numbers over four methods, confirmed with three seeds; dora is tied with lora."""
    folder = leave_search(tmp_path / "tradeoff", 34)
    draw = random.Random(1)
    luck = {1001: 0.01, 1002: -0.004, 1003: 0.002}
    leave_confirmed(
        folder, {m: {s: 1.9 + x + g + draw.gauss(0, 0.002) for s, g in luck.items()} for m, x in EFFECTS.items()}
    )
    return folder


def written(folder: Path) -> Reader:
    return Reader(write_report(folder).read_text(encoding="utf-8"))


def test_without_a_script_the_page_has_verdict_and_tables(study: Path) -> None:
    page = written(study)
    found = read_study(study)
    for line in verdict_words(found):
        assert line in page.text
    for words in (
        "Judged on test data with 3 unseen seeds",
        "The best configuration of each method; small: differences to full",
        "4 predicted not to fit, so never run",
        "eval loss as trained",
        "Every pair, its interval and what that makes it",
        "hypervolume:",
        "ran out of memory against the prediction: none",
        "loss is not finite at step",
    ):
        assert words in page.text
    assert [tag for tag, _ in page.tags].count("table") == 5
    headings = [a["data-label"] for tag, a in page.tags if tag == "td" and "data-label" in a]
    assert headings[:3] == ["Test loss", "Against full, nat", "Bits per byte"]


def test_the_script_is_given_what_the_other_forms_compute(study: Path) -> None:
    data = written(study).data
    assert [arm["method"] for arm in data["arms"]] == ["lora", "dora", "full", "qlora"]
    lora, _, full, _ = data["arms"]
    assert full["reference"] and full["delta"] is None and lora["against"] == "full"
    assert lora["delta"]["loss"]["word"] == "better" and lora["delta"]["loss"]["difference"] < 0
    assert data["arms"][3]["delta"]["loss"]["word"] == "worse"  # qlora, seen from full: turned with its interval
    assert 0 < data["arms"][3]["delta"]["loss"]["low"] < data["arms"][3]["delta"]["loss"]["high"]
    assert lora["delta"]["peak"] == pytest.approx(lora["peak"] / full["peak"])
    assert lora["bits"] == pytest.approx(lora["loss"] / 3)  # of the runs that are judged, not of the search
    assert lora["hours"] == pytest.approx(61 / 3600) and lora["tuning"] == pytest.approx(61 * lora["trials"] / 3600)
    assert data["limits"] == {"peak_memory_gib": 8.0}
    assert len(data["trials"]) == 34 and data["front"][0] == 13
    assert [t["n"] for t in data["trials"] if t.get("f")] == sorted(data["front"])
    assert data["trials"][5]["c"].startswith("python train.py")


def test_search_figures_are_called_that(tmp_path: Path) -> None:
    page = written(leave_search(tmp_path / "s", 20))
    assert "Search figures only: nothing is confirmed yet" in page.text
    assert "search only" in page.text and "Eval loss of the search" in page.text
    command = next(word["command"] for word in page.data["words"] if word["command"])
    assert command.startswith("sweeptune compare ") and command.endswith("--confirm --seeds 3")


def test_a_study_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    page = written(leave_study(tmp_path / "new"))
    assert "undecided: nothing has completed" in page.text and "no finished trial" in page.text
    assert "CSV" not in page.text and page.data["curves"] == []


def test_texts_of_users_stay_text(tmp_path: Path) -> None:
    folder = leave_study(tmp_path / "evil", methods=("full", EVIL), command=EVIL, name=EVIL)
    header = json.loads((folder / "study.json").read_text())
    header["fixed"] |= {"model.name": EVIL, "data.name": EVIL}
    (folder / "study.json").write_text(json.dumps(header))
    leave_trial(folder, 0, "full")
    leave_trial(folder, 1, EVIL, 1.9, params={"method": EVIL, EVIL: EVIL}, command=EVIL)
    leave_trial(folder, 2, EVIL, None, status="crashed", reason=EVIL)
    leave_record(folder / "1", EVIL, 0, quality={EVIL: EVIL, "template": EVIL})
    record = json.loads((folder / "1" / "result.json").read_text())
    record["environment"] = {"device": EVIL, "packages": {EVIL: EVIL}}
    record["memory"]["phases"] = {EVIL: {"host_gib": 1.0}}
    record["proofs"] = {EVIL: {EVIL: EVIL}}
    record["train"]["data"] = {"ledger": {"parts": [{"template": EVIL, "roles": {EVIL: {"1": [3, 2]}}}]}}
    (folder / "1" / "result.json").write_text(json.dumps(record))
    path = write_report(folder)
    raw, page = path.read_text(encoding="utf-8"), Reader(path.read_text(encoding="utf-8"))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2 and "img" not in names
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 10
    block = raw[raw.index('id="data">') + 10 :]
    block = block[: block.index("</script>")]
    assert not set("<>&\u2028\u2029") & set(block) and block.isascii()
    assert json.loads(block)["trials"][1]["c"] == EVIL  # a command is copied as it is
    assert "\x1b" not in raw and "\u202e" not in raw.replace(block, "").replace(page.scripts[-1], "")


def test_embedded_json_reads_back() -> None:
    value = {"a": "</script>&<!--\u2028\u2029é世", "b": [1, None, 2.5]}
    text = embed(value)
    assert json.loads(text) == value and not set("<>&") & set(text) and text.isascii()
    assert json.loads(embed({"a": [float("nan"), {"b": float("inf")}, 1.0]})) == {"a": [None, {"b": None}, 1.0]}


def test_the_page_asks_no_network_for_anything(study: Path) -> None:
    raw = write_report(study).read_text(encoding="utf-8")
    assert set(re.findall(r"[\w-]+://[^\s\"'`)]*", raw)) == {"http://www.w3.org/2000/svg"}
    page = Reader(raw)
    for tag, attributes in page.tags:
        assert attributes.get("src") is None
        assert tag != "link" or attributes["href"] == "data:,"
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert "innerHTML" not in raw and "eval(" not in raw and "fetch(" not in raw


def test_2000_trials_are_small_and_quick(tmp_path: Path) -> None:
    folder = leave_search(tmp_path / "large", 2000)
    leave_confirmed(folder, {method: {s: 1.9 + x + s / 1e5 for s in range(3)} for method, x in EFFECTS.items()})
    for number in range(2000):
        leave_metrics(folder / str(number), 100)
    began = time.process_time()
    path = write_report(folder)
    assert time.process_time() - began < 5
    assert path.stat().st_size < 15e6
    data = Reader(path.read_text(encoding="utf-8")).data
    assert len(data["trials"]) == 2000 and max(len(x) for _, x, _ in data["curves"]) == POINTS


def test_the_file_is_whole_or_the_old_one(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(study)
    before = path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) & 0o044

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(study)
    assert path.read_text(encoding="utf-8") == before
    assert not list(study.glob(".report.html*"))


def test_another_file_and_no_study(study: Path, tmp_path: Path) -> None:
    assert write_report(study, tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(ConfigError, match=r"--out .*cannot be written"):
        write_report(study, tmp_path / "no" / "a.html")
    with pytest.raises(ConfigError, match=r"holds no study\.json"):
        write_report(tmp_path)


def test_watching_writes_what_is_new_and_ends_with_a_page_that_rests(study: Path) -> None:
    path, seen = study / "report.html", []

    def wait(_: float) -> None:
        seen.append(path.read_text(encoding="utf-8"))
        if len(seen) == 1:
            leave_trial(study, 34, "lora", 1.7)
        elif len(seen) == 3:
            raise KeyboardInterrupt

    with at_work(study):
        assert watch_report(study, sleep=wait) == (path, "stopped by Ctrl-C; the study goes on")
    assert all('data-live="1"' in text for text in seen)
    assert '"n":34' not in seen[0] and '"n":34' in seen[1] and seen[1] == seen[2]
    assert 'data-live="0"' in path.read_text(encoding="utf-8")


def test_the_command_writes_the_report(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeptune import cli

    monkeypatch.setattr("sys.argv", ["sweeptune", "report", str(study)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and capsys.readouterr().out == f"wrote {study / 'report.html'}\n"


def test_curves_are_thin_and_forgive_torn_and_repeated_lines(tmp_path: Path) -> None:
    leave_metrics(tmp_path, 500)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 499, "tokens": 510976, "eval_loss": 1.5}\n{"tokens": 5, "eval_loss": null}\n')
        file.write('{"step": 500, "tokens": 9, "loss": 2.0}\n{"eval_loss": 1')
    tokens, losses = curve(tmp_path)
    assert len(tokens) == POINTS and (tokens[0], tokens[-1]) == (0, 510976) and (losses[0], losses[-1]) == (3.0, 1.5)
    assert curve(tmp_path / "none") == []


def test_phases_add_up_to_what_was_reserved() -> None:
    gpu = {"reserved_gib": 6.5, "allocated_gib": 5.0, "host_gib": 2.0, "paged_gib": 1.0}
    record = {"memory": {"phases": {"steady": gpu, "load": {"host_gib": 1.2}, "odd": {"host_gib": "x"}}}}
    assert phases(record) == [
        {"phase": "load", "pieces": [["resident", 1.2]]},
        {"phase": "steady", "pieces": [["allocated", 5.0], ["reserved beyond", 1.5], ["paged", 1.0]]},
    ]


def test_proofs_and_ledger_in_words() -> None:
    worst = {"step": 20, "relative_error": 0.123, "tolerance": 0.2}
    record = {"proofs": {"gradients": {"passed": 2, "worst": worst}, "packing": None}}
    assert proof_rows(record) == [
        ("gradients", "passed 2 times, worst error 12 %, 20 % allowed"),
        ("packing", "not needed by this run"),
    ]
    roles = {"user": {"1": [30, 0]}, "assistant": {"1": [10, 8], "2": [6, 2]}}
    record = {"train": {"data": {"ledger": {"parts": [{"template": "chatml", "loss_tokens": 10, "roles": roles}]}}}}
    assert ledger_rows(record) == [["chatml", "assistant", 16, 10, 1.0], ["chatml", "user", 30, 0, 0.0]]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,946", 1946.0), ("4.88 M", 4.88e6), ("4, 317.6K", 4.0), ("<0.0001", 1e-4), ("-0.03 to 1", -0.03), ("-", None)],
)
def test_cells_sort_by_their_number(text: str, value: float | None) -> None:
    assert sort_value(text) == value
