"""What is held out: by content, never by seed; what is done with rows that are too long; and what is kept of both."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig, EvalConfig, MixPart, TemplateConfig
from sweeptune.data import fit as fitting
from sweeptune.data import splits as pipeline
from sweeptune.data.conversation import TEXT, Conversation, conversation
from sweeptune.data.fit import Different, Fit, HoldOut, policy, position
from sweeptune.data.ledger import Ledger
from sweeptune.data.plan import hash_rows
from sweeptune.data.rendering import Rendering
from sweeptune.data.splits import Splits, first_by_hash, load_everything, load_splits
from sweeptune.data.tokenize import Encoded, Row, Span
from sweeptune.models.fetch import cache_dir
from sweeptune.models.tiny import CHATML, tiny_tokenizer
from tests.data.helpers import data_config, ids, pairs, rows_of, split, store_of, template_config, write


def fit(rows: Sequence[Row], data: DataConfig) -> tuple[list[Row], dict[str, int]]:
    """Fit rows as the pipeline does."""
    fitted = Fit(data)
    kept = [piece for row in rows for piece in fitted.rows(row)]
    fitted.check()
    return kept, fitted.counts()


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


def test_the_first_by_hash_do_not_depend_on_the_order_of_the_file(tmp_path):
    rows = [replace(row, id=item.id) for row, item in zip(rows_of(*range(2, 102)), pairs(100), strict=True)]
    store = store_of(tmp_path / "a", rows)
    first = first_by_hash(store, 10)
    assert first == first_by_hash(store_of(tmp_path / "b", random.Random(1).sample(rows, 100)), 10)
    assert ids(first) == sorted(ids(rows))[:10]
    assert first_by_hash(store, None) == first_by_hash(store, 1000)
    assert ids(first_by_hash(store, None)) == sorted(ids(rows))


def test_truncating_counts_rows_and_tokens():
    rows = rows_of(5, 12, 10, 30, learned=4)
    kept, counts = fit(rows, data_config(max_length=10))
    # The third row fits; of the others the answer of the second is cut in part and that of the fourth wholly.
    assert [(row.length, row.loss_tokens) for row in kept] == [(5, 4), (10, 2), (10, 4)]
    assert kept[1].input_ids == rows[1].input_ids[:10]
    assert kept[1].loss_mask == rows[1].loss_mask[:10]
    assert counts == {"truncated_rows": 1, "split_rows": 0, "dropped_rows": 1, "tokens_cut": 32}


def test_splitting_keeps_every_token_that_can_be_learned():
    whole = Row("0" * 16, list(range(25)), [False] * 5 + [True] * 20, 40)
    kept, counts = fit([whole], data_config(max_length=10, on_long_row="split"))
    assert [row.input_ids for row in kept] == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    # The first token of a row has nothing before it, so it cannot be predicted.
    assert [row.loss_mask for row in kept] == [[False] * 5 + [True] * 5, [False] + [True] * 9, [False] + [True] * 4]
    assert ids(kept) == [whole.id, f"{whole.id}-1", f"{whole.id}-2"]
    assert counts == {"truncated_rows": 0, "split_rows": 1, "dropped_rows": 0, "tokens_cut": 0}


def test_pieces_without_loss_are_left_out_and_counted():
    kept, counts = fit(rows_of(25, learned=5), data_config(max_length=10, on_long_row="split"))
    assert [(row.length, row.loss_tokens) for row in kept] == [(5, 4)]
    assert counts == {"truncated_rows": 0, "split_rows": 1, "dropped_rows": 0, "tokens_cut": 20}


def test_dropping_counts_rows_and_tokens():
    kept, counts = fit(rows_of(5, 12, 10, 30, learned=4), data_config(max_length=10, on_long_row="drop"))
    assert [row.length for row in kept] == [5, 10]
    assert counts == {"truncated_rows": 0, "split_rows": 0, "dropped_rows": 2, "tokens_cut": 42}


def test_long_rows_as_an_error_say_how_many_and_how_long():
    with pytest.raises(ConfigError, match="max_length=10: 2 training rows are longer, the longest has 30 tokens"):
        fit(rows_of(5, 12, 10, 30), data_config(max_length=10, on_long_row="error"))


@pytest.mark.parametrize(
    ("packing", "asked", "done"),
    [
        ("none", "auto", "truncate"),
        ("pack", "auto", "split"),
        ("split", "auto", "whole"),
        ("split", "split", "whole"),
        ("none", "split", "split"),
        ("pack", "truncate", "truncate"),
        ("split", "error", "error"),
    ],
)
def test_what_happens_to_long_rows_follows_the_packing_unless_it_is_said(packing, asked, done):
    assert policy(data_config(packing=packing, on_long_row=asked)) == done


@pytest.mark.parametrize("how", ["truncate", "split", "drop", "error"])
def test_rows_that_fit_are_left_alone(how):
    rows = rows_of(5, 10)
    counts = {"truncated_rows": 0, "split_rows": 0, "dropped_rows": 0, "tokens_cut": 0}
    assert fit(rows, data_config(max_length=10, on_long_row=how)) == (rows, counts)


def test_duplicates_are_found_however_far_apart(monkeypatch):
    monkeypatch.setattr(fitting, "CHUNK_ROWS", 7)
    draw = random.Random(0)
    rows = [conversation([("user", f"{draw.randrange(200)}"), ("assistant", "yes")]) for _ in range(1000)]
    different = Different()
    kept = list(different.of(rows))
    assert kept == list({row.id: row for row in rows}.values())
    assert (different.rows, different.duplicates) == (len(kept), 1000 - len(kept))
    assert sum(len(known) for known in different._known) == len(kept)
    assert sum(known.nbytes for known in different._known) == 8 * len(kept)


def judged(**changed: object) -> EvalConfig:
    return EvalConfig(**({"batch_size": 1, "max_samples": None, "test": False} | changed))  # type: ignore[arg-type]


def test_from_a_file_to_rows(tmp_path, caplog, monkeypatch):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}. " * (i % 9 + 1)} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"question": "?"}]))
    data = data_config(path, max_length=100, on_bad_row="skip")
    seen: list[tuple[str, int | None]] = []

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
    assert seen == [("tokenizing", None)], "nobody knows how many there are before all are read"
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
    rows = load_everything(data, judged(), template_config(), tiny_tokenizer())
    assert len(rows) == 2 and all(row.length > 4 for row in rows), "none is cut"
    assert len(load_everything(data, judged(max_samples=1), template_config(), tiny_tokenizer())) == 1


def rows_file(folder: Path, count: int = 120, name: str = "rows.jsonl") -> Path:
    path = folder / name
    rows = [{"question": f"{name} {i}?", "answer": f"It is {i}. " * (i % 7 + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(data: DataConfig, **changed: object) -> Splits:
    return load_splits(data, judged(**changed), template_config(), tiny_tokenizer())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; the folder of tokenized rows in it."""
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "cache"))
    return cache_dir() / "tokens"


