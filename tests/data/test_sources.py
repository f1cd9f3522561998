"""Files of rows: every malformed one is named with its place and reason; what is read is what was written."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig, MixPart
from sweeptune.data.sources import Found, content_digest, read
from tests.data.helpers import GOOD, data_config, load, write

DEEP = "[" * 100_000
HALF_A_PAIR = '{"question": "q", "answer": "\\ud83d"}'


def mixture(*parts: MixPart) -> DataConfig:
    return data_config(name="jsonl", mix=list(parts))


def turns(path: Path, **changed: str) -> list[tuple[str, str]]:
    [row] = load(data_config(path, **changed))[0]
    return [(message.role, message.content) for message in row.messages]


def test_keys_that_no_format_knows_are_ignored(tmp_path):
    assert turns(write(tmp_path, GOOD | {"level": "easy", "id": 7})) == turns(write(tmp_path, GOOD, name="plain.jsonl"))


BAD = {
    "broken": ('{"question": "q", "answer"', r"is not JSON: .*\(column 27\)"),
    "text": ("hello", "is not JSON"),
    "two objects": ('{"question": "q", "answer": "a"} {}', "is not JSON: Extra data"),
    "deep": (DEEP, "Python cannot hold"),
    "number of thousands of digits": ('{"question": ' + "9" * 5000 + ', "answer": "a"}', "Python cannot hold"),
    "a list": ([1, 2], "is a list, not an object"),
    "a string": ('"text"', "is a str, not an object"),
    "null": ("null", "is a NoneType, not an object"),
    "no answer": ({"question": "q"}, r"has no answer \(keys: question\)"),
    "empty answer": ({"question": "q", "answer": ""}, "answer is empty"),
    "blank question": ({"question": " \n", "answer": "a"}, "question is empty"),
    "answer is a number": ({"question": "q", "answer": 4}, "answer is a int, not a text"),
    "answer is null": ({"question": "q", "answer": None}, "answer is a NoneType, not a text"),
    "half a surrogate pair": (HALF_A_PAIR, "surrogate pair"),
    "another format": ({"instruction": "i", "output": "o"}, r"has no question \(keys: instruction, output\)"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_named_with_file_line_and_reason_or_skipped(tmp_path, bad, reason):
    path = write(tmp_path, GOOD, "", bad, {"question": "q", "answer": "a"})
    with pytest.raises(ConfigError, match=reason) as error:
        load(data_config(path))
    [problem] = error.value.problems
    assert problem.startswith(f"{path}:3: ")
    assert problem.endswith("(data.on_bad_row=skip leaves such rows out and counts them)")
    rows, stats = load(data_config(path, on_bad_row="skip"))
    assert (len(rows), stats) == (2, Found("qa", rows=3, bad_rows=1))


def test_only_the_first_five_are_shown_and_the_rest_counted(tmp_path):
    path = write(tmp_path, GOOD, *[{"question": "q"}] * 12)
    with pytest.raises(ConfigError) as error:
        load(data_config(path))
    problems = error.value.problems
    assert [problem.split(": ")[0] for problem in problems[:5]] == [f"{path}:{line}" for line in range(2, 7)]
    assert problems[5].startswith(f"{path}: 7 more rows are malformed (data.on_bad_row=skip")
    assert len(problems) == 6


def test_an_unknown_shape_lists_the_known_ones_and_never_floods_the_terminal(tmp_path):
    row = {f"key {i} \x1b[31m{'x' * 500}": i for i in range(100)}
    with pytest.raises(ConfigError, match=r"none of the known shapes.*messages.*instruction.*question") as error:
        load(data_config(write(tmp_path, row)))
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 1500


def test_the_first_row_that_has_a_shape_decides(tmp_path):
    path = write(tmp_path, "broken", {"x": 1}, {"instruction": "i", "output": "o"}, GOOD)
    rows, stats = load(data_config(path, on_bad_row="skip"))
    assert (len(rows), stats.format, stats.bad_rows) == (1, "alpaca", 3)


@pytest.mark.parametrize("lines", [[], ["", "  ", "\t"], ["broken", {"x": 1}]], ids=["empty", "blank", "all bad"])
def test_a_file_without_a_usable_row(tmp_path, lines):
    with pytest.raises(ConfigError, match="has no usable row"):
        load(data_config(write(tmp_path, *lines), on_bad_row="skip"))


TEXT = json.dumps(GOOD) + "\n" + json.dumps({"question": "q", "answer": "a"})


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT + "\n",
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n") + "\r\n",
        f"\n\n{TEXT}\n \n\n".replace("}\n{", "}\n\n{"),
    ],
    ids=["no final newline", "final newline", "byte order mark", "crlf", "blank lines"],
)
def test_line_ends_and_byte_order_mark_change_nothing(tmp_path, content):
    plain, path = tmp_path / "plain.jsonl", tmp_path / "rows.jsonl"
    plain.write_text(TEXT + "\n")
    path.write_bytes(content.encode())
    assert [row.messages for row in load(data_config(path))[0]] == [row.messages for row in load(data_config(plain))[0]]


@pytest.mark.parametrize(
    "answer", ["世界你好 🙂", "a\u2028b\u2029c\u0085d\x0ce", "tab\tand\nnewline", "e\u0301 \U0001f9d1‍🚀"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_text_arrives_as_it_was_written(tmp_path, answer, ascii_only):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps({"question": "q", "answer": answer}, ensure_ascii=ascii_only) + "\n").encode())
    assert turns(path)[1] == ("assistant", answer)


@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_a_json_array_holds_rows_too(tmp_path, start):
    path = tmp_path / "rows.json"
    path.write_text(start + json.dumps([GOOD, {"question": "q", "answer": "a\u2028b"}], indent=2), "utf-8")
    rows, stats = load(data_config(path))
    assert (len(rows), stats.rows) == (2, 2)
    path.write_text(json.dumps([GOOD, 7]))
    with pytest.raises(ConfigError, match=r"rows\.json, element 2: is a int"):
        load(data_config(path))
    path.write_text('[\n{"question": "q",\n')
    with pytest.raises(ConfigError, match=r"data\.path=.*rows\.json: is not JSON.*\(line 3\)"):
        load(data_config(path))


def test_lines_may_stand_in_a_file_that_is_called_json(tmp_path):
    assert len(load(data_config(write(tmp_path, GOOD, name="rows.json")))[0]) == 1


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + '\n{"question": "q", "answer": "é"}\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: is not UTF-8 .*at byte 30"):
        load(data_config(path))
    assert load(data_config(path, on_bad_row="skip"))[1].bad_rows == 1


def test_equal_rows_are_given_as_often_as_they_stand_there_and_have_one_id(tmp_path):
    chat = {"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "It is 2."}]}
    alpaca = {"instruction": "What is 1+1?", "output": "It is 2."}
    same = [load(data_config(write(tmp_path, row, row)))[0] for row in (GOOD, chat, alpaca, GOOD | {"id": 3})]
    assert [len(rows) for rows in same] == [2] * 4
    assert len({row.id for rows in same for row in rows}) == 1
    assert same[0][0].split_key == same[0][0].id
    assert [row.place for row in same[0]] == [f"{tmp_path / 'rows.jsonl'}:{line}" for line in (1, 2)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "a.txt", "rows.jsonl.gz"])
def test_a_path_that_cannot_be_read(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"data\.path=.*{name}: cannot be read \(No such file"):
        load(data_config(tmp_path / name))


def test_relative_paths_start_at_the_current_directory(tmp_path, monkeypatch):
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert len(load(data_config(Path("rows.jsonl")))[0]) == 1


def test_rows_behind_the_first_malformed_one_are_looked_through_but_not_given(tmp_path):
    path = write(tmp_path, GOOD, {"question": "q"}, *[GOOD] * 3)
    found, given = Found(), []
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2"):
        for item in read(data_config(path), found):
            given.append(item)
    assert (len(given), found.rows, found.bad_rows) == (1, 5, 1)


def test_a_long_file_is_not_looked_through_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeptune.data.sources.LOOK_ON", 20)
    path = write(tmp_path, *[{"question": "q"}] * 30, *[GOOD] * 100)
    found = Found()
    with pytest.raises(ConfigError, match="at least 16 more rows are malformed"):
        list(read(data_config(path), found))
    assert found.rows == 21


def test_a_row_of_another_format_says_which(tmp_path):
    path = write(tmp_path, GOOD, {"instruction": "i", "output": "o"})
    with pytest.raises(ConfigError, match="It looks like alpaca, and the first row of its source is qa"):
        load(data_config(path))
    with pytest.raises(ConfigError, match=r"It looks like qa, and data\.format=alpaca"):
        load(data_config(path, format="alpaca"))


# Folders, lists, mixtures.


def test_a_folder_stands_for_the_files_of_rows_in_it(tmp_path, caplog, monkeypatch):
    (tmp_path / "deep").mkdir()
    write(tmp_path, GOOD, name="b.jsonl")
    write(tmp_path, {"instruction": "i", "output": "o"}, name="a.jsonl")
    write(tmp_path / "deep", GOOD, name="c.jsonl")
    for name in (".hidden.jsonl", "README.md", "x.bin"):
        (tmp_path / name).write_text("no row")
    monkeypatch.setattr(logging.getLogger("sweeptune"), "propagate", True)
    caplog.set_level("INFO", "sweeptune")
    items, found = load(data_config(tmp_path))
    assert [Path(item.place).name for item in items] == ["a.jsonl:1", "b.jsonl:1", "c.jsonl:1"]
    assert found == Found("alpaca + qa", rows=3, left_out=3)
    assert "files read: 3, left out: 3 (.hidden.jsonl, README.md, x.bin)" in caplog.text


def test_a_list_of_paths_is_read_in_its_order(tmp_path):
    paths = [str(write(tmp_path, {"question": name, "answer": "a"}, name=name)) for name in ("b.jsonl", "a.jsonl")]
    items, _ = load(replace(data_config(tmp_path), path=paths))
    assert [item.messages[0].content for item in items] == ["b.jsonl", "a.jsonl"]


def test_parts_of_a_mixture_have_their_own_format_and_number(tmp_path):
    parts = [
        MixPart(path=str(write(tmp_path, GOOD, GOOD, name="a.jsonl")), weight=2.0),
        MixPart(path=str(write(tmp_path, {"text": "t", "question": "q"}, name="b.jsonl")), weight=1.0, format="text"),
        MixPart(path=str(write(tmp_path, {"prompt": "p", "completion": "c"}, name="c.jsonl")), weight=1.0),
    ]
    items, found = load(mixture(*parts))
    assert [item.source for item in items] == [0, 0, 1, 2]
    assert found == Found("qa + text + prompt_completion", rows=4)
    empty = MixPart(path=str(write(tmp_path, name="d.jsonl")), weight=1.0)
    with pytest.raises(ConfigError, match=r"data\.mix\[1\]\.path=.*d\.jsonl: has no usable row \(it is empty\)"):
        load(mixture(parts[0], empty))


# What names the content, and what it costs.


def test_the_digest_names_the_content_and_not_its_place(tmp_path):
    (tmp_path / "other").mkdir()
    here, there = write(tmp_path, GOOD), write(tmp_path / "other", GOOD, name="copy.jsonl")
    first = content_digest(data_config(here))
    assert first == content_digest(data_config(there)) == content_digest(data_config(here, max_length=5))
    assert first != content_digest(data_config(here, format="qa"))
    write(tmp_path, GOOD, GOOD)
    assert first != content_digest(data_config(here))
    assert content_digest(data_config(path=tmp_path)) != content_digest(data_config(path=here))
    mixed = [MixPart(path=str(here)), MixPart(path=str(there))]
    assert content_digest(mixture(*mixed)) != content_digest(mixture(*mixed[::-1]))
    with pytest.raises(ConfigError, match="cannot be read"):
        content_digest(data_config(tmp_path / "missing.jsonl"))


@pytest.mark.parametrize("name", ["pydocs", "pydocs_text"])
def test_what_python_carries_is_read_by_name(name, tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text(f"def f():\n    '{'It is documented. ' * 9}'\n")
    monkeypatch.setattr("sweeptune.data.pydocs._root", lambda: tmp_path)
    items, found = load(data_config(name=name))
    assert found.rows == len(items) and found.bad_rows == 0 and all(item.place for item in items)
    digest = content_digest(data_config(name=name))
    assert digest and digest == content_digest(data_config(name=name)) and len(digest) == 64


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "wrapped.json", "rows.csv", "rows.parquet", "book.txt", "rows.jsonl.gz"]
)
def test_a_file_is_never_in_memory_as_a_whole(tmp_path, name):
    path = tmp_path / name
    size = _write_big(path, 6000)
    kept = 0
    tracemalloc.start()
    for _ in read(data_config(path, name="text" if name == "book.txt" else "jsonl"), found := Found()):
        kept += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept == found.rows > 100
    assert peak < size / 4


def _write_big(path: Path, count: int) -> int:
    """Write about 500 bytes a row, and say how many that are in all."""
    rows = ({"question": f"{i}?", "answer": f"{i} " * (480 // len(f"{i}"))} for i in range(count))
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=500)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["question", "answer"], *(row.values() for row in rows)])
    else:
        lines = [row["answer"] + "\n\n" if path.suffix == ".txt" else json.dumps(row) for row in rows]
        text = {"rows.json": "[%s]", "wrapped.json": '{"data": [%s]}'}.get(path.name, "%s")
        whole = text % ("," if path.suffix == ".json" else "\n").join(lines)
        path.write_bytes(gzip.compress(whole.encode()) if path.suffix == ".gz" else whole.encode())
    return 500 * count
