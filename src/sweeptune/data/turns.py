"""Lists of turns, as OpenAI, ShareGPT and XTuner write them, to messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeptune.data.conversation import ROLES, TEXT, Message

TURN_LISTS = ("messages", "conversations", "conversation")
USUAL = {"messages": "messages", "conversations": "sharegpt", "conversation": "xtuner"}
ALSO = {"developer": "system", "function": "tool"}  # what OpenAI calls, or called, two of the roles
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "tool_response", "function_response", "function-response"), "tool"),
    **dict.fromkeys(("function_call", "function-call", "tool_call"), "call"),
}
"""Who speaks in ShareGPT's words; a ``call`` is the assistant's."""
EXTRA = ("name", "tool_call_id", "reasoning_content")
"""What templates read of a turn besides role, content and tool calls."""
MAY_BE_EMPTY = ("system", "tool")


class BadRow(ValueError):
    """A row is not what its format says; the message says why."""


def dialect(key: str, turns: Any) -> str:
    """Name the format of a list of turns: by its first turn, else by the key under which it usually stands."""
    try:
        turns = listed(turns)
    except BadRow:
        turns = None
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    if "role" in first:
        return "messages"
    if "from" in first:
        return "sharegpt"
    return "xtuner" if "output" in first else USUAL[key]


def messages_turns(turns: Any, key: str = "messages") -> list[Message]:
    """Read OpenAI's turns: role and content, tool calls, and a flag ``loss`` or ``weight`` that says what is learned.

    Raises:
        BadRow: It names the turn, from 1, and what is wrong with it.
    """
    found = []
    for number, turn in _each(turns, key, "role"):
        role = ALSO.get(turn["role"], turn["role"]) if isinstance(turn["role"], str) else turn["role"]
        if role not in ROLES:
            raise BadRow(f"turn {number} has the role {_short(turn['role'])}; allowed: {', '.join(ROLES)}")
        try:
            found.append(_message(turn, role))
        except BadRow as error:
            raise BadRow(f"turn {number}: {error}") from None
    return found


def sharegpt_turns(turns: Any, key: str = "conversations") -> list[Message]:
    """Read ShareGPT's turns: from and value.

    Raises:
        BadRow: It names the turn, from 1, and what is wrong with it.
    """
    found = []
    for number, turn in _each(turns, key, "from"):
        role = SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise BadRow(f"turn {number} is from {_short(turn['from'])}; allowed: {', '.join(SPEAKERS)}")
        try:
            if role == "call":
                calls = _calls(from_json(text_of(turn, "value")))
                found.append(Message("assistant", "", _flag(turn), {"tool_calls": calls}))
            else:
                found.append(Message(role, text_of(turn, "value", empty=role in MAY_BE_EMPTY), _flag(turn)))
        except BadRow as error:
            raise BadRow(f"turn {number}: {error}") from None
    return found


def xtuner_turns(turns: Any, key: str = "conversation") -> list[Message]:
    """Read XTuner's turns: each an input with its output, the first with a system text.

    A single turn with an empty input is how XTuner writes raw text for pre-training: it becomes a raw text here.

    Raises:
        BadRow: It names the turn, from 1, and what is wrong with it.
    """
    each = list(_each(turns, key, "output"))
    first = each[0][1]
    if len(each) == 1 and not first.get("system") and first.get("input") == "":
        return [Message(TEXT, text_of(first, "output"))]
    found = []
    for number, turn in each:
        try:
            if turn.get("system") not in (None, ""):
                found.append(Message("system", text_of(turn, "system")))
            found.append(Message("user", text_of(turn, "input")))
            found.append(Message("assistant", text_of(turn, "output"), _flag(turn, ("output_with_loss",))))
        except BadRow as error:
            raise BadRow(f"turn {number}: {error}") from None
    return found


def checked(turns: list[Message]) -> list[Message]:
    """The turns, if there is something to learn in them.

    Raises:
        BadRow: Nobody answers, or the assistant speaks first.
    """
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRow("nobody answers: there is no assistant turn to learn from")
    if next(turn.role for turn in turns if turn.role != "system") == "assistant":
        raise BadRow("the assistant speaks first, so there is nothing that it answers")
    return turns


def text_of(row: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    """The text under a key; ``empty`` allows one without a visible character.

    Raises:
        BadRow: There is none, or it is no text.
    """
    if key not in row:
        raise BadRow(f"has no {key} (keys: {keys_of(row)})")
    value = row[key]
    if not isinstance(value, str):
        raise BadRow(f"{key} is a {type(value).__name__}, not a text")
    if not empty and not value.strip():
        raise BadRow(f"{key} is empty")
    return str(whole(value, key))


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a row offers to the assistant: JSON schemas, as a list or as its JSON text."""
    tools = row.get("tools")
    if tools is None or tools == "":
        return None
    tools = from_json(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools is not a list of objects")
    return whole(tools, "tools") or None


def listed(value: Any) -> Any:
    """A list that a table keeps in its own way: as JSON text, or as an object of lists; all else is given back.

    Raises:
        BadRow: The text begins like a list and is none.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        return from_json(value)
    if isinstance(value, dict):
        columns = list(value.values())
        if columns and all(isinstance(each, list) for each in columns) and len({*map(len, columns)}) == 1:
            return [dict(zip(value, each, strict=True)) for each in zip(*columns, strict=True)]
    return value


def from_json(value: Any) -> Any:
    """What a JSON text stands for; what is no text is given back.

    Raises:
        BadRow: It is not JSON.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise BadRow(f"{_short(value)} is not JSON") from None


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys, shortened: they come from the file and may be anything."""
    shown = [ascii(key)[1:-1][:40] for key in list(row)[:8]]
    return ", ".join([*shown, *(["..."] if len(row) > 8 else [])]) or "none"


def _each(turns: Any, key: str, needs: str) -> Iterator[tuple[int, dict[str, Any]]]:
    turns = listed(turns)
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{key} is not a list with at least one turn")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or needs not in turn:
            raise BadRow(f"turn {number} has no {needs}")
        yield number, turn


def _message(turn: dict[str, Any], role: str) -> Message:
    extra = {key: whole(turn[key], key) for key in EXTRA if turn.get(key) is not None}
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None)
    if role == "assistant" and calls:
        extra["tool_calls"] = _calls(from_json(calls))
    content = _joined(turn)
    if "tool_calls" in extra and turn.get("content") is None:
        content = {"content": ""}
    text = text_of(content, "content", empty=role in MAY_BE_EMPTY or "tool_calls" in extra)
    return Message(role, text, _flag(turn), extra or None)


def _joined(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn, with content that is a list of parts as one text."""
    parts = turn.get("content")
    if not isinstance(parts, list) or not parts:
        return turn
    others = {str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in parts}
    if others != {"text"}:
        raise BadRow(f"content holds a part of type {_short(min(others - {'text'}))}; only text is learned")
    return {**turn, "content": "".join(text_of(part, "text", empty=True) for part in parts)}


def _calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls as templates read them: ``{type, function: {name, arguments}}`` with arguments as an object."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call has no function with a name")
        arguments = function.get("arguments")
        try:
            arguments = {} if arguments in (None, "") else from_json(arguments)
        except BadRow:
            arguments = None
        if not isinstance(arguments, dict):
            raise BadRow(f"the arguments of the tool call {_short(function['name'])} are no JSON object")
        kept = {"id": call["id"]} if call.get("id") is not None else {}
        found.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    whole(found, "tool_calls")
    return found


def _flag(turn: Mapping[str, Any], keys: Sequence[str] = ("loss", "weight")) -> bool | None:
    """The turn's own word on whether it is learned."""
    given = {key: turn[key] for key in keys if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise BadRow(f"{key} is {_short(value)}; allowed: 0 and 1, or false and true")
    if len({bool(value) for value in given.values()}) > 1:
        raise BadRow("loss and weight contradict each other")
    return next((bool(value) for value in given.values()), None)


def whole(value: Any, key: str) -> Any:
    """The value, if all its text can be written: half a surrogate pair cannot."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        raise BadRow(f"{key} holds half a surrogate pair (such as \\ud83d), which is no character") from None
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"{key} holds a value that is no JSON") from None
    return value


def _short(value: Any) -> str:
    return ascii(value)[:40]
