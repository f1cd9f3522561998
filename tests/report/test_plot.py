"""Pictures for papers: what an SVG says and where its points lie, equal bytes, and errors that name the fix."""

from __future__ import annotations

import json
import re
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.report.plot import KINDS, write_plot
from sweeptune.report.plot.effects import brief
from sweeptune.report.plot.look import colours
from sweeptune.report.studies import Trial, read_study
from tests.cli.conftest import Command, sweeptune
from tests.report.fake_study import leave_metrics, leave_record, leave_search, leave_study, leave_trial, leave_whole

__all__ = ["sweeptune"]

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


class Picture:
    """An SVG as a reader sees it."""

    def __init__(self, path: Path) -> None:
        self.root = ET.parse(path).getroot()
        self.texts = ["".join(node.itertext()) for node in self.root.iter(f"{SVG}text")]

    def group(self, name: str) -> ET.Element:
        return next(node for node in self.root.iter(f"{SVG}g") if node.get("id") == name)

    def marks(self, name: str) -> list[list[tuple[float, float]]]:
        """The corners of each mark of a group, y growing upwards; a definition that is used stands for its uses."""
        group = self.group(name)
        outlines = {path.get("id"): corners(path) for path in group.iter(f"{SVG}path")}
        found = []
        for use in group.iter(f"{SVG}use"):
            x, y, outline = float(use.get("x", 0)), float(use.get("y", 0)), outlines[use.get(LINK, "")[1:]]
            found.append([(x + dx, dy - y) for dx, dy in outline])
        return found or [corners(path) for path in group.iter(f"{SVG}path")]

    def points(self, name: str) -> list[tuple[float, float]]:
        """Where the marks of a group are."""
        return [
            tuple((max(values) + min(values)) / 2 for values in zip(*mark, strict=True)) for mark in self.marks(name)
        ]  # type: ignore[misc]

    def sizes(self, name: str) -> list[float]:
        """Widths of the marks of a group."""
        return [max(x for x, _ in mark) - min(x for x, _ in mark) for mark in self.marks(name)]


