"""Rows on disk are the rows that were written, cost no memory, and are whole or not there at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.data import cache as caching
from sweeptune.data import store as storing
from sweeptune.data.plan import hash_rows
from sweeptune.data.store import StoreWriter, lengths_of, loss_counts_of, open_parts, row_digest
from sweeptune.data.tokenize import Row
from tests.data.helpers import rows_of, store_of


def drawn(count: int, vocabulary: int = 1000, seed: int = 0) -> list[Row]:
    """Rows of all lengths, with any mask."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randrange(1, 40)
        mask = [draw.random() < 0.4 for _ in range(length)]
        name = f"{draw.getrandbits(64):016x}"
        rows.append(Row(name, [draw.randrange(vocabulary) for _ in range(length)], mask, draw.randrange(99)))
    return rows


@pytest.mark.parametrize("vocabulary", [1000, 2**16, 2**16 + 1, 2**31])
def test_rows_come_back_as_they_were(tmp_path, vocabulary):
    rows = [*drawn(50, vocabulary), Row("edge", [0, vocabulary - 1], [False, True], 3)]
    store = store_of(tmp_path / "s", rows, vocabulary)
    assert list(store) == rows == [store[i] for i in range(len(store))]
    assert store[-1] == rows[-1]
    # Consumers look for True in lists and hand ids to torch.
    assert type(store[-1].input_ids[0]) is int and store[-1].loss_mask.index(True) == 1
    assert store[-1].loss_mask[1] is True


def test_small_vocabularies_take_half_the_room(tmp_path):
    rows = drawn(50)
    tokens = sum(row.length for row in rows)
    for vocabulary, width in ((2**16, 2), (2**16 + 1, 4)):
        store_of(tmp_path / str(vocabulary), rows, vocabulary)
        assert (tmp_path / str(vocabulary) / "rows.ids").stat().st_size == width * tokens


def test_columns_are_those_of_the_rows(tmp_path):
    rows = drawn(50)
    store = store_of(tmp_path / "s", rows, source=3)
    for view, chosen in (
        (store, rows),
        (store[10:40:3], rows[10:40:3]),
        (store.take([7, 7, 0]), [rows[7]] * 2 + rows[:1]),
    ):
        assert list(view) == chosen
        assert view.lengths.tolist() == lengths_of(chosen).tolist() == [row.length for row in chosen]
        assert view.loss_counts.tolist() == loss_counts_of(chosen).tolist() == [row.loss_tokens for row in chosen]
        assert view.ids.tolist() == [row.id.encode() for row in chosen]
        assert set(view.sources) == {3}
        assert [bytes(digest) for digest in view.digests] == [row_digest(row) for row in chosen]
        assert view.content_hash == hash_rows(view) == hash_rows(chosen)


def test_views_of_views_are_views(tmp_path):
    rows = drawn(50)
    store = store_of(tmp_path / "s", rows)
    view = store[5:45].take([9, 3, 30])[::-1][:2]
    assert list(view) == [rows[35], rows[8]]
    assert np.shares_memory(view._tokens, store._tokens) and view._records is store._records
    assert view[-2] == rows[35] and len(store[50:]) == 0
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"row {index} of 2"):
            view[index]


def test_stores_of_equal_rows_are_equal(tmp_path):
    rows = rows_of(4, 5, 6)
    store = store_of(tmp_path / "a", rows)
    assert store == store_of(tmp_path / "b", rows, vocabulary=10**6)
    assert store != store[:2] and store != store[::-1] and store != rows
    assert store.take([0, 1, 2]) == store


def test_parts_are_apart_and_may_be_empty(tmp_path):
    rows = drawn(4)
    with StoreWriter(tmp_path / "s", ["a", "b", "c"], 1000) as writer:
        for name, row in zip("abab", rows, strict=True):
            writer.append(name, row)
        writer.finish({"about": "this"})
    parts, meta = open_parts(tmp_path / "s") or pytest.fail("there is nothing")
    assert (list(parts["a"]), list(parts["b"]), list(parts["c"])) == (rows[::2], rows[1::2], [])
    assert parts["c"].lengths.sum() == 0 and parts["c"].content_hash == hash_rows([])
    assert meta["about"] == "this" and meta["parts"]["a"]["rows"] == 2


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (Row("a", [2**16], [True], 1), OverflowError),
        (Row("a", [-1], [True], 1), OverflowError),
        (Row("a" * 33, [1], [True], 1), ValueError),
    ],
)
def test_what_does_not_fit_is_an_error_not_another_number(tmp_path, row, error):
    with StoreWriter(tmp_path / "s", ["rows"], 2**16) as writer, pytest.raises(error):
        writer.append("rows", row)


