"""What people see while they wait: nothing on stdout, whole lines, and a log file that keeps everything."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator

import pytest
from rich.console import Console

from sweeptune.tracking import console as shown
from sweeptune.tracking.console import bar, progress, setup_logging, spinner

log = logging.getLogger("sweeptune")


@pytest.fixture(autouse=True)
def _clean_logging() -> Iterator[None]:
    propagate = log.propagate
    yield
    setup_logging(None, main=False)
    log.propagate = propagate


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """A terminal of 80 columns that remembers what was drawn."""
    screen = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=screen, force_terminal=True, width=80))
    return screen


@pytest.fixture
def pipe(monkeypatch) -> io.StringIO:
    """No terminal; log lines only, bars go to stderr."""
    text = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=text, force_terminal=False, width=80))
    return text


def test_stdout_stays_empty_without_a_terminal(capsys, tmp_path):
    setup_logging(tmp_path / "train.log")
    log.info("a line")
    with spinner("loading"), bar("training", 4) as advance:
        advance(2, note="loss 3.21")
        for _ in progress([1, 2, 3], "evaluating"):
            advance(1)
    assert capsys.readouterr().out == ""


def test_without_a_terminal_a_bar_is_plain_lines(capsys, pipe):
    setup_logging(None)
    with bar("training", 4, completed=1) as advance:
        advance(2, note="loss 3.21")
    assert capsys.readouterr().err == "training: 3/4 loss 3.21\n"
    with spinner("loading"):
        pass
    assert pipe.getvalue() == "loading\n"


def test_a_plain_line_at_most_every_ten_seconds(capsys, pipe, monkeypatch):
    setup_logging(None)
    now = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    with bar("training", 100) as advance:
        for _ in range(100):
            now[0] += 0.35
            advance()
    assert capsys.readouterr().err.splitlines() == [f"training: {n}/100" for n in (29, 58, 87, 100)]


def test_nobody_asked_for_bars(capsys, monkeypatch, terminal):
    setup_logging(None, main=False)
    with spinner("loading"), bar("training", 4) as advance:
        advance(1, note="x")
    assert list(progress(iter("ab"), "reading", 2)) == ["a", "b"]
    assert (*capsys.readouterr(), terminal.getvalue()) == ("", "", "")


@pytest.mark.parametrize("screen", ["terminal", "pipe"])
def test_bars_and_spinners_nest(screen, request):
    request.getfixturevalue(screen)
    setup_logging(None)
    seen = []
    with bar("training", 2) as advance:
        for step in range(2):
            with spinner("saving"):
                log.info("checkpoint %d", step)
            seen += list(progress([1, 2], "evaluating"))
            advance()
    assert seen == [1, 2, 1, 2]
    assert shown._live is None


def test_a_finished_bar_leaves_the_display_to_the_others(terminal):
    setup_logging(None)
    with bar("training", 2):
        list(progress([1, 2], "evaluating"))
        with spinner("saving"):
            assert [task.description for task in shown._live.tasks] == ["training", "saving"]
        assert [task.description for task in shown._live.tasks] == ["training"]


def test_on_a_terminal_bars_show_how_far_it_is(terminal):
    setup_logging(None)
    with bar("training", 8) as advance:
        advance(3, note="loss 3.21")
        shown._live.refresh()
        log.info("a long line " * 20)
    text = terminal.getvalue()
    assert "training" in text and "3/8" in text and "loss 3.21" in text
    assert "a long line " * 20 in text  # not wrapped: paths can be copied


def test_a_bar_counts_where_nobody_knows_the_end(terminal):
    setup_logging(None)
    for done, _ in enumerate(progress(iter(range(1500)), "reading", None)):
        if done == 1300:
            shown._live.refresh()
    assert "1,300" in terminal.getvalue() and "1,300/" not in terminal.getvalue()


def test_a_plain_bar_counts_where_nobody_knows_the_end(pipe, capsys):
    setup_logging(None)
    assert list(progress(iter(range(1234)), "reading")) == list(range(1234))
    assert capsys.readouterr().err == "reading: 1234\n"


@pytest.mark.parametrize("screen", ["terminal", "pipe"])
@pytest.mark.parametrize("make", [lambda: bar("training", 3), lambda: spinner("loading")], ids=["bar", "spinner"])
def test_an_error_inside_passes_and_leaves_the_display_free(screen, make, request):
    request.getfixturevalue(screen)
    setup_logging(None)
    with pytest.raises(ZeroDivisionError), make():
        raise ZeroDivisionError
    assert shown._live is None
    with bar("again", 1) as advance:
        advance()


def test_a_loop_that_is_left_early_closes_its_bar(terminal):
    setup_logging(None)
    items = progress(range(10), "reading")
    assert next(items) == 0
    items.close()
    assert shown._live is None


def test_the_log_file_keeps_everything_and_the_terminal_what_matters(tmp_path, pipe):
    setup_logging(tmp_path / "train.log")
    log.debug("detail ü")
    log.info("step [bold]1[/bold]")
    log.warning("careful")
    said = "from a library"
    warnings.warn(said, UserWarning, stacklevel=1)
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    for line in ("DEBUG detail ü", "INFO step [bold]1[/bold]", "WARNING careful", said):
        assert text.count(line) == 1
    assert "detail" not in pipe.getvalue()
    assert pipe.getvalue().startswith("step [bold]1[/bold]\ncareful\n")


def test_a_traceback_goes_to_the_file(tmp_path, pipe):
    setup_logging(tmp_path / "train.log")
    try:
        raise KeyError("gone")
    except KeyError:
        log.debug("traceback", exc_info=True)
    assert "KeyError: 'gone'" in (tmp_path / "train.log").read_text()
    assert pipe.getvalue() == ""


def test_setting_up_twice_doubles_no_line(tmp_path, pipe):
    for name in ("first.log", "second.log", "second.log"):
        setup_logging(tmp_path / name)
    log.info("once")
    said = "heard once"
    warnings.warn(said, UserWarning, stacklevel=1)
    assert (tmp_path / "second.log").read_text().count("INFO once") == 1
    assert (tmp_path / "second.log").read_text().count(said) == 1
    assert (tmp_path / "first.log").read_text() == ""
    assert pipe.getvalue().splitlines().count("once") == 1


def test_handlers_of_others_are_left_alone(tmp_path):
    class Other(logging.Handler):
        heard: list[str] = []  # noqa: RUF012

        def emit(self, record: logging.LogRecord) -> None:
            self.heard.append(record.getMessage())

    other = Other()
    log.addHandler(other)
    try:
        setup_logging(tmp_path / "train.log")
        setup_logging(tmp_path / "train.log")
        log.info("heard")
    finally:
        log.removeHandler(other)
    assert Other.heard == ["heard"]


def test_a_silent_rank_writes_to_its_file_only(tmp_path, capsys, pipe):
    setup_logging(tmp_path / "rank1.log", main=False)
    log.error("only here")
    assert "only here" in (tmp_path / "rank1.log").read_text()
    assert (*capsys.readouterr(), pipe.getvalue()) == ("", "", "")
