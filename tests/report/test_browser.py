"""The report in a real browser: it opens from disk, asks no network, and works for mouse, finger, keyboard and reader.

Without a browser these tests are skipped; with SWEEPTUNE_BROWSER=required, as `.ci/run` sets it, they fail.
"""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from docs.picture import open_browser
from sweeptune.config.errors import ConfigError
from sweeptune.report.html import write_report
from sweeptune.report.preview import parse_split, preview
from sweeptune.report.preview_html import write_html
from sweeptune.report.studies import Trial, read_study
from tests.report.fake_study import leave_metrics, leave_record, leave_search, leave_study, leave_trial, leave_whole

Open = Callable[..., Any]
WIDE, PHONE = (1440, 900), (390, 844)
OPEN_S, LARGEST = 3.0, 15e6
"""What a study of 2,000 trials may take to open, and its bytes."""
LOOK = Path(__file__).with_name("look.js")
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    opened = open_browser()
    try:
        found = opened.__enter__()
    except ConfigError as error:
        if os.environ.get("SWEEPTUNE_BROWSER") == "required":
            pytest.fail(f"SWEEPTUNE_BROWSER=required: {error}")
        pytest.skip(str(error))
    yield found
    opened.__exit__(None, None, None)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods, 34 numbers, something in every section."""
    folder = leave_whole(tmp_path_factory.mktemp("study") / "tradeoff")
    write_report(folder)
    return folder


@pytest.fixture
def opening(browser: Any) -> Iterator[Open]:
    """``opening(path, PHONE, color_scheme="dark")`` is a page; what it says or asks for beside its file is an error."""
    contexts, wrong = [], []

    def make(path: Path, size: tuple[int, int] = WIDE, **given: Any) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, accept_downloads=True, **given)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        own = path.resolve().as_uri()
        page.on("request", lambda r: None if r.url == own or r.url.startswith("blob:") else wrong.append(r.url))
        page.goto(own)
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


def draw_all(page: Any) -> Any:
    """Come near every section, so that it is drawn."""
    for section in page.locator("main section").all():
        section.scroll_into_view_if_needed()
    page.locator("#trials tbody tr").first.wait_for()
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    return page


def copied(page: Any) -> str:
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def column(page: Any, table: str, place: int) -> list[str]:
    """The texts of a column, without what stands small below a figure."""
    cells = page.locator(f"{table} tbody tr > :nth-child({place})").all()
    return [cell.inner_text().split("\n")[0].strip() for cell in cells]


def best(study: Path, method: str) -> Trial:
    return min((t for t in read_study(study).of(method) if t.eligible), key=lambda t: t.eval_loss or 9.0)


def at_point(page: Any, trial: Trial) -> tuple[float, float]:
    """Where a trial's point of the scatter is on the screen."""
    page.locator("#pareto").scroll_into_view_if_needed()
    node = page.locator(f'#pareto [role="button"][aria-label^="trial {trial.number},"]')
    node.scroll_into_view_if_needed()
    box = node.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1440", "390"])
def test_every_section_is_drawn_and_the_page_never_scrolls_sideways(study: Path, opening: Open, size: Any) -> None:
    page = draw_all(opening(study / "report.html", size))
    for part, least in {"pareto": 15, "curves": 4, "pairs": 6, "phases": 24, "effects": 20, "predicted": 15}.items():
        assert page.locator(f"#{part} .plot :is(path, rect)").count() >= least, part
    assert page.locator("#trials tbody tr").count() == 34
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    shown = page.locator("nav a").all_inner_texts()
    assert shown[0] == "Verdict" and len(shown) == page.locator("main section").count()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1440", "390"])
def test_words_of_an_axis_do_not_lie_on_each_other(study: Path, opening: Open, size: Any) -> None:
    page = draw_all(opening(study / "report.html", size))
    page.evaluate(LOOK.read_text())
    assert page.evaluate("look.overlaps()") == []
    page.evaluate("""() => { const plot = document.querySelector('#pareto .plot'), text = plot.querySelector('text');
                             plot.append(text.cloneNode(true)); }""")
    assert len(page.evaluate("look.overlaps()")) == 1, "an overlap is seen"