def test_an_unfinished_store_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match="on the way"), StoreWriter(tmp_path / "s", ["rows"], 1000) as writer:
        writer.append("rows", drawn(1)[0])
        assert open_parts(tmp_path / "s") is None
        raise RuntimeError("on the way")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["meta.json", "rows.ids", "rows.mask", "rows.rows"])
@pytest.mark.parametrize("how", ["gone", "cut", "longer"])
def test_a_damaged_store_is_not_opened(tmp_path, damage, how):
    store_of(tmp_path / "s", drawn(9))
    path = tmp_path / "s" / damage
    content = path.read_bytes()
    path.write_bytes({"gone": b"", "cut": content[:-5], "longer": content + b"12345"}[how])
    if how == "gone":
        path.unlink()
    assert open_parts(tmp_path / "s") is None


def test_another_layout_is_not_opened(tmp_path, monkeypatch):
    store_of(tmp_path / "s", drawn(9))
    monkeypatch.setattr(storing, "LAYOUT", storing.LAYOUT + 1)
    assert open_parts(tmp_path / "s") is None


def test_the_last_of_two_writers_keeps_what_the_first_one_made(tmp_path):
    rows = drawn(9)
    with StoreWriter(tmp_path / "s", ["rows"], 1000) as slow:
        first = store_of(tmp_path / "s", rows)
        made = (tmp_path / "s").stat().st_ino
        slow.append("rows", rows[0])
        slow.finish({})
    assert (tmp_path / "s").stat().st_ino == made
    assert list(first) == rows and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_broken_store_is_replaced(tmp_path):
    rows = drawn(9)
    store_of(tmp_path / "s", rows[:3])
    (tmp_path / "s" / "rows.mask").write_bytes(b"")
    assert list(store_of(tmp_path / "s", rows)) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_store_that_is_removed_stays_open_for_who_has_it(tmp_path):
    rows = drawn(9)
    store = store_of(tmp_path / "s", rows)
    storing.remove(tmp_path / "s")
    assert list(tmp_path.iterdir()) == [] and list(store) == rows


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, which plays a full disk")
@pytest.mark.parametrize("large", [False, True], ids=["at the end", "on the way"])
def test_a_full_disk_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch, large):
    monkeypatch.setattr(storing, "open_file", lambda path: Path.open(Path("/dev/full"), "wb", buffering=2**20))
    rows = [Row("a", [1] * 2**20, [True] * 2**20, 0)] if large else drawn(1)
    with pytest.raises(ConfigError, match="no room for the tokenized rows") as error:
        store_of(tmp_path / "s", rows)
    assert all(word in str(error.value) for word in (str(tmp_path), "SWEEPTUNE_CACHE=", "data.cache=false"))
    assert list(tmp_path.iterdir()) == []


# Processes that write the same key.


def _keep(key: str, rows: list[Row], started: Path, pause: float) -> str:
    """Keep rows slowly; say whether they were written here or found."""

    def write(writer: StoreWriter) -> dict[str, object]:
        with started.open("a") as file:
            file.write("x")
        for row in rows:
            time.sleep(pause / len(rows))
            writer.append("rows", row)
        return {"data": "drawn"}

    kept = caching.keep(key, ["rows"], 1000, write)
    assert list(kept.parts["rows"]) == rows
    return "written" if kept.fresh else "found"


def _in_process(key: str, started: Path, pause: float, answers: multiprocessing.Queue | None = None) -> None:
    found = _keep(key, drawn(20), started, pause)
    if answers is not None:
        answers.put(found)