@pytest.fixture
def encodings(monkeypatch) -> list[str]:
    """Ids of the conversations that were really tokenized."""
    met: list[str] = []
    encode = pipeline.Encoder.encode

    def counted(self, items, **options):
        for found in encode(self, items, **options):
            met.append(found.conversation.id)
            yield found

    monkeypatch.setattr(pipeline.Encoder, "encode", counted)
    return met


def test_the_second_time_nothing_is_tokenized(tmp_path, cache, encodings, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sweeptune"), "propagate", True)
    caplog.set_level("INFO", "sweeptune")
    data = data_config(rows_file(tmp_path), cache=True)
    first = load(data)
    [folder] = cache.glob("[!.]*")
    assert f"tokenized {len(set(encodings))} rows, kept in {folder}" in caplog.text
    assert "from the cache" not in caplog.text
    encodings.clear()
    second = load(data)
    assert encodings == [] and f"tokenized rows from the cache ({folder})" in caplog.text
    assert (second.train, second.eval, second.test) == (first.train, first.eval, first.test)
    assert (second.stats, second.ledger.as_dict()) == (first.stats, first.ledger.as_dict())
    uncached = load(replace(data, cache=False))
    assert (list(uncached.train), uncached.stats) == (list(first.train), first.stats)


def test_max_samples_choose_among_the_rows_that_are_kept(tmp_path, cache, encodings):
    data = data_config(rows_file(tmp_path, 300), cache=True)
    whole = load(data)
    encodings.clear()
    few = load(data, max_samples=3)
    assert encodings == []
    assert ids(few.eval) == ids(whole.eval)[:3]
    assert few.stats["eval"] == {
        "rows": 3,
        "tokens": sum(row.length for row in few.eval),
        "loss_tokens": sum(row.loss_tokens for row in few.eval),
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"max_length": 65},
        {"on_long_row": "drop"},
        {"packing": "pack", "on_long_row": "auto"},
        {"packing": "split"},
        {"eval_fraction": 0.2},
        {"test_fraction": 0.2},
        {"on_bad_row": "skip"},
        {"loss_on": "all"},
        {"format": "qa"},
    ],
    ids=lambda changed: ",".join(f"{key}={value}" for key, value in changed.items()),
)
def test_a_setting_that_changes_the_rows_is_tokenized_anew(tmp_path, cache, changed):
    data = data_config(rows_file(tmp_path), cache=True)
    load(data)
    load(replace(data, **changed))
    assert len(list(cache.glob("[!.]*"))) == 2


