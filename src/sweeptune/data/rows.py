"""What tokenizing gives: rows of token ids with the mask of what is learned, and whose each token is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sweeptune.data.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized example.

    Attributes:
        id: The conversation's hash.
        input_ids: Token ids.
        loss_mask: Whether token i is predicted with loss; the first never is.
        loss_bytes: UTF-8 bytes of the text that bears loss, before the row was cut; special tokens count none. A
            character of several tokens counts with the first of them.
    """

    id: str
    input_ids: list[int]
    loss_mask: list[bool]
    loss_bytes: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that bear loss."""
        return sum(self.loss_mask)


class Span(NamedTuple):
    """A stretch of a row's tokens with one owner; a tuple, because there are several in every row of a dataset.

    Attributes:
        role: system, user, assistant, tool, text, or prompt where what leads up to an answer is not told apart. The
            markup around a turn is its role's; what the template says of its own before the first turn is a system's.
        turn: Number of the answer that it is or leads to, from 0.
        begin: First token.
        end: Behind the last token.
        learned: Whether it bears loss.
        stops: How many tokens at its end are what ends the turn or the document, with loss.
    """

    role: str
    turn: int
    begin: int
    end: int
    learned: bool
    stops: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized example with the owner of each of its tokens.

    Attributes:
        row: The ids and the mask.
        spans: They cover the row in order, without a gap; a token bears loss where its span is learned.
        conversation: What was tokenized.
    """

    row: Row
    spans: tuple[Span, ...]
    conversation: Conversation
