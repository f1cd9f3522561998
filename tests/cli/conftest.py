"""Run ``sweeptune ...`` in this process, as its entry point does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sweeptune import cli


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def sweeptune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``sweeptune("compare", "multirun/demo", "--json").out``"""
    monkeypatch.setattr(cli, "setup_logging", lambda log_file: None)  # the log is the whole process's

    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["sweeptune", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text = capsys.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, text.out, text.err)

    return run
