"""What is held out: by content, never by seed; and what is done with rows that are too long."""

from __future__ import annotations

import json
import logging
import random
import re
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import EvalConfig
from sweeptune.data.conversation import conversation
from sweeptune.data.splits import first_by_hash, fit, load_splits, load_whole, position, split
from sweeptune.models.tiny import tiny_tokenizer
from tests.data.helpers import data_config, ids, pairs, rows_of, template_config


def test_fractions_are_respected_within_statistics():
    parts = split(pairs(5000), data_config(eval_fraction=0.1, test_fraction=0.2))
    sizes = {name: len(part) for name, part in parts.items()}
    assert sum(sizes.values()) == 5000
    assert abs(sizes["eval"] - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5
    assert abs(sizes["test"] - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5


def test_neither_order_nor_other_rows_move_a_row():
    rows = pairs(300)
    parts = split(rows, data_config())
    shuffled = split(random.Random(0).sample(rows, 300), data_config())
    assert {name: set(ids(part)) for name, part in parts.items()} == {n: set(ids(p)) for n, p in shuffled.items()}
    assert set(ids(split(rows[:150], data_config())["eval"])) <= set(ids(parts["eval"]))
    assert ids(parts["train"]) == [row.id for row in rows if row in parts["train"]]


def test_rows_of_one_key_land_together():
    rows = [
        conversation([("user", f"{key} {i}?"), ("assistant", "yes")], split_key=f"module {key}")
        for key in range(60)
        for i in range(5)
    ]
    parts = split(rows, data_config(eval_fraction=0.3, test_fraction=0.3))
    keys = [{row.split_key for row in part} for part in parts.values()]
    assert sum(map(len, keys)) == 60
    assert sum(map(len, parts.values())) == 300


def test_positions_are_even_and_known():
    places = sorted(position(f"key {i}") for i in range(1000))
    assert max(abs(place - i / 1000) for i, place in enumerate(places)) < 0.06
    assert position("shutil") == pytest.approx(0.5367374248, abs=1e-9)


@pytest.mark.parametrize("count", [3, 4, 8, 15])
@pytest.mark.parametrize("fractions", [(0.001, 0.001), (0.01, 0.3), (0.3, 0.01), (0.98, 0.01)])
def test_an_empty_split_names_an_override_that_mends_it(count, fractions):
    data = data_config(eval_fraction=fractions[0], test_fraction=fractions[1])
    with pytest.raises(ConfigError, match=f"of {count} different rows, none falls into") as error:
        split(pairs(count), data)
    found = re.search(r"set data\.eval_fraction=(\S+) data\.test_fraction=([\d.]+)", str(error.value))
    assert found is not None
    mended = data_config(eval_fraction=float(found[1]), test_fraction=float(found[2]))
    assert all(split(pairs(count), mended).values())


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_rows_for_three_splits(count):
    with pytest.raises(ConfigError, match="training, eval and test each need rows, so bring more"):
        split(pairs(count), data_config())


def test_the_first_by_hash_do_not_depend_on_the_order_of_the_file():
    rows = pairs(100)
    first = first_by_hash(rows, 10)
    assert first == first_by_hash(random.Random(1).sample(rows, 100), 10)
    assert ids(first) == sorted(ids(rows))[:10]
    assert first_by_hash(rows, None) == first_by_hash(rows, 1000) == sorted(rows, key=lambda row: row.id)


def test_truncating_counts_rows_and_tokens():
    rows = rows_of(5, 12, 10, 30, learned=4)
    kept, counts = fit(rows, data_config(max_length=10))
    # The third row fits; of the others the answer of the second is cut in part and that of the fourth wholly.
    assert [(row.length, row.loss_tokens) for row in kept] == [(5, 4), (10, 2), (10, 4)]
    assert kept[1].input_ids == rows[1].input_ids[:10]
    assert kept[1].loss_mask == rows[1].loss_mask[:10]
    assert counts == {"truncated_rows": 1, "dropped_rows": 1, "tokens_cut": 32}


def test_dropping_counts_rows_and_tokens():
    kept, counts = fit(rows_of(5, 12, 10, 30, learned=4), data_config(max_length=10, on_long_row="drop"))
    assert [row.length for row in kept] == [5, 10]
    assert counts == {"truncated_rows": 0, "dropped_rows": 2, "tokens_cut": 42}


def test_long_rows_as_an_error_say_how_many_and_how_long():
    with pytest.raises(ConfigError, match="max_length=10: 2 training rows are longer, the longest has 30 tokens"):
        fit(rows_of(5, 12, 10, 30), data_config(max_length=10, on_long_row="error"))


@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_no_row_is_left(policy):
    with pytest.raises(ConfigError, match="no training row is left"):
        fit(rows_of(30, 40), data_config(max_length=10, on_long_row=policy))


@pytest.mark.parametrize("policy", ["truncate", "drop", "error"])
def test_rows_that_fit_are_left_alone(policy):
    rows = rows_of(5, 10)
    assert fit(rows, data_config(max_length=10, on_long_row=policy)) == (
        rows,
        {"truncated_rows": 0, "dropped_rows": 0, "tokens_cut": 0},
    )


def judged(**changed: object) -> EvalConfig:
    return EvalConfig(**({"batch_size": 1, "max_samples": None, "test": False} | changed))  # type: ignore[arg-type]


def test_from_a_file_to_rows(tmp_path, caplog, monkeypatch):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}. " * (i % 9 + 1)} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"question": "?"}]))
    data = data_config(path, max_length=100, on_bad_row="skip")
    seen: list[tuple[str, int]] = []

    def show(items, description, total):
        seen.append((description, total))
        return items

    monkeypatch.setattr(logging.getLogger("sweeptune"), "propagate", True)
    caplog.set_level("INFO", "sweeptune")
    splits = load_splits(
        data,
        judged(),
        template_config(),
        tiny_tokenizer(),
        show,
    )
    stats = splits.stats
    assert (stats["format"], stats["rows"], stats["bad_rows"], stats["duplicates"]) == ("qa", 202, 1, 1)
    assert sum(stats[name]["rows"] for name in ("train", "eval", "test")) + stats["dropped_rows"] == 200
    assert stats["truncated_rows"] > 0
    assert stats["train"]["tokens"] == sum(row.length for row in splits.train)
    assert stats["eval"]["loss_tokens"] == sum(row.loss_tokens for row in splits.eval)
    assert max(row.length for row in splits.train) == 100 < max(row.length for row in splits.eval)
    assert seen == [("tokenizing", 200)]
    assert json.loads(json.dumps(stats)) == stats
    assert "rows truncated" in caplog.text
    assert "1 malformed rows left out" in caplog.text


def test_max_samples_are_the_first_by_hash_of_eval_and_of_test(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"{i}!"}) + "\n" for i in range(300)))
    template, tokenizer = (
        template_config(),
        tiny_tokenizer(),
    )
    whole = load_splits(data_config(path), judged(), template, tokenizer)
    few = load_splits(data_config(path), judged(max_samples=7), template, tokenizer)
    assert (ids(few.eval), ids(few.test)) == (sorted(ids(whole.eval))[:7], sorted(ids(whole.test))[:7])
    assert few.train == whole.train
    assert not {*ids(whole.train)} & {*ids(whole.eval)} and not {*ids(whole.eval)} & {*ids(whole.test)}


def test_a_dataset_is_judged_whole_however_few_rows_it_has(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n' + '{"question": "2+2?", "answer": "4"}\n')
    data = data_config(path, max_length=4)
    with pytest.raises(ConfigError, match="none falls into"):
        load_splits(data, judged(), template_config(), tiny_tokenizer())
    rows = load_whole(data, judged(), template_config(), tiny_tokenizer())
    assert len(rows) == 2 and all(row.length > 4 for row in rows), "none is cut"
    assert len(load_whole(data, judged(max_samples=1), template_config(), tiny_tokenizer())) == 1
