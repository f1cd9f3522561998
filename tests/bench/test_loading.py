"""bench/loading.py refuses what it cannot make, before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import loading


def test_an_unknown_model_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["loading.py", "--work", str(tmp_path / "work"), "--model", "nope"])
    with pytest.raises(SystemExit, match="2"):
        loading.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--model: invalid choice: 'nope'" in last and "internlm2_7b" in last
    assert not (tmp_path / "work").exists()