def test_other_content_and_another_template_are_tokenized_anew(tmp_path, cache):
    data = data_config(rows_file(tmp_path), cache=True)
    load(data)
    path = Path(str(data.path))
    path.write_text(path.read_text().replace("It is 5.", "It is 6."))
    load(data)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{# another #}"
    load_splits(data, judged(), template_config(), tokenizer)
    assert len(list(cache.glob("[!.]*"))) == 3


def test_where_and_when_a_file_was_written_does_not_matter(tmp_path, cache, encodings):
    load(data_config(rows_file(tmp_path), cache=True))
    encodings.clear()
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "rows.jsonl").rename(tmp_path / "elsewhere" / "rows.jsonl")
    load(data_config(moved, cache=True))
    assert encodings == []


@pytest.mark.parametrize("cached", [False, None], ids=["data.cache=false", "content unknown"])
def test_rows_that_are_not_kept_leave_no_file(tmp_path, cache, monkeypatch, cached):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    if cached is None:
        monkeypatch.setattr(pipeline, "content_digest", lambda data: None)
    splits = load(data_config(rows_file(tmp_path), cache=cached is None))
    assert list(work.iterdir()) == [] and not cache.exists()
    assert len(list(splits.train)) == splits.stats["train"]["rows"]


def test_an_error_on_the_way_leaves_nothing_behind(tmp_path, cache):
    path = rows_file(tmp_path)
    with path.open("a") as file:
        file.write('{"question": "no answer"}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:121: "):
        load(data_config(path, cache=True))
    assert list(cache.iterdir()) == []


def test_a_damaged_entry_is_noticed_and_made_anew(tmp_path, cache, encodings, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sweeptune"), "propagate", True)
    data = data_config(rows_file(tmp_path), cache=True)
    first = load(data)
    expected = hash_rows(list(first.train))
    [folder] = cache.glob("[!.]*")
    for damage in sorted(path.name for path in folder.iterdir()):
        content = (folder / damage).read_bytes()
        (folder / damage).write_bytes(content[:-3])
        encodings.clear()
        assert hash_rows(load(data).train) == expected
        assert encodings, f"{damage} was cut and nobody noticed"
        assert (folder / damage).stat().st_size == len(content) or damage == "meta.json"
    assert "is not whole, so its rows are tokenized again" in caplog.text
    assert list(cache.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_costs_the_cache_only(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sweeptune"), "propagate", True)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "file"))
    assert len(load(data_config(rows_file(tmp_path), cache=True)).train) > 0
    assert "tokenized rows are not kept" in caplog.text


class TextEncoder:
    """Stands in for tokenizing raw text: a token a byte, loss on all that has something before it."""

    digest = "text"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateConfig, loss_on: str) -> None:
        self.tokenizer, self.template = tokenizer, template

    def encode(self, items: Iterable[Conversation], window: int | None = None) -> Iterator[Encoded]:
        for item in items:
            whole = list(item.messages[0].content.encode())
            width = window or len(whole)
            for begin in range(0, len(whole), width):
                tokens = whole[begin : begin + width]
                name = f"{item.id}-{begin // width}" if window else item.id
                row = Row(name, tokens, [False] + [True] * (len(tokens) - 1), len(tokens))
                yield Encoded(row, (Span("text", 0, 0, len(tokens), True),), item)


@pytest.fixture
def documents(monkeypatch) -> list[Conversation]:
    """60 documents of raw text, of 5 to 241 bytes."""
    items = [conversation([(TEXT, f"{i:03d}: " + "x" * (4 * i))]) for i in range(60)]

    def read(data, found):
        found.format, found.rows = "text", len(items)
        yield from items

    monkeypatch.setattr(pipeline, "read", read)
    monkeypatch.setattr(pipeline, "Encoder", TextEncoder)
    return items


@pytest.mark.parametrize("packing", ["none", "pack", "split"])
def test_raw_text_is_read_in_windows_but_for_training_that_cuts_itself(documents, monkeypatch, packing):
    monkeypatch.setattr(pipeline, "ASIDE", 5)
    data = data_config(packing=packing, max_length=50, eval_fraction=0.2, test_fraction=0.2, on_long_row="truncate")
    splits = load(data)
    held = HoldOut(data)
    content = {"train": [], "eval": [], "test": []}
    for item in documents:
        content[held.part(item.split_key)].append(item.messages[0].content.encode())
    for name in ("train", "eval", "test"):
        rows = getattr(splits, name)
        whole = packing == "split" and name == "train"
        assert len(set(ids(rows))) == len(rows), "scores are kept by id"
        assert (max(row.length for row in rows) > 50) == whole
        # A last window of one token has nothing to predict and is left out.
        parts = [text[at : at + 50] for text in content[name] for at in range(0, len(text), 50)]
        expected = content[name] if whole else [part for part in parts if len(part) > 1]
        assert sorted(bytes(row.input_ids) for row in rows) == sorted(expected)
    documents_of = [name.partition("-")[0] for name in ids(splits.eval)]
    assert documents_of != sorted(documents_of), "the first by hash are not the windows of a few documents"
    assert load(data, max_samples=4).eval == splits.eval[:4]
    if packing != "split":
        assert [bytes(row.input_ids) for row in splits.train] == [
            part for text in content["train"] for at in range(0, len(text), 50) if len(part := text[at : at + 50]) > 1
        ]


def test_everything_is_held_out_and_nothing_cut(tmp_path):
    data = data_config(rows_file(tmp_path, 2), max_length=10)
    arguments = template_config(), tiny_tokenizer()
    rows = load_everything(data, judged(), *arguments)
    assert len(rows) == 2 and min(rows.lengths) > 10
    assert ids(load_everything(data, judged(max_samples=1), *arguments)) == ids(rows)[:1]


def mixture(folder: Path, *shares: tuple[int, float | None]) -> DataConfig:
    parts = [
        MixPart(path=str(rows_file(folder, count, f"{chr(97 + i)}.jsonl")), weight=weight)
        for i, (count, weight) in enumerate(shares)
    ]
    return data_config(mix=parts, name="jsonl", max_length=200)


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 3), (1, 7.5), (100, 1)])
def test_weights_are_shares_of_the_training_tokens(tmp_path, weights, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sweeptune"), "propagate", True)
    caplog.set_level("INFO", "sweeptune")
    splits = load(mixture(tmp_path, (400, weights[0]), (90, weights[1])))
    sources, lengths = splits.train.sources, splits.train.lengths
    total = sum(weights)
    for source, weight in enumerate(weights):
        share = lengths[sources == source].sum() / lengths.sum()
        assert abs(share - weight / total) <= 2 * max(lengths) / lengths.sum(), "to within a row of each"
        assert splits.stats["mix"][source]["share"] == pytest.approx(share)
    plain = load(mixture(tmp_path, (400, None), (90, None)))
    assert set(ids(splits.train)) == set(ids(plain.train)), "every row is seen at least once"
    assert splits.stats["train"]["tokens"] == lengths.sum()
    assert (splits.eval, splits.test) == (plain.eval, plain.test)
    passes = [part["passes"] for part in splits.stats["mix"]]
    assert min(passes) == 1.0
    for part in splits.stats["mix"]:
        assert (
            f"{part['path']}: {100 * part['share']:.2f} % of the tokens, seen {part['passes']:.2f} times" in caplog.text
        )


def test_repeats_are_whole_passes_and_a_rest(tmp_path):
    splits = load(mixture(tmp_path, (400, 1), (90, 1)))
    names = ids(splits.train)
    times: list[set[int]] = [set(), set()]
    for name, source in zip(names, splits.train.sources, strict=True):
        times[source].add(names.count(name))
    assert times == [{1}, {4, 5}]
    again = load(mixture(tmp_path, (400, 1), (90, 1)))
    assert again.train == splits.train


def test_without_weights_datasets_follow_each_other(tmp_path):
    splits = load(mixture(tmp_path, (50, None), (50, None)))
    assert "mix" not in splits.stats
    assert sorted(splits.train.sources) == list(splits.train.sources)
    assert len(set(ids(splits.train))) == len(splits.train)


def test_weights_choose_among_the_rows_that_are_kept(tmp_path, cache, encodings):
    data = replace(mixture(tmp_path, (200, 1), (90, 1)), cache=True)
    load(data)
    encodings.clear()
    shares = load(
        replace(data, mix=[replace(part, weight=weight) for part, weight in zip(data.mix, (1, 9), strict=True)])
    )
    assert encodings == []
    assert shares.stats["mix"][1]["share"] == pytest.approx(0.9, abs=0.02)


def test_a_weight_needs_rows_and_company(tmp_path):
    with pytest.raises(ConfigError, match=r"b\.jsonl has no weight and others have"):
        load(mixture(tmp_path, (50, 1), (50, None)))
    data = mixture(tmp_path, (50, 1), (50, 1))
    Path(data.mix[1].path).write_text(Path(data.mix[0].path).read_text())
    with pytest.raises(ConfigError, match=r"b\.jsonl has no training row of its own"):
        load(data)


# Rows that are legal, and rows that are not ---------------------------------------------------------------------------


def chats(folder: Path, *turns: dict[str, object], count: int = 60, name: str = "chats.jsonl", **more: object) -> Path:
    """Conversations of these turns; ``{i}`` in what is said is the row's number."""
    rows = [
        {"messages": [turn | {"content": str(turn["content"]).replace("{i}", str(i))} for turn in turns], **more}
        for i in range(count)
    ]
    return write(folder, *rows, name=name)


ASKED, SAID = {"role": "user", "content": "{i}?"}, {"role": "assistant", "content": "It is {i}."}
MORE = {"role": "user", "content": "Thanks"}


@pytest.mark.parametrize("name", ["auto", "chatml", "none"])
@pytest.mark.parametrize(
    ("last", "loss_on"),
    [(MORE, "all"), (MORE | {"loss": True}, "assistant"), (MORE | {"loss": True}, "last"), (MORE, "assistant")],
    ids=["all", "a learned turn", "a learned turn, last", "a turn that is left out"],
)
def test_turns_behind_the_last_answer_are_no_other_text_than_the_templates(tmp_path, name, last, loss_on):
    data = data_config(chats(tmp_path, ASKED, SAID, last), loss_on=loss_on, max_length=200)
    splits = load_splits(data, judged(), template_config(name), tiny_tokenizer())
    assert splits.ledger.rendering == Rendering(rows=60, equal=60)
    texts = [tiny_tokenizer().decode(row.input_ids) for row in splits.train]
    assert all(("Thanks" in text) == (loss_on == "all" or "loss" in last) for text in texts)


@pytest.mark.parametrize(
    ("turns", "loss_on", "changed", "told"),
    [
        ([ASKED, SAID, MORE, SAID], "assistant", {}, "60 of 60 documents train the token that ends them: '<|im_end|>'"),
        ([ASKED, SAID, MORE, SAID], "all", {}, "60 of 60 documents train"),
        ([ASKED, SAID, MORE], "all", {}, "60 of 60 documents train"),
        ([ASKED, SAID, MORE, SAID | {"loss": False}], "assistant", {}, "0 of 60 documents train"),
        ([ASKED, SAID], "assistant", {"document_end": None}, "0 of 60 documents train the token that ends them; no"),
    ],
    ids=["two answers", "two answers, all", "a last question, all", "a last answer without loss", "no end"],
)
def test_without_a_template_answers_need_no_end(tmp_path, turns, loss_on, changed, told):
    data = data_config(chats(tmp_path, *turns), loss_on=loss_on, max_length=200)
    ledger = load_splits(data, judged(), template_config("none", **changed), tiny_tokenizer()).ledger
    assert ledger.problems() == []
    assert f"  {told}" in "\n".join(ledger.lines())
    assert ledger.rendering is not None and ledger.rendering.texts == 0


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.parametrize("name", ["auto", "none"])
@pytest.mark.parametrize(
    ("turns", "more", "lost"),
    [
        ([ASKED, SAID], {"tools": [TOOL]}, "tools"),
        ([ASKED, CALL, {"role": "tool", "content": "2"}, SAID], {}, "tool_calls"),
        ([ASKED, CALL, {"role": "tool", "content": "2"}, SAID], {"tools": [TOOL]}, "tools and tool_calls"),
    ],
    ids=["tools", "calls", "both"],
)
def test_tools_that_a_template_does_not_write_stop_with_the_row_shown(tmp_path, name, turns, more, lost):
    data = data_config(chats(tmp_path, *turns, **more), max_length=400)
    with pytest.raises(ConfigError) as error:
        load_splits(data, judged(), template_config(name), tiny_tokenizer())
    [problem] = error.value.problems
    assert problem.startswith(f"template={name}: this template does not write the {lost} of a row")
    assert "chats.jsonl:1: user '0?', assistant '" in problem
    assert "template=jinja template.path=<file>" in problem and f"or take {lost} out of the data" in problem


def test_tools_that_a_template_writes_are_rows_like_others(tmp_path):
    tokenizer = tiny_tokenizer()
    calls = "+ (m['tool_calls'] | tojson if m['tool_calls'] else '') + '<|im_end|>'"
    written = CHATML.replace("message", "m").replace("in ms", "in messages").replace("+ '<|im_end|>'", calls)
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + written
    turns = [ASKED, CALL, {"role": "tool", "content": "2"}, SAID]
    data = data_config(chats(tmp_path, *turns, tools=[TOOL]), max_length=400)
    assert load_splits(data, judged(), template_config(), tokenizer).ledger.rendering == Rendering(rows=60, equal=60)


# Who filled the cache does not show -----------------------------------------------------------------------------------


def merging() -> PreTrainedTokenizerBase:
    """Bytes under a template behind which another text begins: every row says the same in other tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["\nIt"])
    return tokenizer


def test_the_ledger_is_the_same_whoever_filled_the_cache(tmp_path, cache, encodings):
    mine = tmp_path / "mine.jinja"
    mine.write_text(CHATML)
    own, other = template_config(), template_config("jinja", path=str(mine))
    (tmp_path / "writer").mkdir()
    silent = SAID | {"loss": False}
    rows = [json.loads(line) for line in chats(tmp_path, ASKED, SAID).read_text().splitlines()]
    rows.append({"messages": [ASKED, silent]})
    paths = [write(folder, *rows) for folder in (tmp_path / "writer", tmp_path)]

    def loaded(path: Path, template: TemplateConfig, **changed: object) -> Ledger:
        data = data_config(path, on_bad_row="skip", **changed)
        return load_splits(data, judged(), template, merging()).ledger

    written = loaded(paths[0], own, cache=True)
    encodings.clear()
    cached = loaded(paths[1], other, cache=True)
    assert encodings == []
    alone = loaded(paths[1], other)
    assert written.rendering is not None and written.rendering.merges == 60
    assert written.digest == cached.digest == alone.digest
    assert cached.as_dict() == alone.as_dict() and cached.lines() == alone.lines()
    assert "template=jinja" in cached.lines()[0] and "template=auto" in written.lines()[0]
    assert "writer" not in json.dumps(cached.as_dict())


def test_raw_text_and_chats_of_equal_counts_have_other_digests():
    parts = Ledger.from_dict(Ledger().as_dict() | {"parts": [{"source": 0, "template": "auto", "rows": 1}]})
    texts = Ledger.from_dict(Ledger().as_dict() | {"parts": [{"source": 0, "template": TEXT, "rows": 1}]}, "auto")
    assert list(texts.parts) == [(0, TEXT)]
    assert parts.digest != texts.digest


# Dates ----------------------------------------------------------------------------------------------------------------


def test_rows_of_a_template_that_asks_for_the_date_are_the_same_on_every_day(tmp_path, monkeypatch):
    import transformers.utils.chat_template_utils as chat_templates

    class Tomorrow:
        @staticmethod
        def now() -> datetime:
            return datetime(2031, 5, 6)

    dated = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '.<|im_end|>\n' }}" + CHATML
    plainly = chats(tmp_path, ASKED, SAID)
    with_name = chats(tmp_path, ASKED | {"name": "Ann"}, SAID, name="named.jsonl")  # not rendered the quick way
    texts = {}
    for day in ("today", "another day"):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = dated
        for path in (plainly, with_name):
            splits = load_splits(data_config(path, max_length=400), judged(), template_config(), tokenizer)
            assert splits.ledger.rendering == Rendering(rows=60, equal=60)
            texts[path.name, day] = [tokenizer.decode(row.input_ids) for row in splits.train]
        monkeypatch.setattr(chat_templates, "datetime", Tomorrow)
    assert texts["chats.jsonl", "today"] == texts["chats.jsonl", "another day"]
    assert texts["named.jsonl", "today"] == texts["named.jsonl", "another day"]
    assert all("Today is 26 Jul 2024." in text for found in texts.values() for text in found)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert "Today is 06 May 2031." in asked, "chat sees the real day"
