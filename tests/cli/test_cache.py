"""``sweeptune cache``: what is kept between runs, how large it is, and how to be rid of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.data.helpers import rows_of, store_of


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a store in it and a model that is not one."""
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path))
    (tmp_path / "tokens").mkdir()
    store_of(tmp_path / "tokens" / "abc", rows_of(4, 5), meta={"data": "data.path=mine.jsonl"})
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "weights").write_bytes(b"x" * 2**20)
    return tmp_path


def test_it_lists_sizes_and_where_they_are(sweeptune: Command, tmp_path: Path) -> None:
    out = sweeptune("cache").out
    assert "tokens/abc" in out and "data.path=mine.jsonl, 2 rows" in out
    assert "1.0 MiB  models/m" in out and f"1.0 MiB in {tmp_path}" in out


def test_json_is_all_of_stdout(sweeptune: Command, tmp_path: Path) -> None:
    found = json.loads(sweeptune("cache", "--json").out)
    assert found["folder"] == str(tmp_path)
    assert [(entry["kind"], entry["name"]) for entry in found["entries"]] == [("tokens", "abc"), ("models", "m")]


def test_it_removes_what_is_named_and_nothing_else(sweeptune: Command, tmp_path: Path) -> None:
    done = sweeptune("cache", "--clear", "tokens")
    assert done.status == 0 and "freed 0.0 MiB" in done.out
    assert list((tmp_path / "tokens").iterdir()) == []
    assert (tmp_path / "models" / "m" / "weights").exists()
    assert "freed 1.0 MiB" in sweeptune("cache", "--clear", "models").out
    assert "0.0 MiB in" in sweeptune("cache").out


def test_another_word_names_the_allowed_ones(sweeptune: Command, tmp_path: Path) -> None:
    done = sweeptune("cache", "--clear", "everything")
    assert done.status == 2 and "use tokens, models, hashes" in done.err
    assert (tmp_path / "tokens" / "abc").exists()