def corners(path: ET.Element | None) -> list[tuple[float, float]]:
    """The points that a path goes through, y growing upwards."""
    assert path is not None
    return [(float(x), -float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d", ""))]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leave_whole(tmp_path_factory.mktemp("study") / "tradeoff")


def drawn(study: Path, tmp_path: Path, kind: str) -> Picture:
    return Picture(write_plot(study, tmp_path / f"{kind}.svg", kind))


def able(study: Path, method: str) -> list[Trial]:
    return [t for t in read_study(study).of(method) if t.status == "completed"]


def ordered(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda place: values[place])


def test_the_front_has_a_point_for_each_trial_where_it_belongs(study: Path, tmp_path: Path) -> None:
    picture = drawn(study, tmp_path, "front")
    for word in ("peak memory, GiB", "eval loss, nat/token", "limit 8", "full", "lora", "qlora", "dora"):
        assert word in picture.texts
    assert {"7.32 K tokens/s", "12.49 K tokens/s"} <= set(picture.texts)
    for place, method in enumerate(("full", "lora", "qlora", "dora")):
        own, points = able(study, method), picture.points(f"points-{place}")
        assert len(points) == len(own) > 2
        assert ordered([x for x, _ in points]) == ordered([t.peak_memory_gib or 0 for t in own]) or len(
            {t.peak_memory_gib for t in own}
        ) < len(own)
        assert ordered([y for _, y in points]) == ordered([t.eval_loss or 0 for t in own])
    # The axis is linear: the limit lies between what keeps it and what breaks it.
    border = corners(picture.group("limit").find(f"{SVG}path"))[0][0]
    for trial, (x, _) in zip(able(study, "full"), picture.points("points-0"), strict=True):
        assert (x > border) == ((trial.peak_memory_gib or 0) > 8)
    assert picture.group("front") is not None
    assert min(picture.sizes("points-1")) > max(picture.sizes("points-2")), "lora is faster than qlora"


def test_curves_end_where_their_trials_do(study: Path, tmp_path: Path) -> None:
    picture = drawn(study, tmp_path, "curves")
    ends = {}
    for place, method in enumerate(("full", "lora", "qlora", "dora")):
        ends[method] = corners(picture.group(f"best-{place}").find(f".//{SVG}path"))[-1]
    best = {m: min(t.eval_loss or 9 for t in able(study, m) if t.eligible) for m in ends}
    assert sorted(ends, key=lambda m: ends[m][1]) == sorted(best, key=lambda m: best[m])
    drawn_thin = sum(t.eval_loss is not None for t in read_study(study).of("lora")) - 1
    assert len(picture.marks("lines-1")) == drawn_thin > 2
    assert {"tokens", "eval loss, nat/token", "2 K", "8 K"} <= set(picture.texts)


def test_phases_are_stacked_to_their_peaks(study: Path, tmp_path: Path) -> None:
    picture = drawn(study, tmp_path, "memory")
    assert {"allocated", "reserved beyond", "first step", "steady", "6.40", "3.10", "2.20"} <= set(picture.texts)
    held, beyond = (
        [x for x, _ in corners(picture.group(f"full steady {kind}").find(f"{SVG}path"))]
        for kind in ("allocated", "reserved beyond")
    )
    assert max(held) == pytest.approx(min(beyond)), "one begins where the other ends"
    assert (max(held) - min(held)) / (max(beyond) - min(beyond)) == pytest.approx(0.92 / 0.08, rel=1e-3)


def test_settings_have_a_cell_for_each_method_that_has_them(study: Path, tmp_path: Path) -> None:
    picture = drawn(study, tmp_path, "settings")
    assert (
        picture.texts.count("rank") == 3 and picture.texts.count("micro_batch") == 4 and picture.texts.count("lr") == 4
    )
    points = picture.points("optim.lr lora")
    own = [t for t in able(study, "lora") if "optim.lr" in t.params]
    assert len(points) == len(own)
    assert ordered([x for x, _ in points]) == ordered([t.params["optim.lr"] for t in own])
    assert {"1e-5", "1e-4", "1e-3"} <= set(picture.texts)


def test_predictions_lie_about_the_line(study: Path, tmp_path: Path) -> None:
    picture = drawn(study, tmp_path, "predicted")
    (x0, y0), (x1, y1) = corners(picture.group("equal").find(f"{SVG}path"))
    for x, y in picture.points("points-0"):
        assert abs((x - x0) / (x1 - x0) - (y - y0) / (y1 - y0)) < 0.05
    leave_search(tmp_path / "gone", 20)
    leave_trial(
        tmp_path / "gone", 20, "full", None, status="oom", peak_memory_gib=None, predicted_gib=7.0, cost_class="x"
    )
    assert len(drawn(tmp_path / "gone", tmp_path, "predicted").points("gone-0")) == 1


def test_colours_are_the_report_s(study: Path, tmp_path: Path) -> None:
    text = write_plot(study, tmp_path / "a.svg").read_text()
    assert colours()["m0"] == "#0072b2"
    for place in range(4):
        assert colours()[f"m{place}"] in text


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_same_study_gives_the_same_bytes_and_no_date(study: Path, tmp_path: Path, ending: str) -> None:
    first, second = (write_plot(study, tmp_path / f"{name}.{ending}", "curves").read_bytes() for name in "ab")
    assert first == second and len(first) < 400_000
    assert not re.search(rb"Date|matplotlib v|Matplotlib", first)
    if ending == "png":
        assert struct.unpack(">II", first[16:24])[0] == 990, "3.3 inches at 300 dots"


def test_a_column_or_a_page_wide(study: Path, tmp_path: Path) -> None:
    for kind in ("front", "curves", "memory", "settings", "predicted"):
        width = float(
            (Picture(write_plot(study, tmp_path / "a.svg", kind)).root.get("width") or "0").removesuffix("pt")
        )
        assert width == pytest.approx(3.3 * 72, abs=0.1), kind
    wide = Picture(write_plot(study, tmp_path / "b.svg", width_in=6.9)).root.get("width")
    assert wide == "496.8pt"


def test_texts_of_users_are_neither_markup_nor_mathematics(tmp_path: Path) -> None:
    evil = "<script>$\\frac{1}{2}$&]]>\x1b\u202e and more than a picture has room for"
    folder = leave_study(tmp_path / "evil", ("_full", evil))
    for number in range(8):
        method = ("_full", evil)[number % 2]
        params = {"method": method, evil: number // 2, "data.path": f"{evil}{number % 4}"}
        leave_trial(folder, number, method, 2 + number / 100, params=params, predicted_gib=3.1, cost_class=str(number))
        leave_metrics(folder / str(number), 4)
    leave_record(folder / "1", evil, 0)
    record = json.loads((folder / "1" / "result.json").read_text())
    record["memory"]["phases"] = {evil: {"host_gib": 1.0}}
    (folder / "1" / "result.json").write_text(json.dumps(record))
    for kind in KINDS:
        picture = drawn(folder, tmp_path, kind)
        assert not list(picture.root.iter(f"{SVG}script"))
        assert any(text.startswith("<script>$\\frac{1}{2}$&") for text in picture.texts), kind
    assert " _full" in drawn(folder, tmp_path, "front").texts, "a name that matplotlib would hide"


def test_what_cannot_be_drawn_says_why(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as both:
        write_plot(study, tmp_path / "front.jpg", "fornt")
    assert re.search(r"fornt: no such picture; use front, curves, .*mean front\?", str(both.value))
    assert "front.jpg: the ending says what is written, and must be one of .svg, .png, .pdf: front.svg" in str(
        both.value
    )
    with pytest.raises(ConfigError, match=r"there is no folder .*no; make it"):
        write_plot(study, tmp_path / "no" / "a.svg")
    with pytest.raises(ConfigError, match="no such folder"):
        write_plot(tmp_path / "none", tmp_path / "a.svg")
    new = leave_study(tmp_path / "new")
    leave_trial(new, 0, "full", None, status="oom", reason="no room")
    with pytest.raises(ConfigError, match="none of its trials has completed"):
        write_plot(new, tmp_path / "a.svg")
    leave_trial(new, 1, "lora", 2.0)
    for kind, words in {
        "curves": "no trial was evaluated more than once",
        "memory": "no record of a method's best",
        "settings": "no method has 3 completed trials",
        "predicted": "no kind of configuration was both predicted and measured",
    }.items():
        with pytest.raises(ConfigError, match=f"{kind} cannot be drawn: {words}"):
            write_plot(new, tmp_path / "a.svg", kind)
    assert not (tmp_path / "a.svg").exists()
    assert len(drawn(new, tmp_path, "front").points("points-1")) == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib is not installed.*pip install -e '\.\[plot\]'"):
        write_plot(study, tmp_path / "a.svg")


def test_the_command(study: Path, tmp_path: Path, sweeptune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweeptune("plot", str(study)).out == "wrote front.svg\n" and (tmp_path / "front.svg").exists()
    assert sweeptune("plot", str(study), "curves", "--out", "c.pdf").out == "wrote c.pdf\n"
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    wrong = sweeptune("plot", str(study), "--out", "front.bmp")
    assert wrong.status == 2 and ".svg" in wrong.err


def test_values_of_settings_are_short() -> None:
    assert [brief(v) for v in (1e-4, 1.184e-4, 0.05, 16, "cosine")] == ["1e-4", "1.18e-4", "0.05", "16", "cosine"]