def test_a_table_sorts_both_ways_and_unknown_values_stay_last(study: Path, opening: Open) -> None:
    page = draw_all(opening(study / "report.html"))
    head = page.locator("#verdict thead th", has_text="Peak memory")
    head.get_by_role("button").click()
    order = sorted(["full", "lora", "qlora", "dora"], key=lambda m: best(study, m).peak_memory_gib or 0)
    names = page.locator("#verdict .arm .name")
    assert names.all_inner_texts() == order and head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert names.all_inner_texts() == order[::-1] and head.get_attribute("aria-sort") == "descending"
    page.locator("#trials thead button", has_text="eval loss").click()
    losses = {t.number: t.eval_loss for t in read_study(study).trials}
    known = sorted((n for n in losses if losses[n] is not None), key=lambda n: losses[n] or 0)
    unknown = sorted(n for n in losses if losses[n] is None)
    assert unknown and column(page, "#trials", 1) == [str(n) for n in known + unknown]
    page.locator("#trials thead button", has_text="eval loss").click()
    assert column(page, "#trials", 1) == [str(n) for n in known[::-1] + unknown]


def test_trials_are_filtered_and_the_csv_is_what_is_shown(study: Path, opening: Open) -> None:
    page = draw_all(opening(study / "report.html"))
    page.get_by_label("All methods").select_option("qlora")
    page.get_by_label("All endings").select_option("completed")
    page.get_by_label("Filter by text").fill("rank=64")
    found = [t for t in read_study(study).of("qlora") if t.status == "completed" and t.params.get("method.rank") == 64]
    assert found and column(page, "#trials", 1) == [str(t.number) for t in found]
    assert f"{len(found)} of 34 trials shown" in page.locator("#trials").inner_text()
    with page.expect_download() as caught:
        page.locator("#trials .tools").get_by_role("button", name="CSV").click()
    assert caught.value.suggested_filename == "tradeoff-trials.csv"
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
    assert [int(row["trial"]) for row in rows] == [t.number for t in found]
    for row, trial in zip(rows, found, strict=True):
        assert float(row["eval loss"]) == pytest.approx(trial.eval_loss, rel=1e-5)
        assert float(row["optim.lr"]) == pytest.approx(trial.params["optim.lr"], rel=1e-5)
        assert row["command"] == trial.command


def test_the_table_by_method_exports_a_column_for_each_figure(study: Path, opening: Open) -> None:
    page = opening(study / "report.html")
    with page.expect_download() as caught:
        page.locator("#verdict caption").get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
    assert [row["method"] for row in rows] == ["lora", "dora", "full", "qlora"]
    lora, full = rows[0], rows[2]
    assert float(lora["difference"]) == pytest.approx(float(lora["test loss"]) - float(full["test loss"]), abs=1e-6)
    assert float(lora["peak memory GiB ratio"]) == pytest.approx(
        float(lora["peak memory GiB"]) / float(full["peak memory GiB"])
    )
    assert full["difference"] == "" and lora["word"] == "better"


def test_a_point_shows_its_settings_and_a_click_copies_its_command(study: Path, opening: Open) -> None:
    page = opening(study / "report.html")
    trial = best(study, "lora")
    page.mouse.move(*at_point(page, trial))
    tip = page.locator("[data-tip]")
    assert tip.is_visible()
    for words in (
        f"trial {trial.number}, lora",
        "lr=4.44e-6 rank=16 micro_batch=2",
        f"eval loss {trial.eval_loss:.4f}",
    ):
        assert words in tip.inner_text()
    page.mouse.click(*at_point(page, trial))
    assert copied(page) == trial.command and page.locator("#pareto .picked code").inner_text() == trial.command
    assert page.get_by_role("status").inner_text() == f"Command of trial {trial.number} copied"
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_without_a_clipboard_the_command_is_copied_the_old_way(study: Path, opening: Open) -> None:
    page = opening(study / "report.html")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')) }")
    trial = best(study, "dora")
    page.mouse.click(*at_point(page, trial))
    page.get_by_role("status").filter(has_text="copied").wait_for()
    assert copied(page) == trial.command
    page.evaluate("() => { document.execCommand = () => false }")
    page.mouse.click(*at_point(page, best(study, "full")))
    page.get_by_role("status").filter(has_text="does not allow copying").wait_for()
    assert copied(page) == trial.command, "nothing else was copied, and it said so"
    assert page.locator("#pareto .picked code").inner_text() == best(study, "full").command


