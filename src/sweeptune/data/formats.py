"""From a row to a conversation: which format it has, and what its fields mean.

A row is what one line of JSON, one line of a table or one record of a hub dataset decodes to. Turns are taken as they
stand: two turns of the user in a row stay two, and whether that is legal is the template's word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweeptune.data.conversation import TEXT, Conversation, Message, conversation
from sweeptune.data.turns import (
    TURN_LISTS,
    BadRow,
    checked,
    dialect,
    keys_of,
    listed,
    messages_turns,
    sharegpt_turns,
    text_of,
    tools_of,
    xtuner_turns,
)

__all__ = ["KNOWN_KEYS", "SHAPES", "BadRow", "detect", "other_format", "to_conversation"]

SHAPES = {
    "messages": "messages: a list of {role, content}",
    "sharegpt": "conversations: a list of {from, value}",
    "xtuner": "conversation: a list of {system, input, output}",
    "alpaca": "instruction and output, with an optional input",
    "alpaca_zh": "instruction_zh and output_zh, with an optional input_zh",
    "prompt_completion": "prompt and completion, each a text or a list of messages",
    "qa": "question and answer, or query and response",
    "text": "text",
}
ALPACA = (("instruction",), ("input", "context"), ("output", "response"))
ALPACA_ZH = (("instruction_zh",), ("input_zh",), ("output_zh",))
QA = (("question", "query"), ("answer", "response"))
SYSTEM = ("system", "system_prompt")
NO_OUTPUT = "<nooutput>"
KNOWN_KEYS = frozenset(
    [*TURN_LISTS, "prompt", "completion", "text", "tools", "history", *SYSTEM, *sum(ALPACA + ALPACA_ZH + QA, ())]
)
"""Every key that a format reads; the other columns of a table need not be loaded."""


def detect(row: Any) -> str:
    """Name the format of a row.

    Raises:
        BadRow: It has the keys of none of them.

    Example:
        >>> detect({"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]})
        'sharegpt'
    """
    known = "; ".join(SHAPES.values())
    if not isinstance(row, dict):
        raise BadRow(f"is a {type(row).__name__}, not an object. Known are {known}")
    has = {key for key in row if row[key] is not None}
    for key in TURN_LISTS:
        if key in has:
            return dialect(key, row[key])
    # A dataset that carries a translation is meant to be read in it.
    if "instruction_zh" in has:
        return "alpaca_zh"
    if "instruction" in has:
        return "alpaca"
    if {"prompt", "completion"} <= has:
        return "prompt_completion"
    if "question" in has or ("query" in has and has & {*QA[1]}):
        return "qa"
    if "text" in has:
        return "text"
    raise BadRow(f"has none of the known shapes (keys: {keys_of(row)}). Known are {known}")


def to_conversation(row: Any, form: str, *, source: int = 0, place: str = "") -> Conversation:
    """Read a row in a format.

    Args:
        row: One decoded value.
        form: One of `SHAPES`.
        source: Number of the dataset in a mixture.
        place: Where the row stands, for messages about it.

    Raises:
        BadRow: A key is missing, of the wrong type or empty, or nobody answers.

    Example:
        >>> to_conversation({"question": "1+1?", "answer": "2"}, "qa").messages[1].content
        '2'
    """
    if not isinstance(row, dict):
        raise BadRow(f"is a {type(row).__name__}, not an object with {SHAPES[form]}")
    turns = READERS[form](row)
    if turns[0].role == TEXT:
        return conversation(turns, source=source, place=place)
    turns = checked(_with_system(turns, row))
    return conversation(turns, tools=tools_of(row), source=source, place=place)


def other_format(row: Any, form: str) -> str | None:
    """The format that a row has instead of the one it should have; None where it has that one, or none at all."""
    try:
        found = detect(row)
    except BadRow:
        return None
    return found if found != form else None


def _messages(row: dict[str, Any]) -> list[Message]:
    key, turns = _list_in(row, "messages")
    return messages_turns(turns, key)


def _sharegpt(row: dict[str, Any]) -> list[Message]:
    key, turns = _list_in(row, "conversations")
    return sharegpt_turns(turns, key)


def _xtuner(row: dict[str, Any]) -> list[Message]:
    key, turns = _list_in(row, "conversation")
    return xtuner_turns(turns, key)


def _list_in(row: dict[str, Any], usual: str) -> tuple[str, Any]:
    """The list of turns: under the format's usual key, or another that is used for one."""
    for key in (usual, *TURN_LISTS):
        if row.get(key) is not None:
            return key, listed(row[key])
    raise BadRow(f"has no {usual} (keys: {keys_of(row)})")


def _alpaca(row: dict[str, Any], names: tuple[tuple[str, ...], ...] = ALPACA) -> list[Message]:
    instruction, given, output = (_key(row, keys) for keys in names)
    parts = [text_of(row, key) for key in (instruction, given) if row.get(key) not in (None, "")]
    if not parts:
        text_of(row, instruction)  # says that it is missing or empty
    answer = text_of(row, output)
    if answer.strip() == NO_OUTPUT:
        raise BadRow(f"{output} is {NO_OUTPUT}, alpaca's mark of a row without an answer")
    return [*_history(row), Message("user", "\n\n".join(parts)), Message("assistant", answer)]


def _alpaca_zh(row: dict[str, Any]) -> list[Message]:
    return _alpaca(row, ALPACA_ZH)


def _key(row: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The name of these that the row uses, else the first."""
    used = [key for key in keys if row.get(key) is not None]
    if len(used) > 1:
        raise BadRow(f"has {' and '.join(used)}, which mean the same; keep one of them")
    return used[0] if used else next((key for key in keys if key in row), keys[0])


def _history(row: dict[str, Any]) -> list[Message]:
    """Earlier turns of an alpaca row: pairs of question and answer."""
    pairs = listed(row.get("history")) or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise BadRow("history is not a list of pairs of question and answer")
    found = []
    for number, (asked, said) in enumerate(pairs, 1):
        pair = {"question": asked, "answer": said}
        try:
            found += [Message("user", text_of(pair, "question")), Message("assistant", text_of(pair, "answer"))]
        except BadRow as error:
            raise BadRow(f"history, pair {number}: {error}") from None
    return found


def _prompt_completion(row: dict[str, Any]) -> list[Message]:
    """The completion is what is learned; answers inside the prompt only lead up to it."""
    prompt = _side(row, "prompt", "user")
    asked = [
        Message(turn.role, turn.content, False, turn.extra) if turn.role == "assistant" and turn.loss is None else turn
        for turn in prompt
    ]
    completion = _side(row, "completion", "assistant")
    if not any(turn.role == "assistant" for turn in completion):
        raise BadRow("completion has no assistant turn to learn from")
    return asked + completion


def _side(row: dict[str, Any], key: str, role: str) -> list[Message]:
    value = row.get(key)
    if isinstance(value, str) and not value.lstrip().startswith('[{"'):
        return [Message(role, text_of(row, key))]
    return messages_turns(value, key) if value is not None else [Message(role, text_of(row, key))]


def _qa(row: dict[str, Any]) -> list[Message]:
    asked, said = (_key(row, keys) for keys in QA)
    return [Message("user", text_of(row, asked)), Message("assistant", text_of(row, said))]


def _text(row: dict[str, Any]) -> list[Message]:
    return [Message(TEXT, text_of(row, "text"))]


def _with_system(turns: list[Message], row: Mapping[str, Any]) -> list[Message]:
    """Put the row's own system text first; tables keep it in a column of its own."""
    key = next((key for key in SYSTEM if row.get(key) not in (None, "")), None)
    if key is None:
        return turns
    text = text_of(row, key)
    said = [turn.content for turn in turns if turn.role == "system"]
    if said and said[0] != text:
        raise BadRow(f"{key} and the first system turn say different things; keep one of them")
    return turns if said else [Message("system", text), *turns]


READERS: dict[str, Callable[[dict[str, Any]], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "xtuner": _xtuner,
    "alpaca": _alpaca,
    "alpaca_zh": _alpaca_zh,
    "prompt_completion": _prompt_completion,
    "qa": _qa,
    "text": _text,
}
