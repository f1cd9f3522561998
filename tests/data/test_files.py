"""Kinds of files: JSON in one piece, tables, zipped files and texts give what lines of JSON give."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation
from sweeptune.data.files import file_rows
from sweeptune.data.jsonarray import JsonText
from sweeptune.data.sources import Found
from tests.data.helpers import GOOD, data_config, load, write


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "around", ['{"data": %s}', '{"version": 1.5, "names": ["a"], "x": {"y": []}, "train": %s, "n": 7}']
)
def test_an_object_with_one_list_holds_rows(tmp_path, around, indent):
    path = tmp_path / "rows.json"
    rows = [GOOD | {"question": f"{i}?"} for i in range(3000)]
    path.write_text(around % json.dumps(rows, indent=indent))
    items, found = load(data_config(path))
    assert [item.messages[0].content for item in items] == [row["question"] for row in rows]
    assert (found.rows, items[-1].place) == (3000, f"{path}, element 3000")


BROKEN_JSON = {
    "cut off": ('[{"question": "q", "answer": "a"}, {"question', "behind element 1: is not JSON: Unterminated string"),
    "no comma": ('[{"question": "q", "answer": "a"} {}]', "behind element 1: is not JSON: '{' stands where one of"),
    "no end": ('[{"question": "q", "answer": "a"}', "the end of the file"),
    "something behind": ('[{"question": "q", "answer": "a"}]\n[]', r"there is more behind its end \(line 2\)"),
    "two lists": ('{"a": [{"question": "q", "answer": "a"}], "b": [{}]}', "more than one list, also 'b'"),
    "deep": ("[" * 100_000, "Python cannot hold it"),
    "thousands of digits": ("[" + "9" * 5000 + "]", "Python cannot hold it"),
    "not UTF-8": (b'[{"question": "q", "answer": "\xe9"}]', "is not UTF-8"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
def test_a_broken_array_stops_whatever_is_done_with_bad_rows(tmp_path, content, reason):
    path = tmp_path / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=rf"data\.path=.*rows\.json: .*{reason}"):
        load(data_config(path, on_bad_row="skip"))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_an_array_is_the_same_however_its_pieces_are_cut(tmp_path, monkeypatch, size):
    monkeypatch.setattr("sweeptune.data.jsonarray.CHUNK", size)
    path = tmp_path / "rows.json"
    values = [
        {"question": 'é世\U0001f642 \\ "x" \u2028', "answer": "a" * n, "n": [n, -1.5e-7, True, None]} for n in (1, 40)
    ]
    for around in ("%s", '{"v": 12, "data": %s}'):
        path.write_text(" " + around % json.dumps(values, ensure_ascii=False) + "\n", "utf-8")
        if around == "%s":  # an object is told from lines by what is read first
            assert [item.messages[0].content for item in load(data_config(path))[0]] == [values[0]["question"]] * 2
    with path.open("rb") as file:
        text = JsonText(file)
        text.take("{")
        assert text.value() == "v" and text.take(":") and text.value() == 12


# Tables.


def test_a_csv_reads_like_json(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(
        '\ufeffinstruction,input,output,id\r\nAdd.,"1, 1",2\u2028,7\r\n\r\n"Say ""hi""\nagain",,hi,8\r\n'.encode()
    )
    rows, found = load(data_config(path))
    assert [message.content for row in rows for message in row.messages] == [
        "Add.\n\n1, 1",
        "2\u2028",
        'Say "hi"\nagain',
        "hi",
    ]
    assert [row.place for row in rows] == [f"{path}:2", f"{path}:4"]
    assert (found.format, found.rows) == ("alpaca", 2)
    tabs = tmp_path / "rows.tsv"
    tabs.write_text("question\tanswer\nWhat is 1+1?\tIt is 2.\n")
    assert load(data_config(tabs))[0][0].id == load(data_config(write(tmp_path, GOOD)))[0][0].id


def test_lists_of_turns_stand_in_tables_as_json(tmp_path):
    chat = [{"from": "human", "value": "What is 1+1?"}, {"from": "gpt", "value": "It is 2."}]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["conversations", "tools"], [json.dumps(chat), ""], ["[{", ""]])
    rows, found = load(data_config(path, on_bad_row="skip"))
    assert (found.format, found.bad_rows, rows[0].id) == (
        "sharegpt",
        1,
        load(data_config(write(tmp_path, GOOD)))[0][0].id,
    )
    with pytest.raises(ConfigError, match=r"rows\.csv:3: '\[\{' is not JSON"):
        load(data_config(path))


BAD_TABLES = {
    "too many fields": ("q,a,b", "has 3 fields, and the first line names 2"),
    "too few fields": ("q", "has 1 fields, and the first line names 2"),
    "text behind a quote": ('"q"x,a', "is no row of a table"),
    "not UTF-8": (b"q,\xe9", "is not UTF-8"),
    "empty field": ("q,", "answer is empty"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_bad_row_of_a_table(tmp_path, line, reason):
    path = tmp_path / "rows.csv"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'question,answer\n"two\nlines",a\n' + line + b"\nq,a\n")
    with pytest.raises(ConfigError, match=rf"rows\.csv:4: {reason}"):
        load(data_config(path))
    rows, found = load(data_config(path, on_bad_row="skip"))
    assert (len(rows), found) == (2, Found("qa", rows=3, bad_rows=1))


def test_a_quote_that_is_never_closed_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\nq,a\n"q,a\nq,a\n')
    with pytest.raises(ConfigError, match=r"rows\.csv:3: is no row of a table: unexpected end of data"):
        load(data_config(path))


@pytest.mark.parametrize("header", ["question,question", "question,"])
def test_columns_have_names_of_their_own(tmp_path, header):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\nq,a\n")
    with pytest.raises(ConfigError, match="has to name every column, each by a name of its own"):
        load(data_config(path))


def test_a_parquet_file_reads_like_json(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": null}'}}
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
        {"role": "assistant", "content": "It is 2."},
    ]
    rows = [{"messages": chat[:1] + chat[3:], "image": b"x", "n": 1}, {"messages": chat, "image": None, "n": 2}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows * 300), path)
    plain = write(tmp_path, {"messages": rows[0]["messages"]}, {"messages": chat})
    items, found = load(data_config(path))
    assert (found.format, found.rows, items[-1].place) == ("messages", 600, f"{path}, row 600")
    assert [item.id for item in items] == [item.id for item in load(data_config(plain))[0]] * 300
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match="is no parquet file that can be read"):
        load(data_config(path))


def test_a_zipped_file_reads_like_a_plain_one(tmp_path):
    plain = write(tmp_path, GOOD, {"question": "q", "answer": "é"})
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row.id for row in load(data_config(packed))[0]] == [row.id for row in load(data_config(plain))[0]]
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-12])
    with pytest.raises(ConfigError, match=r"packed\.jsonl\.gz: cannot be read"):
        load(data_config(packed))


# Texts.


def texts(path: Path | list[str], **changed: object) -> tuple[list[Conversation], Found]:
    return load(data_config(path, **({"name": "text"} | changed)))


def test_text_files_of_a_folder_are_a_document_each(tmp_path):
    content = {
        "b.txt": "Second.\r\n\n",
        "a.md": "\ufeff# First é\n",
        "deep/c.txt": "x" * 100_000,
        "rows.jsonl": '{"text": "row"}',
    }
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    items, found = texts(tmp_path)
    said = [(item.messages[0].role, item.messages[0].content) for item in items]
    assert said == [
        ("text", text.removeprefix("\ufeff")) for text in (content["a.md"], content["b.txt"], "x" * 100_000, "row")
    ]
    assert found == Found("text", rows=4)


def test_a_text_that_is_alone_is_read_in_sections_that_together_are_the_file(tmp_path):
    path = tmp_path / "book.txt"
    book = "".join(f"Paragraph {i} é.\nIt goes on.\n\n" for i in range(20_000))
    path.write_bytes(book.encode())
    items, found = texts(path)
    assert "".join(item.messages[0].content for item in items) == book
    assert 60 < found.rows == len(items) <= 130
    assert all(item.messages[0].content.startswith("Paragraph") for item in items)
    marks = [dict(item.messages[0].extra or {}) for item in items]
    assert marks[0] == {"closes": False} and marks[-1] == {"opens": False}
    assert all(mark == {"opens": False, "closes": False} for mark in marks[1:-1])
    path.write_text("Short.")
    assert [item.messages[0].extra for item in texts(path)[0]] == [None]


@pytest.mark.parametrize(("content", "reason"), [(b" \n", "text is empty"), (b"a\n\xe9", r"is not UTF-8 .*at byte 3")])
def test_a_bad_text(tmp_path, content, reason):
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_bytes(b"good")
    with pytest.raises(ConfigError, match=rf"a\.txt: {reason}"):
        texts(tmp_path)
    assert texts(tmp_path, on_bad_row="skip")[1] == Found("text", rows=2, bad_rows=1)


def test_text_rows_are_texts_and_other_rows_are_not(tmp_path):
    path = write(tmp_path, {"text": "a", "label": 1})
    assert load(data_config(path))[1].format == "text"
    assert texts(path)[0][0].messages[0].role == "text"
    with pytest.raises(ConfigError, match=r"has no text .*It looks like qa, and data\.format=text"):
        texts(write(tmp_path, GOOD))
    book = tmp_path / "book.txt"
    book.write_text("Text.")
    assert load(data_config(book))[1].format == "text"
    with pytest.raises(ConfigError, match=r"is a text file, and data\.format=alpaca is for rows"):
        load(data_config(book, format="alpaca"))


def test_sections_of_a_text_do_not_depend_on_how_well_it_is_compressed(tmp_path):
    text = "".join(f"Paragraph {i} says {i * i}.\n\n" for i in range(4000)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    for name, level in (("b.txt.gz", 1), ("c.txt.gz", 9)):
        (tmp_path / name).write_bytes(gzip.compress(text, level))
    names = ("a.txt", "b.txt.gz", "c.txt.gz")
    contents = [[item.content for _, item in file_rows(tmp_path / name, alone=True)] for name in names]
    assert len(contents[0]) > 3 and contents[0] == contents[1] == contents[2]
