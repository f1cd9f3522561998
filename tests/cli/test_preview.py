"""``sweeptune preview``: the same overrides as a training, and no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

SMALL = ("model=tiny", "data=jsonl", "data.eval_fraction=0.15", "data.test_fraction=0.1")


def test_it_shows_the_ledger_and_rows_of_the_users_file(jsonl: Path, sweeptune: Command) -> None:
    done = sweeptune("preview", *SMALL, f"data.path={jsonl}", "--rows", "2")
    assert done.status == 0, done.err
    assert "model tiny, data jsonl, template auto, loss on assistant" in done.out
    assert "template=auto: 120 rows" in done.out and "stop trained in 120 of 120 answers" in done.out
    assert "train row 2, " in done.out and "train row 3, " not in done.out
    assert "<|im_end|>[/loss]" in done.out and "\x1b" not in done.out


def test_rows_of_a_split_are_those_that_a_run_would_hold_out(jsonl: Path, sweeptune: Command) -> None:
    counts = {}
    for split in ("train", "eval", "test"):
        out = sweeptune("preview", *SMALL, f"data.path={jsonl}", "--split", split, "--rows", "500").out
        counts[split] = len([line for line in out.splitlines() if line.startswith(f"{split} row ")])
    assert sum(counts.values()) == 120
    assert 0 < counts["test"] < counts["eval"] < counts["train"]


def test_no_weights_are_loaded(jsonl: Path, sweeptune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.__init__", refuse)
    assert sweeptune("preview", *SMALL, f"data.path={jsonl}").status == 0


def test_it_writes_a_page(jsonl: Path, sweeptune: Command, tmp_path: Path) -> None:
    page = tmp_path / "preview.html"
    done = sweeptune("preview", *SMALL, f"data.path={jsonl}", "--html", str(page))
    assert f"wrote {page}" in done.out
    assert page.read_text().startswith("<!doctype html>") and "train row 5, " in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=tiny", "data=jsonl", "data.path=missing.jsonl", "methd=lora"], "2 problems with the configuration"),
        (["model=tiny", "--split", "trian"], "--split trian: use train, eval, test"),
        (["model=tiny", "seed=0,1"], "seed"),
    ],
)
def test_a_wrong_use_is_explained(sweeptune: Command, arguments: list[str], message: str) -> None:
    done = sweeptune("preview", *arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err and "Traceback" not in done.err


def test_what_the_ledger_stops_is_shown_first_and_named_then(
    sweeptune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeptune.models import tiny

    monkeypatch.setattr(tiny, "CHATML", "{{ bos_token }}<|im_start|>" + tiny.CHATML)
    original = tiny.tiny_tokenizer

    def doubling() -> object:
        tokenizer = original()
        tokenizer.bos_token = "<|im_start|>"
        return tokenizer

    monkeypatch.setattr("sweeptune.models.load.tiny_tokenizer", doubling)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"{i}!"}) + "\n" for i in range(60)))
    done = sweeptune("preview", *SMALL, f"data.path={path}", "--rows", "1")
    assert done.status == 2
    assert "train row 1, " in done.out
    assert "60 of 60 rows have two begin-of-text tokens in a row" in done.err
    assert "<|im_start|><|im_start|>" in done.err and "template=" in done.err


def test_help_has_an_example(sweeptune: Command) -> None:
    done = sweeptune("preview", "--help")
    assert done.status == 0
    assert "sweeptune preview model=" in " ".join(done.out.replace("│", " ").split())


@pytest.mark.embedded
def test_the_default_model_is_previewed_with_its_own_tokenizer(jsonl: Path, sweeptune: Command) -> None:
    done = sweeptune("preview", *SMALL[1:], f"data.path={jsonl}", "--rows", "1", "--split", "eval")
    assert done.status == 0, done.err
    assert "model smollm2_135m_q4, data jsonl" in done.out
    assert "You| are| a| helpful| AI| assistant" in done.out