@pytest.fixture
def tokens(tmp_path, monkeypatch) -> Path:
    """The folder of tokenized rows in an empty cache."""
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_of_processes_that_ask_at_once_all_get_the_rows_and_one_store_stays(tokens, tmp_path, monkeypatch, locks):
    if not locks:  # as on some network file systems

        def none(*_: object) -> None:
            raise OSError("no locks here")

        monkeypatch.setattr(caching.fcntl, "flock", none)
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    workers = [fork.Process(target=_in_process, args=("k", tmp_path / "started", 0.4, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    found = sorted(answers.get() for _ in workers)
    assert [path.name for path in tokens.iterdir()] == ["k"]
    if locks:
        assert found == ["found"] * 3 + ["written"], "the others wait instead of doing the same work"
        assert (tmp_path / "started").read_text() == "x"


def test_a_killed_writer_leaves_nothing_that_is_used_and_nothing_that_stays(tokens, tmp_path):
    fork = multiprocessing.get_context("fork")
    worker = fork.Process(target=_in_process, args=("k", tmp_path / "started", 60))
    worker.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    assert [path.name for path in tokens.glob(".k.*") if path.is_dir()], "it was killed while it wrote"
    assert open_parts(tokens / "k") is None
    # Another key sweeps what it left; the same key simply makes its rows.
    assert _keep("other", drawn(20), tmp_path / "again", 0) == "written"
    assert [path.name for path in tokens.iterdir()] == ["other"]
    assert _keep("k", drawn(20), tmp_path / "again", 0) == "written"
    assert sorted(path.name for path in tokens.iterdir()) == ["k", "other"]


def test_nobody_sweeps_what_is_being_written(tokens, tmp_path):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    worker = fork.Process(target=_in_process, args=("k", tmp_path / "started", 1.0, answers))
    worker.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    assert _keep("other", drawn(20), tmp_path / "again", 0) == "written"
    assert caching.clear("tokens") > 0 and not (tokens / "other").exists()
    assert answers.get(timeout=20) == "written"
    worker.join()
    assert worker.exitcode == 0 and open_parts(tokens / "k") is not None


def test_the_list_names_what_is_kept_and_how_large_it_is(tokens, tmp_path):
    _keep("k", drawn(20), tmp_path / "started", 0)
    for kind, name in (("models", "m"), ("hashes", "h")):
        folder = tmp_path / "cache" / kind / (name if kind == "models" else "")
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 1000)
    found = {entry.kind: entry for entry in caching.entries()}
    assert set(found) == set(caching.KINDS)
    assert found["tokens"].name == "k" and "drawn, 20 rows" in found["tokens"].about
    assert found["tokens"].size == sum(path.stat().st_size for path in (tokens / "k").iterdir())
    assert found["models"].size == found["hashes"].size == 1000
    assert caching.clear("models") == 1000
    assert {entry.kind for entry in caching.entries()} == {"tokens", "hashes"}


MEMORY = """
import json, sys
from pathlib import Path
from sweeptune.config.schema import EvalConfig
from sweeptune.data.splits import load_splits
from sweeptune.models.tiny import tiny_tokenizer
from tests.data.helpers import data_config, template_config

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

def load(path):
    data = data_config(Path(path), cache=True, max_length=10**6)
    return load_splits(data, EvalConfig(batch_size=1, max_samples=100, test=False), template_config(), tiny_tokenizer())

load(sys.argv[1])  # what is loaded and allocated once
before = mib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
splits = load(sys.argv[2])
print(json.dumps({"growth": mib("VmHWM") - before, "tokens": splits.stats["train"]["tokens"]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are only known on Linux")
def test_a_large_file_is_tokenized_in_little_memory(tmp_path):
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    noise = "".join(map(chr, range(40, 90))) * 140
    for path, count in ((small, 1200), (large, 18000)):
        with path.open("w") as file:
            for i in range(count):  # some text that is learned, and fields that nobody reads
                row = {"question": f"{i}?", "answer": f"{i}" + noise[i % 50 :][:600], "notes": noise}
                file.write(json.dumps(row) + "\n")
    size = large.stat().st_size / 2**20
    assert size > 120
    environment = os.environ | {"SWEEPTUNE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(re.findall(r"\{.*\}", done.stdout)[-1])
    assert found["tokens"] > 8e6, "as lists these alone would take 128 MB and more"
    assert found["growth"] < size / 3, f"{found['growth']:.0f} MiB more for a file of {size:.0f} MiB"
