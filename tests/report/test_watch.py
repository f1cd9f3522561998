"""``sweeptune report --watch`` beside studies that run, are killed, go on and end: all of them real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweeptune.study.lease import Leases
from sweeptune.study.working import at_work, find_standing, set_over
from tests.study.fakes import begin, lines, run, wait_for

STUDY = ["method=full,lora", "optim.lr=1e-4,1e-3", "study.name=s"]
SLOW = {"step_s": 0.25}
"""A trial takes 2.5 s, so that on a busy machine, too, the study still runs when those who watch have started."""
WATCH = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # tests in the background ignore it
WATCH += "import sweeptune.report.html.write as w; w.REFRESH_S = 0.2; from sweeptune.cli import main; main()"


def watch(folder: Path) -> subprocess.Popen[str]:
    """``sweeptune report multirun/s --watch``, which looks five times a second."""
    command = [sys.executable, "-c", WATCH, "report", "multirun/s", "--watch"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def page(folder: Path) -> str:
    path = folder / "multirun" / "s" / "report.html"
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.slow
def test_watching_shows_each_trial_and_ends_with_its_study(tmp_path: Path) -> None:
    study = begin(tmp_path, *STUDY, plan=SLOW)
    assert wait_for((tmp_path / "multirun" / "s" / "study.json").exists)
    watching = watch(tmp_path)
    assert wait_for(lambda: 'data-live="1"' in page(tmp_path)), "a page that loads itself anew"
    assert wait_for(lambda: '"n":1,' in page(tmp_path)) and study.poll() is None, "while the study runs"
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0 and out.endswith("the study is over\nwrote multirun/s/report.html\n"), out + err
    assert study.wait(30) == 0 and len(lines(tmp_path / "multirun" / "s")) == 4
    assert 'data-live="0"' in page(tmp_path) and '"n":3,' in page(tmp_path)


@pytest.mark.slow
def test_watching_ends_on_ctrl_c_and_when_the_study_is_killed(tmp_path: Path) -> None:
    study = begin(tmp_path, *STUDY, plan=SLOW)
    assert wait_for(lambda: lines(tmp_path / "multirun" / "s"))
    watching, other = watch(tmp_path), watch(tmp_path)
    assert wait_for(lambda: 'data-live="1"' in page(tmp_path))
    assert "written again" in (watching.stdout.readline() if watching.stdout else "")
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 0 and out.startswith("stopped by Ctrl-C; the study goes on\n") and not err
    assert study.poll() is None and other.poll() is None
    study.kill()
    study.wait()
    out, err = other.communicate(timeout=20)
    assert other.returncode == 0 and "nobody works on the study any more" in out and "going on: python train.py" in out
    assert not err and 'data-live="0"' in page(tmp_path)
    assert run(tmp_path, *STUDY, plan={}).returncode == 0
    assert find_standing(tmp_path / "multirun" / "s", Leases()) == "over"


def test_a_study_is_running_over_or_left(tmp_path: Path) -> None:
    assert find_standing(tmp_path, Leases()) == "left"
    set_over(tmp_path, False)
    with at_work(tmp_path):
        assert find_standing(tmp_path, Leases()) == "running"
        with at_work(tmp_path):
            set_over(tmp_path, True)
        assert find_standing(tmp_path, Leases()) == "running", "two commands: one of them is still there"
    assert find_standing(tmp_path, Leases()) == "over"
    with pytest.raises(RuntimeError), at_work(tmp_path):
        set_over(tmp_path, False)
        raise RuntimeError
    assert find_standing(tmp_path, Leases()) == "left"


def test_a_command_that_fails_leaves_no_lease_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), at_work(tmp_path):
        raise RuntimeError("refused")
    assert list((tmp_path / ".commands").iterdir()) == []
