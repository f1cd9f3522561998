"""The shape that every dataset takes before it is rendered: a conversation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training example.

    Attributes:
        id: The content's hash, 16 hex digits: equal content has an equal id.
        messages: The turns in order, at least one of them the assistant's.
        split_key: What is hashed to decide between train, eval and test.
    """

    id: str
    messages: tuple[Message, ...]
    split_key: str


def conversation(messages: list[tuple[str, str]], split_key: str | None = None) -> Conversation:
    """Make a conversation from (role, content) pairs; without a key of its own the content decides the split.

    Example:
        >>> conversation([("user", "1+1?"), ("assistant", "2")]).id
        '6d43e1f6d5aee4b8'
    """
    content = json.dumps(messages, ensure_ascii=False)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Conversation(digest, tuple(Message(*pair) for pair in messages), split_key or digest)
