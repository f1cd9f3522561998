"""A user's own file: every shape that is read, and every malformed one with its place and reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.data.jsonl import load_jsonl
from tests.data.helpers import data_config

GOOD = {"question": "What is 1+1?", "answer": "It is 2."}
DEEP = "[" * 100_000
HALF_A_PAIR = '{"question": "q", "answer": "\\ud83d"}'


def write(folder: Path, *lines: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def turns(path: Path, **changed: str) -> list[tuple[str, str]]:
    [row] = load_jsonl(data_config(path, **changed))[0]
    return [(message.role, message.content) for message in row.messages]


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        (GOOD, "qa", [("user", "What is 1+1?"), ("assistant", "It is 2.")]),
        ({"instruction": "Add.", "output": "2"}, "alpaca", [("user", "Add."), ("assistant", "2")]),
        (
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            "alpaca",
            [("user", "Add.\n\n1 1"), ("assistant", "2")],
        ),
        ({"instruction": "Add.", "input": "", "output": "2"}, "alpaca", [("user", "Add."), ("assistant", "2")]),
        ({"instruction": "Add.", "input": None, "output": "2"}, "alpaca", [("user", "Add."), ("assistant", "2")]),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "1+1?"},
                    {"role": "assistant", "content": "2"},
                ]
            },
            "messages",
            [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2")],
        ),
    ],
)
def test_formats_are_found_and_can_be_named(tmp_path, row, form, expected):
    path = write(tmp_path, row)
    assert load_jsonl(data_config(path))[1]["format"] == form
    assert turns(path) == turns(path, format=form) == expected


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
        load_jsonl(data_config(path))
    problem, hint = error.value.problems
    assert problem.startswith(f"{path}:3: ")
    assert "data.on_bad_row=skip" in hint
    rows, stats = load_jsonl(data_config(path, on_bad_row="skip"))
    assert (len(rows), stats) == (2, {"format": "qa", "rows": 3, "bad_rows": 1, "duplicates": 0})


def message(role: object = "user", content: object = "hi", **more: object) -> dict:
    return {"role": role, "content": content, **more}


BAD_MESSAGES = {
    "no list": ("hi", "messages is not a list"),
    "empty": ([], "at least one turn"),
    "no object": (["hi"], "turn 1 has no role"),
    "no role": ([{"content": "hi"}], "turn 1 has no role"),
    "unknown role": ([message("human")], r"turn 1 has the role 'human'; allowed: system, user, assistant"),
    "role is a list": ([message(["user"])], r"turn 1 has the role \['user'\]; allowed"),
    "no content": ([message(), {"role": "assistant"}], r"turn 2: has no content \(keys: role\)"),
    "tool call": ([message(), message("assistant", None, tool_calls=[])], "turn 2: content is a NoneType"),
    "empty answer": ([message(), message("assistant", " ")], "turn 2: content is empty"),
    "nobody answers": ([message("system"), message()], "nobody answers"),
    "answer without question": ([message("system"), message("assistant")], "the assistant speaks first"),
}


@pytest.mark.parametrize(("messages", "reason"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_bad_messages(tmp_path, messages, reason):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:1: .*{reason}"):
        load_jsonl(data_config(write(tmp_path, {"messages": messages})))


def test_only_the_first_five_are_shown_and_the_rest_counted(tmp_path):
    path = write(tmp_path, GOOD, *[{"question": "q"}] * 12)
    with pytest.raises(ConfigError) as error:
        load_jsonl(data_config(path))
    problems = error.value.problems
    assert [problem.split(": ")[0] for problem in problems[:5]] == [f"{path}:{line}" for line in range(2, 7)]
    assert problems[5] == f"{path}: 7 more rows are malformed"
    assert len(problems) == 7


def test_an_unknown_shape_lists_the_known_ones_and_never_floods_the_terminal(tmp_path):
    row = {f"key {i} \x1b[31m{'x' * 500}": i for i in range(100)}
    with pytest.raises(ConfigError, match=r"none of the known shapes.*messages.*instruction.*question") as error:
        load_jsonl(data_config(write(tmp_path, row)))
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 1500


def test_the_first_row_that_has_a_shape_decides(tmp_path):
    path = write(tmp_path, "broken", {"x": 1}, {"instruction": "i", "output": "o"}, GOOD)
    rows, stats = load_jsonl(data_config(path, on_bad_row="skip"))
    assert (len(rows), stats["format"], stats["bad_rows"]) == (1, "alpaca", 3)


@pytest.mark.parametrize("lines", [[], ["", "  ", "\t"], ["broken", {"x": 1}]], ids=["empty", "blank", "all bad"])
def test_a_file_without_a_usable_row(tmp_path, lines):
    with pytest.raises(ConfigError, match="has no usable row"):
        load_jsonl(data_config(write(tmp_path, *lines), on_bad_row="skip"))


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
    assert load_jsonl(data_config(path)) == load_jsonl(data_config(plain))


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
    rows, stats = load_jsonl(data_config(path))
    assert (len(rows), stats["rows"]) == (2, 2)
    path.write_text(json.dumps([GOOD, 7]))
    with pytest.raises(ConfigError, match=r"rows\.json, element 2: is a int"):
        load_jsonl(data_config(path))
    path.write_text('[\n{"question": "q",\n')
    with pytest.raises(ConfigError, match=r"data\.path=.*is not JSON.*line 3"):
        load_jsonl(data_config(path))


def test_lines_may_stand_in_a_file_that_is_called_json(tmp_path):
    assert len(load_jsonl(data_config(write(tmp_path, GOOD, name="rows.json")))[0]) == 1


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + '\n{"question": "q", "answer": "é"}\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: is not UTF-8 .*at byte 30"):
        load_jsonl(data_config(path))
    assert load_jsonl(data_config(path, on_bad_row="skip"))[1]["bad_rows"] == 1


def test_equal_rows_count_once(tmp_path):
    path = write(tmp_path, GOOD, GOOD | {"id": 3}, {"question": "q", "answer": "a"}, GOOD)
    rows, stats = load_jsonl(data_config(path))
    assert [row.messages[1].content for row in rows] == ["It is 2.", "a"]
    assert (stats["rows"], stats["duplicates"]) == (4, 2)


def test_content_alone_makes_the_id(tmp_path):
    chat = {"messages": [message("user", GOOD["question"]), message("assistant", GOOD["answer"])]}
    alpaca = {"instruction": GOOD["question"], "output": GOOD["answer"]}
    rows = [load_jsonl(data_config(write(tmp_path, row)))[0][0] for row in (GOOD, chat, alpaca)]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0].split_key == rows[0].id


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "folder"])
def test_a_path_that_cannot_be_read(tmp_path, make):
    path = tmp_path / "rows.jsonl"
    make(path)
    with pytest.raises(ConfigError, match=r"data\.path=.*rows\.jsonl: cannot be read"):
        load_jsonl(data_config(path))


def test_relative_paths_start_at_the_current_directory(tmp_path, monkeypatch):
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert len(load_jsonl(data_config(Path("rows.jsonl")))[0]) == 1
