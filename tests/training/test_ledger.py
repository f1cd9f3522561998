"""A run keeps its loss ledger, and one whose rows teach something else than was meant never loads the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from sweeptune.config.schema import Config
from sweeptune.data import Ledger
from sweeptune.models.tiny import CHATML, tiny_tokenizer
from sweeptune.training.run import run

Settings = Callable[..., Config]


def test_the_ledger_is_in_the_record_and_its_digest_in_the_fingerprint(settings: Settings, tmp_path: Path) -> None:
    record = run(settings("train.max_steps=1", "eval.max_samples=4"), tmp_path)
    assert record["status"] == "completed", record["reason"]
    ledger = Ledger.from_dict(record["train"]["data"]["ledger"])
    [part] = ledger.parts.values()
    assert part.stops == {"<|im_end|>": part.rows} and part.unstopped == 0
    assert record["fingerprint"]["quality"]["ledger"] == ledger.digest
    assert "stop trained in" in (tmp_path / "train.log").read_text()


def test_a_doubled_begin_of_text_stops_the_run_before_any_weights(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubling() -> PreTrainedTokenizerBase:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.chat_template = "{{ bos_token }}<s>" + CHATML
        return tokenizer

    def refuse(*arguments: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("sweeptune.models.load.tiny_tokenizer", doubling)
    monkeypatch.setattr("sweeptune.training.session.build_model", refuse)
    record = run(settings(), tmp_path)
    assert record["status"] == "invalid_config"
    assert "rows have two begin-of-text tokens in a row" in record["reason"]
    assert "<s><s><|im_start|>user" in record["reason"], "the row is shown"