def test_a_finger_on_a_phone_finds_a_point(study: Path, opening: Open) -> None:
    page = opening(study / "report.html", PHONE, has_touch=True, is_mobile=True)
    trial = best(study, "lora")
    page.touchscreen.tap(*at_point(page, trial))
    page.locator("#pareto .picked code").wait_for()
    assert copied(page) == trial.command
    box = page.locator("[data-tip]").bounding_box()
    assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0])


def test_the_keyboard_reaches_points_moves_between_them_and_copies(study: Path, opening: Open) -> None:
    page = opening(study / "report.html")
    focused = "document.activeElement.closest('#pareto') && document.activeElement.getAttribute('aria-label')"
    for _ in range(60):
        page.keyboard.press("Tab")
        if (label := page.evaluate(focused)) and label.startswith("trial "):
            break
    else:
        pytest.fail("60 times Tab did not reach a point of the scatter")
    assert page.locator("[data-tip]").is_visible() and "Enter copies" in page.locator("[data-tip]").inner_text()
    assert page.locator("#pareto .hot").get_attribute("d"), "the point is marked"
    page.keyboard.press("ArrowRight")
    label = page.evaluate(focused)
    number = int(label.split(",")[0].removeprefix("trial "))
    memory = sorted(t.peak_memory_gib for t in read_study(study).trials if t.status == "completed")
    page.keyboard.press("Enter")
    trial = read_study(study).trial(number)
    assert trial is not None and copied(page) == trial.command and trial.peak_memory_gib == memory[1]
    page.keyboard.press("Escape")
    assert not page.locator("[data-tip]").is_visible()
    page.keyboard.press("Tab")
    assert not (page.evaluate(focused) or "").startswith("trial "), "one stop for a drawing, not one for each point"


def test_themes_switch_and_stay(study: Path, opening: Open) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page = opening(study / "report.html", color_scheme="light")
    light, dark = "rgb(255, 255, 255)", "rgb(20, 22, 26)"
    assert page.evaluate(paper) == light
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(paper) == dark
    page.reload()
    assert (
        page.evaluate(paper) == dark and page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"
    )
    page.get_by_role("button", name="Auto").click()
    assert page.evaluate(paper) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == dark
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(paper) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(study: Path, opening: Open, scheme: str) -> None:
    page = draw_all(opening(study / "report.html", color_scheme=scheme))
    page.evaluate(LOOK.read_text())
    assert page.evaluate("look.texts()") > 400
    assert page.evaluate("look.faint()") == []
    page.evaluate(
        "document.querySelector('.verdict').style.color = 'gray'; document.querySelector('.facts').style.opacity = .5"
    )
    assert len(page.evaluate("look.faint()")) >= 3, "what is too faint is seen"


def test_a_screen_reader_finds_names_landmarks_and_headings(study: Path, opening: Open) -> None:
    page = draw_all(opening(study / "report.html"))
    session = page.context.new_cdp_session(page)
    nodes = [n for n in session.send("Accessibility.getFullAXTree")["nodes"] if not n.get("ignored")]

    def named(*roles: str) -> list[str]:
        return [n.get("name", {}).get("value", "") for n in nodes if n["role"]["value"] in roles]

    for roles, least in {
        ("button", "link"): 60,
        ("searchbox", "combobox"): 3,
        ("table",): 8,
        ("image", "img"): 5,
        ("region",): 12,
    }.items():
        names = named(*roles)
        assert len(names) >= least and all(name.strip() for name in names), roles
    for landmark in ("banner", "main", "navigation", "contentinfo"):
        assert len(named(landmark)) == 1, landmark
    levels = [int(h.evaluate("h => h.tagName[1]")) for h in page.locator("h1, h2, h3, h4").all()]
    assert levels.count(1) == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("html").get_attribute("lang") == "en" and page.title() == "tradeoff: sweeptune report"


