"""From a row of a file to a conversation: OpenAI messages, alpaca, question and answer."""

from __future__ import annotations

from typing import Any

from sweeptune.data.conversation import ROLES, Conversation, conversation

SHAPES = {
    "messages": "messages: a list of {role, content}",
    "alpaca": "instruction and output, with an optional input",
    "qa": "question and answer",
}


class BadRow(ValueError):
    """A row is not what its format says; the message says why."""


def detect(row: Any) -> str:
    """Name the format of a row.

    Raises:
        BadRow: It has the keys of none of them.
    """
    if isinstance(row, dict):
        if "messages" in row:
            return "messages"
        if "instruction" in row:
            return "alpaca"
        if "question" in row:
            return "qa"
    known = "; ".join(SHAPES.values())
    if not isinstance(row, dict):
        raise BadRow(f"is a {type(row).__name__}, not an object. Known are {known}")
    raise BadRow(f"has none of the known shapes (keys: {_keys(row)}). Known are {known}")


def to_conversation(row: Any, form: str) -> Conversation:
    """Read a row in a format.

    Args:
        row: One decoded JSON value.
        form: messages, alpaca or qa.

    Raises:
        BadRow: A key is missing, of the wrong type or empty, or nobody answers.
    """
    if not isinstance(row, dict):
        raise BadRow(f"is a {type(row).__name__}, not an object with {SHAPES[form]}")
    if form == "messages":
        return conversation(_turns(row))
    if form == "alpaca":
        prompt = _text(row, "instruction")
        extra = _text(row, "input") if row.get("input") not in (None, "") else ""
        question = f"{prompt}\n\n{extra}" if extra else prompt
        return conversation([("user", question), ("assistant", _text(row, "output"))])
    return conversation([("user", _text(row, "question")), ("assistant", _text(row, "answer"))])


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise BadRow(f"has no {key} (keys: {_keys(row)})")
    if not isinstance(row[key], str):
        raise BadRow(f"{key} is a {type(row[key]).__name__}, not a text")
    if not row[key].strip():
        raise BadRow(f"{key} is empty")
    if any("\ud800" <= char <= "\udfff" for char in row[key]):
        raise BadRow(f"{key} holds half a surrogate pair (such as \\ud83d), which is no character")
    return str(row[key])


def _keys(row: dict[str, Any]) -> str:
    """The keys, shortened: they come from the file and may be anything."""
    shown = [ascii(key)[1:-1][:40] for key in list(row)[:8]]
    return ", ".join([*shown, *(["..."] if len(row) > 8 else [])]) or "none"


def _turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise BadRow("messages is not a list with at least one turn")
    found = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or "role" not in turn:
            raise BadRow(f"turn {number} has no role")
        if turn["role"] not in ROLES:
            raise BadRow(f"turn {number} has the role {ascii(turn['role'])[:40]}; allowed: {', '.join(ROLES)}")
        try:
            found.append((turn["role"], _text(turn, "content")))
        except BadRow as error:
            raise BadRow(f"turn {number}: {error}") from None
    if not any(role == "assistant" for role, _ in found):
        raise BadRow("nobody answers: there is no assistant turn to learn from")
    if next(role for role, _ in found if role != "system") == "assistant":
        raise BadRow("the assistant speaks first, so there is nothing that it answers")
    return found
