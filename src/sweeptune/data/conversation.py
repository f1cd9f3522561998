"""The shape that every dataset takes before it is rendered: a conversation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
TEXT = "text"
"""The role of raw text, which is the only message of its conversation and belongs to no turn."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: system, user, assistant or tool; or text, for a raw document.
        content: What is said.
        loss: The row's own word on whether it is learned; None leaves that to ``data.loss_on``.
        extra: What a chat template may read besides, such as ``tool_calls`` or ``name``; JSON values.
    """

    role: str
    content: str
    loss: bool | None = None
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training example.

    Attributes:
        id: The content's hash, 16 hex digits: equal content has an equal id.
        messages: The turns in order, at least one of them the assistant's; or one raw text.
        split_key: What is hashed to decide between train, eval and test.
        tools: JSON schemas of the tools that the assistant may call, for the chat template; None where it has none.
        source: Number of the dataset in a mixture, from 0.
        place: Where the row stands (``file:line``), for messages about it.
    """

    id: str
    messages: tuple[Message, ...]
    split_key: str
    tools: tuple[Mapping[str, Any], ...] | None = None
    source: int = 0
    place: str = ""


def conversation(
    messages: Sequence[Message | tuple[str, str]],
    split_key: str | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    source: int = 0,
    place: str = "",
) -> Conversation:
    """Make a conversation from messages or (role, content) pairs; without a key its content decides the split.

    Example:
        >>> conversation([("user", "1+1?"), ("assistant", "2")]).id
        '6d43e1f6d5aee4b8'
    """
    turns = tuple(m if isinstance(m, Message) else Message(*m) for m in messages)
    # Plain turns are hashed as pairs, so that what a row lacks does not change its name.
    content: list[Any] = [
        [m.role, m.content, *([m.loss, m.extra] if m.loss is not None or m.extra else [])] for m in turns
    ]
    if tools:
        content.append({"tools": list(tools)})
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]
    return Conversation(digest, turns, split_key or digest, tuple(tools) if tools else None, source, place)