def test_a_method_can_be_hidden_in_the_drawings(study: Path, opening: Open) -> None:
    page = draw_all(opening(study / "report.html"))
    points = page.locator('#pareto [role="button"]')
    before, own = points.count(), page.locator("#pareto .dot.m0").count()
    page.locator("[data-legend]").get_by_role("button", name="full").click()
    assert own and points.count() == before - own and page.locator("#curves .m0").count() == 0
    page.locator("[data-legend]").get_by_role("button", name="full").click()
    assert points.count() == before


def test_printed_it_is_light_whole_and_without_buttons(study: Path, opening: Open) -> None:
    page = opening(study / "report.html", color_scheme="dark")
    page.evaluate("""() => addEventListener("beforeprint", () => { window.widths =
                     [...document.querySelectorAll(".plot")].map((plot) => plot.viewBox.baseVal.width); })""")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    for part in ("pareto", "curves", "phases", "effects", "predicted"):
        assert page.locator(f"#{part} .plot").count(), f"{part} is drawn for the paper without being looked at"
    assert page.locator("#trials tbody tr").count() == 34
    widths = page.evaluate("window.widths")
    assert len(widths) > 15 and max(widths) <= 680, "drawn for the paper, not a wide screen's drawing made small"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for gone in (".switches", "nav", ".tools", "caption .button", ".offer"):
        assert not page.locator(gone).first.is_visible(), gone
    page.set_viewport_size({"width": 680, "height": 900})  # A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") == 680
    assert min(cell.bounding_box()["width"] for cell in page.locator("#trials td.wrap").all()) > 55, (
        "no word a letter a line"
    )
    page.evaluate(LOOK.read_text())
    assert page.evaluate("look.faint()") == []


def test_without_scripts_verdict_and_tables_are_there(study: Path, opening: Open) -> None:
    page = opening(study / "report.html", java_script_enabled=False)
    assert "lora has the lowest test loss" in page.locator("#verdict").inner_text()
    assert page.locator("#verdict tbody tr").count() == 4 and page.locator("#environment tbody tr").count() > 20
    assert page.locator(".host, thead button").count() == 0, "no script has run"


def test_a_page_of_a_running_study_loads_itself_anew_until_it_is_told_not_to(study: Path, opening: Open) -> None:
    path = write_report(study, study / "live.html", live=True)
    page = opening(path)
    page.clock.install()
    page.reload()
    page.evaluate("window.before = true")
    with page.expect_navigation():
        page.clock.run_for(10_500)
    assert page.evaluate("window.before") is None
    page.locator("#trials").scroll_into_view_if_needed()
    page.get_by_label("Filter by text").fill("lora")
    page.evaluate("window.before = true")
    page.clock.run_for(30_000)
    assert page.evaluate("window.before") is True, "not while somebody filters"
    page.get_by_label("Filter by text").fill("")
    page.get_by_role("button", name="pause").click()
    page.evaluate("window.before = true")
    page.clock.run_for(30_000)
    assert page.evaluate("window.before") is True


