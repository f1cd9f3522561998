"""Every format that is known: how it is found, what its fields mean, and what is refused with which reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sweeptune.data.conversation import Message
from sweeptune.data.formats import SHAPES, BadRow, detect, other_format, to_conversation


def message(role: object = "user", content: object = "hi", **more: object) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def says(who: object, value: object, **more: object) -> dict[str, Any]:
    return {"from": who, "value": value, **more}


CHAT = [message("system", "Be brief."), message("user", "1+1?"), message("assistant", "2")]
SHARED = [says("system", "Be brief."), says("human", "1+1?"), says("gpt", "2")]
BRIEF = [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2")]
SUM = [("user", "1+1?"), ("assistant", "2")]

GOOD = {
    "messages": ({"messages": CHAT}, "messages", BRIEF),
    "messages and other columns": ({"prompt": "1+1?", "messages": CHAT, "text": "x"}, "messages", BRIEF),
    "messages as JSON": ({"messages": json.dumps(CHAT)}, "messages", BRIEF),
    "messages under another key": ({"conversations": CHAT}, "messages", BRIEF),
    "messages with a system column": ({"system": "Be brief.", "messages": CHAT[1:]}, "messages", BRIEF),
    "developer": ({"messages": [message("developer", "Be brief."), *CHAT[1:]]}, "messages", BRIEF),
    "parts": (
        {"messages": [message("user", [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]), CHAT[2]]},
        "messages",
        SUM,
    ),
    "two turns of the user": (
        {"messages": [message("user", "1"), message("user", "+1?"), CHAT[2]]},
        "messages",
        [("user", "1"), ("user", "+1?"), ("assistant", "2")],
    ),
    "empty system": ({"messages": [message("system", ""), *CHAT[1:]]}, "messages", [("system", ""), *SUM]),
    "sharegpt": ({"conversations": SHARED}, "sharegpt", BRIEF),
    "sharegpt with user and assistant": (
        {"conversations": [says("user", "1+1?"), says("assistant", "2")], "system": "Be brief."},
        "sharegpt",
        BRIEF,
    ),
    "sharegpt under another key": ({"conversation": SHARED}, "sharegpt", BRIEF),
    "sharegpt in columns": (
        {"conversations": {"from": ["system", "human", "gpt"], "value": ["Be brief.", "1+1?", "2"]}},
        "sharegpt",
        BRIEF,
    ),
    "xtuner": (
        {"conversation": [{"system": "Be brief.", "input": "1+1?", "output": "2"}, {"input": "a", "output": "b"}]},
        "xtuner",
        [*BRIEF, ("user", "a"), ("assistant", "b")],
    ),
    "xtuner with an empty system": ({"conversation": [{"system": "", "input": "1+1?", "output": "2"}]}, "xtuner", SUM),
    "xtuner raw text": ({"conversation": [{"input": "", "output": "A book."}]}, "xtuner", [("text", "A book.")]),
    "alpaca": ({"instruction": "1+1?", "output": "2"}, "alpaca", SUM),
    "alpaca with an input": (
        {"instruction": "Add.", "input": "1 1", "output": "2", "text": "### Add."},
        "alpaca",
        [("user", "Add.\n\n1 1"), ("assistant", "2")],
    ),
    "alpaca with an empty input": ({"instruction": "1+1?", "input": "", "output": "2"}, "alpaca", SUM),
    "alpaca with a null input": ({"instruction": "1+1?", "input": None, "output": "2"}, "alpaca", SUM),
    "alpaca with the input only": ({"instruction": "", "input": "1+1?", "output": "2"}, "alpaca", SUM),
    "alpaca with a system text": (
        {"instruction": "1+1?", "input": "", "output": "2", "system": "Be brief.", "history": []},
        "alpaca",
        BRIEF,
    ),
    "alpaca with a history": (
        {"instruction": "1+1?", "output": "2", "history": [["a", "b"]]},
        "alpaca",
        [("user", "a"), ("assistant", "b"), *SUM],
    ),
    "dolly": ({"instruction": "1+1?", "context": "", "response": "2", "category": "maths"}, "alpaca", SUM),
    "alpaca_zh": (
        {"instruction_zh": "加。", "input_zh": "1 1", "output_zh": "二", "instruction": "Add.", "output": "two"},
        "alpaca_zh",
        [("user", "加。\n\n1 1"), ("assistant", "二")],
    ),
    "prompt and completion": ({"prompt": "1+1?", "completion": "2"}, "prompt_completion", SUM),
    "prompt that begins with a bracket": (
        {"prompt": "[1, 2]?", "completion": " 3"},
        "prompt_completion",
        [("user", "[1, 2]?"), ("assistant", " 3")],
    ),
    "prompt and completion as messages": (
        {"prompt": CHAT[:2], "completion": CHAT[2:]},
        "prompt_completion",
        BRIEF,
    ),
    "prompt and completion as JSON": (
        {"prompt": json.dumps(CHAT[:2]), "completion": json.dumps(CHAT[2:])},
        "prompt_completion",
        BRIEF,
    ),
    "qa": ({"question": "1+1?", "answer": "2", "text": "x"}, "qa", SUM),
    "query and response": ({"query": "1+1?", "response": "2", "original_question": "?"}, "qa", SUM),
    "question and response": ({"system_prompt": "Be brief.", "question": "1+1?", "response": "2"}, "qa", BRIEF),
    "null columns": ({"messages": None, "question": "1+1?", "answer": "2"}, "qa", SUM),
    "text": ({"text": " A book.\n", "meta": {}}, "text", [("text", " A book.\n")]),
}


@pytest.mark.parametrize(("row", "form", "expected"), GOOD.values(), ids=GOOD.keys())
def test_formats_are_found_and_say_who_speaks(row, form, expected):
    assert detect(row) == form
    item = to_conversation(row, form, source=3, place="here")
    assert [(turn.role, turn.content) for turn in item.messages] == expected
    assert (item.source, item.place) == (3, "here")


def test_every_format_is_among_the_good_rows_and_among_the_settings():
    from sweeptune.config.schema import RowFormat

    assert {form for _, form, _ in GOOD.values()} == set(SHAPES) == set(RowFormat.__args__) - {"auto"}


def test_the_plain_columns_of_a_translated_row_are_read_on_request():
    row = GOOD["alpaca_zh"][0]
    assert [turn.content for turn in to_conversation(row, "alpaca").messages] == ["Add.", "two"]


BAD_MESSAGES = {
    "no list": ("hi", "messages is not a list"),
    "empty": ([], "at least one turn"),
    "no object": (["hi"], "turn 1 has no role"),
    "no role": ([{"content": "hi"}], "turn 1 has no role"),
    "unknown role": ([message("human")], r"turn 1 has the role 'human'; allowed: system, user, assistant"),
    "role is a list": ([message(["user"])], r"turn 1 has the role \['user'\]; allowed"),
    "no content": ([message(), {"role": "assistant"}], r"turn 2: has no content \(keys: role\)"),
    "no call in the tool calls": (
        [message(), message("assistant", None, tool_calls=[])],
        "turn 2: content is a NoneType",
    ),
    "empty answer": ([message(), message("assistant", " ")], "turn 2: content is empty"),
    "nobody answers": ([message("system"), message()], "nobody answers"),
    "answer without question": ([message("system"), message("assistant")], "the assistant speaks first"),
    "image": (
        [message("user", [{"type": "text", "text": "?"}, {"type": "image_url"}])],
        "turn 1: content holds a part of type 'image_url'; only text is learned",
    ),
    "part that is a number": ([message("user", [7])], "turn 1: content holds a part of type 'int'"),
    "loss": ([message(), message("assistant", loss=0.5)], "turn 2: loss is 0.5; allowed: 0 and 1, or false and true"),
    "loss is a text": ([message(), message("assistant", loss="no")], "turn 2: loss is 'no'; allowed"),
    "two flags": ([message(), message("assistant", loss=True, weight=0)], "loss and weight contradict each other"),
    "call without a name": (
        [message(), message("assistant", None, tool_calls=[{"function": {}}])],
        "turn 2: a tool call has no function with a name",
    ),
    "arguments": (
        [message(), message("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}])],
        "the arguments of the tool call 'f' are no JSON object",
    ),
    "half a surrogate pair in an argument": (
        [message(), message("assistant", None, tool_calls=[{"name": "f", "arguments": {"a": "\ud83d"}}])],
        "tool_calls holds half a surrogate pair",
    ),
}


@pytest.mark.parametrize(("messages", "reason"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_bad_messages(messages, reason):
    with pytest.raises(BadRow, match=reason):
        to_conversation({"messages": messages}, "messages")


BAD = {
    "unknown speaker": (
        {"conversations": [says("bob", "x")]},
        "sharegpt",
        "turn 1 is from 'bob'; allowed: human, user",
    ),
    "no value": ({"conversations": [{"from": "human"}]}, "sharegpt", r"turn 1: has no value \(keys: from\)"),
    "nobody speaks": ({"conversations": []}, "sharegpt", "conversations is not a list with at least one turn"),
    "call that is no JSON": ({"conversations": [SHARED[1], says("function_call", "f(1)")]}, "sharegpt", "turn 2: 'f"),
    "gpt first": ({"conversations": SHARED[2:]}, "sharegpt", "the assistant speaks first"),
    "two systems": ({"conversations": SHARED, "system": "Be long."}, "sharegpt", "say different things"),
    "no output": ({"conversation": [{"input": "a"}]}, "xtuner", "turn 1 has no output"),
    "no input": ({"conversation": [{"input": "a", "output": "b"}, {"output": "c"}]}, "xtuner", "turn 2: has no input"),
    "empty input": (
        {"conversation": [{"input": "a", "output": "b"}, {"input": "", "output": "c"}]},
        "xtuner",
        "turn 2: input is empty",
    ),
    "empty input with a system": (
        {"conversation": [{"system": "s", "input": "", "output": "b"}]},
        "xtuner",
        "input is",
    ),
    "xtuner's flag": (
        {"conversation": [{"input": "a", "output": "b", "output_with_loss": "x"}]},
        "xtuner",
        "output_with_loss is 'x'; allowed",
    ),
    "no answer in alpaca": (
        {"instruction": "i", "output": "<nooutput>"},
        "alpaca",
        "output is <nooutput>, alpaca's mark of a row without an answer",
    ),
    "nothing asked": ({"instruction": "", "input": "", "output": "o"}, "alpaca", "instruction is empty"),
    "nothing asked in Chinese": ({"instruction_zh": "", "output_zh": "o"}, "alpaca_zh", "instruction_zh is empty"),
    "no output_zh": ({"instruction_zh": "i", "output": "o"}, "alpaca_zh", "has no output_zh"),
    "history": ({"instruction": "i", "output": "o", "history": ["a"]}, "alpaca", "history is not a list of pairs"),
    "history with a null": (
        {"instruction": "i", "output": "o", "history": [["a", None]]},
        "alpaca",
        "history, pair 1: answer is a NoneType",
    ),
    "two outputs": ({"instruction": "i", "output": "o", "response": "r"}, "alpaca", "has output and response, which"),
    "no completion": ({"prompt": "p", "completion": ""}, "prompt_completion", "completion is empty"),
    "completion is null": ({"prompt": "p", "completion": None}, "prompt_completion", "completion is a NoneType"),
    "completion of the user": (
        {"prompt": CHAT[1:2], "completion": CHAT[1:2]},
        "prompt_completion",
        "completion has no assistant turn to learn from",
    ),
    "two questions": ({"question": "q", "query": "q", "answer": "a"}, "qa", "has question and query, which mean the"),
    "empty text": ({"text": " \n"}, "text", "text is empty"),
    "text is a list": ({"text": ["a"]}, "text", "text is a list, not a text"),
    "tools are no list": ({"messages": CHAT, "tools": "{}"}, "messages", "tools is not a list of objects"),
    "tools are no JSON": ({"messages": CHAT, "tools": "[f]"}, "messages", r"'\[f\]' is not JSON"),
    "system is a number": ({"question": "q", "answer": "a", "system": 7}, "qa", "system is a int, not a text"),
}


@pytest.mark.parametrize(("row", "form", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_rows(row, form, reason):
    with pytest.raises(BadRow, match=reason):
        to_conversation(row, form)


@pytest.mark.parametrize(
    "row", [{}, {"prompt": "p", "chosen": "a", "rejected": "b"}, {"query": "q"}, [1], "text", None]
)
def test_rows_of_no_known_shape_list_the_known_ones(row):
    with pytest.raises(BadRow, match=r"Known are messages: .*conversations: .*instruction.*prompt.*question.*text"):
        detect(row)


def test_another_format_is_named_only_where_there_is_one():
    assert other_format({"text": "x"}, "qa") == "text"
    assert other_format({"question": "q"}, "qa") is None
    assert other_format({"x": "y"}, "qa") is None


# What is learned.


@pytest.mark.parametrize(("key", "off", "on"), [("loss", False, True), ("weight", 0, 1), ("weight", 0.0, 1.0)])
def test_a_turn_may_say_whether_it_is_learned(key, off, on):
    turns = [message(), message("assistant", "a", **{key: off}), message(), message("assistant", "b", **{key: on})]
    item = to_conversation({"messages": [*turns, message("assistant", "c", **{key: None})]}, "messages")
    assert [turn.loss for turn in item.messages] == [None, False, None, True, None]
    shared = [says("human", "q"), says("gpt", "a", **{key: off})]
    assert to_conversation({"conversations": shared}, "sharegpt").messages[1].loss is False


def test_xtuner_says_it_too():
    turns = [{"input": "a", "output": "b", "output_with_loss": False}, {"input": "c", "output": "d"}]
    item = to_conversation({"conversation": turns}, "xtuner")
    assert [turn.loss for turn in item.messages] == [None, False, None, None]


def test_answers_inside_a_prompt_are_not_learned():
    prompt = [message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d", loss=1)]
    item = to_conversation({"prompt": prompt, "completion": [message("assistant", "e")]}, "prompt_completion")
    assert [turn.loss for turn in item.messages] == [None, False, None, True, None]


# Tools.

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
ANSWER = Message("assistant", "", None, {"tool_calls": [CALL]})


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
@pytest.mark.parametrize("arguments", [{"a": 1, "b": None}, '{"a": 1, "b": null}'])
@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_tools_their_calls_and_their_answers(tools, arguments, content):
    call = {"id": "c1", "type": "function", "index": 0, "function": {"name": "add", "arguments": arguments}}
    turns = [
        message("user", "1+1?"),
        {"role": "assistant", "tool_calls": [call], **content},
        message("tool", "", tool_call_id="c1", name="add"),
        message("assistant", "2", reasoning_content="Easy.", refusal=None),
    ]
    item = to_conversation({"messages": turns, "tools": tools}, "messages")
    assert item.tools == (TOOL,)
    assert item.messages[1] == ANSWER
    assert item.messages[2] == Message("tool", "", None, {"tool_call_id": "c1", "name": "add"})
    assert item.messages[3].extra == {"reasoning_content": "Easy."}


def test_the_old_function_call_is_a_tool_call():
    function = {"name": "add", "arguments": '{"a": 1, "b": null}'}
    turns = [message(), message("assistant", None, function_call=function), message("function", "2", name="add")]
    item = to_conversation({"messages": turns}, "messages")
    assert item.messages[1].extra == {"tool_calls": [{key: CALL[key] for key in ("type", "function")}]}
    assert item.messages[2].role == "tool"


def test_sharegpt_calls_tools_too():
    function = {"name": "add", "arguments": {"a": 1, "b": None}}
    calls = [says("human", "1+1?"), says("function_call", json.dumps(function)), says("observation", "2"), SHARED[2]]
    item = to_conversation({"conversations": calls, "tools": ""}, "sharegpt")
    assert [turn.role for turn in item.messages] == ["user", "assistant", "tool", "assistant"]
    assert item.messages[1].extra == {"tool_calls": [{key: CALL[key] for key in ("type", "function")}]}
    assert item.tools is None


def test_what_a_template_may_read_is_part_of_the_id():
    plain = to_conversation({"messages": CHAT}, "messages")
    assert to_conversation({"conversations": SHARED}, "sharegpt") == plain
    with_tools = to_conversation({"messages": CHAT, "tools": [TOOL]}, "messages")
    with_loss = to_conversation({"messages": [*CHAT[:2], CHAT[2] | {"loss": False}]}, "messages")
    assert len({plain.id, with_tools.id, with_loss.id}) == 3
    assert replace(with_tools, id=plain.id, split_key=plain.split_key, tools=None) == plain
