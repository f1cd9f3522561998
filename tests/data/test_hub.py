"""Datasets of the hub: read through the library, from a folder and with the hub itself replaced at its boundary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.sources import Found, content_digest, read
from tests.data.helpers import data_config

datasets = pytest.importorskip("datasets")
ROWS = [{"question": f"{i}?", "answer": f"It is {i}.", "level": i} for i in range(20)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of two splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "dataset"
    path.mkdir()
    for name, rows in (("train", ROWS[:12]), ("test", ROWS[12:])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def hub(path: Path | str, **changed: Any) -> DataConfig:
    return replace(data_config(name="hub"), path=str(path), **changed)


def load(data: DataConfig) -> tuple[list[Conversation], Found]:
    found = Found()
    return list(read(data, found)), found


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_of_a_dataset_is_read(folder, streaming):
    items, found = load(hub(folder, split="test", streaming=streaming))
    assert [item.messages[1].content for item in items] == [row["answer"] for row in ROWS[12:]]
    assert found == Found("qa", rows=8)
    assert items[0].place == f"{folder}, test, row 1"


def test_only_what_is_read_without_streaming_has_a_digest(folder):
    train, test = (content_digest(hub(folder, split=split)) for split in ("train", "test"))
    assert train and test and train != test
    assert train == content_digest(hub(folder))
    assert content_digest(hub(folder, streaming=True)) is None


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(
        ConfigError, match=r'data\.split=nosuch: Unknown split "nosuch".*train.*Choose with data\.split='
    ):
        load(hub(folder, split="nosuch"))


def test_a_configuration_that_is_not_there_is_named(folder):
    with pytest.raises(ConfigError, match=r"data\.subset=nosuch .*not found.*Choose with .*data\.subset=<name>"):
        load(hub(folder, subset="nosuch"))


def test_nulls_of_a_typed_table_are_nothing_and_other_columns_are_not_loaded(monkeypatch):
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = [
        {"role": "user", "content": "1+1?", "tool_calls": None, "weight": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": None},
        {"role": "assistant", "content": "2", "tool_calls": None, "weight": 0},
    ]
    seen: dict[str, Any] = {}

    def load_dataset(path: str, **asked: Any) -> Any:
        seen.update(asked, path=path)
        return datasets.Dataset.from_list([{"messages": chat, "x": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [item], found = load(hub("owner/name", subset="main", revision="v1", split="test[:1]"))
    assert seen == {"path": "owner/name", "name": "main", "split": "test[:1]", "revision": "v1", "streaming": False}
    assert found.format == "messages"
    assert [turn.loss for turn in item.messages] == [None, None, False]
    assert item.messages[0].extra is None
    assert item.messages[1].extra and item.messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"a": 1}


FAILURES = {
    "no such dataset": (
        lambda: datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub"),
        r"there is no such dataset on the hub, or it is closed to you \(data\.revision=v9\)",
    ),
    "no network": (
        lambda: ConnectionError("Couldn't reach 'owner/name' on the Hub (LocalEntryNotFoundError)"),
        r"hf download owner/name --repo-type dataset --local-dir <folder>.*data=hub data\.path=<folder>",
    ),
    "which configuration": (
        lambda: ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']"
        ),
        r"available configs: \['main', 'socratic'\]\. Choose with data\.split=<split> and data\.subset=<name>",
    ),
    "needs code": (
        lambda: RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        "Dataset scripts are no longer supported",
    ),
}


@pytest.mark.parametrize(("error", "says"), FAILURES.values(), ids=FAILURES.keys())
def test_a_dataset_that_cannot_be_had(monkeypatch, error, says):
    def fail(path: str, **asked: Any) -> Any:
        raise error()

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ConfigError, match=says):
        load(hub("owner/name", revision="v9"))


def test_a_stream_that_breaks_says_where(monkeypatch):
    def rows():
        yield ROWS[0]
        raise ConnectionError("the line is dead")

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **asked: stream)
    with pytest.raises(ConfigError, match=r"data\.path=owner/name: reading stopped behind row 1: the line is dead"):
        load(hub("owner/name", streaming=True))


def test_bad_rows_of_a_dataset_have_a_place(monkeypatch):
    rows = [*ROWS[:2], {"question": "?", "answer": ""}]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **asked: datasets.Dataset.from_list(rows))
    with pytest.raises(ConfigError, match="owner/name, train, row 3: answer is empty"):
        load(hub("owner/name"))
    assert load(hub("owner/name", on_bad_row="skip"))[1] == Found("qa", rows=3, bad_rows=1)