HOSTILE = (
    "</script><script>window.flag=1</script><img src=x onerror=window.flag=2><svg onload=window.flag=3>\"'><b>bold</b>"
)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1440", "390"])
def test_markup_in_names_and_messages_stays_text(tmp_path: Path, opening: Open, size: Any) -> None:
    folder = leave_study(tmp_path / "evil", ("full", HOSTILE), name=HOSTILE, command=HOSTILE)
    leave_trial(folder, 0, "full", 2.1, reason=None, command=HOSTILE)
    for number in (1, 2, 3):
        params = {"method": HOSTILE, "optim.lr": 10.0**-number, "data.path": HOSTILE, HOSTILE: HOSTILE}
        leave_trial(folder, number, HOSTILE, 1.9 + number / 100, params=params, command=HOSTILE, predicted_gib=3.1)
        leave_metrics(folder / str(number), 5)
    long = "a row without a space " + "x" * 400
    leave_trial(folder, 4, HOSTILE, None, status="crashed", reason=f"row 7: {HOSTILE} {long}")
    leave_record(folder / "1", HOSTILE, 0, quality={HOSTILE: HOSTILE})
    page = draw_all(opening(write_report(folder), size))
    assert page.evaluate("window.flag") is None
    assert page.locator("img, b, [onload], [onerror]").count() == 0 and page.locator("script").count() == 2
    for place in ("h1", "#verdict .arm .name", "#failures tbody", "#trials tbody", "#environment"):
        assert HOSTILE in " ".join(page.locator(place).all_inner_texts()), place
    page.mouse.move(*at_point(page, best(folder, HOSTILE)))
    assert HOSTILE in page.locator("[data-tip]").inner_text()
    page.mouse.click(*at_point(page, best(folder, HOSTILE)))
    assert copied(page) == HOSTILE and page.evaluate("window.flag") is None
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    with page.expect_download() as caught:
        page.locator("#trials .tools").get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
    assert rows[1]["method"] == HOSTILE


def test_markup_in_rows_of_a_dataset_stays_text(tmp_path: Path, opening: Open, settings: Any) -> None:
    rows = [{"question": f"{HOSTILE} {i}?", "answer": f"{i} {HOSTILE}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(f"data.path={tmp_path / 'rows.jsonl'}", "data.max_length=1024", "train.tokens_per_step=2048")
    write_html(preview(config, parse_split("train"), 3), tmp_path / "rows.html")
    page = opening(tmp_path / "rows.html")
    assert page.evaluate("window.flag") is None and page.locator("img, b, svg").count() == 0
    assert "<script>window.flag=1</script>" in page.locator("body").inner_text().replace("\n", "")


def test_2000_trials_open_in_three_seconds(tmp_path: Path, opening: Open) -> None:
    folder = leave_search(tmp_path / "large", 2000)
    for number in range(2000):
        leave_metrics(folder / str(number), 60)
    path = write_report(folder)
    assert path.stat().st_size < LARGEST
    times = []
    for _ in range(3):  # the least: what else the machine does can only add to it
        began = time.perf_counter()
        page = opening(path)
        page.locator("#pareto").scroll_into_view_if_needed()
        page.locator("#pareto .plot").wait_for()
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        times.append(time.perf_counter() - began)
    assert min(times) < OPEN_S, times
    began = time.perf_counter()
    draw_all(page)
    assert page.locator("#trials tbody tr").count() == 100, "a hundred rows are shown, the rest on demand"
    page.locator("#trials thead button", has_text="eval loss").click()
    assert time.perf_counter() - began < 3 * OPEN_S


def picture(*arguments: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python docs/picture.py ...``, which opens a browser of its own and so needs a process of its own."""
    command = [sys.executable, str(ROOT / "docs" / "picture.py"), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


def test_the_picture_of_the_readme_is_taken_from_any_study(study: Path, browser: Any, tmp_path: Path) -> None:
    del browser  # asked for so that this is skipped without one
    done = picture(study, tmp_path / "report.png")
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "report.png").read_bytes()
    size = struct.unpack(">II", content[16:24])  # of the PNG's header
    assert size[0] == 2400 and 1800 < size[1] < 4000 and len(content) < 400_000
    wrong = picture(tmp_path, tmp_path / "b.png")
    assert wrong.returncode == 2 and "holds no study.json" in wrong.stderr


def test_without_a_browser_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    wrong = picture(tmp_path, tmp_path / "a.png", PATH=str(tmp_path), PLAYWRIGHT_BROWSERS_PATH=str(tmp_path))
    assert wrong.returncode == 2 and "no browser was found" in wrong.stderr and "install chromium" in wrong.stderr
