"""From a conversation to token ids and the mask of what is learned.

The text is the template's (`sweeptune.data.template`); each stretch of it is tokenized by itself, so that no token
crosses the mask's edge, and nothing is added that the template did not write: there is never a second begin-of-text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import TemplateConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.template import Rendered, render, special_pattern

BATCH = 512


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized example.

    Attributes:
        id: The conversation's hash.
        input_ids: Token ids.
        loss_mask: Whether token i is predicted with loss; the first never is.
        loss_bytes: UTF-8 bytes of the text that bears loss, before the row was cut; special tokens count none.
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


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a row's tokens with one owner.

    Attributes:
        role: system, user, assistant, tool, text, or prompt where what leads up to an answer is not told apart.
        turn: Number of the answer it belongs to, from 0.
        begin: First token.
        end: Behind the last token.
        learned: Whether it bears loss.
        stops: How many tokens at its end are what ends the turn or the document.
    """

    role: str
    turn: int
    begin: int
    end: int
    learned: bool
    stops: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized example with the owner of each of its tokens; the spans cover the row without a gap, in order."""

    row: Row
    spans: tuple[Span, ...]
    conversation: Conversation


class Encoder:
    """Turns conversations into token ids with their loss mask.

    Args:
        tokenizer: The model's.
        template: How a conversation becomes text.
        loss_on: assistant, last or all.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateConfig, loss_on: str) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "template=auto: this model's tokenizer has no chat template; fine-tune an instruct model, or one whose "
                "folder holds a chat_template.jinja"
            )
        self.tokenizer = tokenizer
        self.template = template
        self.loss_on = loss_on
        self.special = special_pattern(tokenizer)

    @property
    def digest(self) -> str:
        """Names everything that token ids and masks depend on beside the conversations."""
        return hashlib.sha256(repr((self.tokenizer.chat_template, self.template, self.loss_on)).encode()).hexdigest()

    def encode(self, conversations: Iterable[Conversation], *, window: int | None = None) -> Iterator[Encoded]:
        """Tokenize conversations, in order. Turns after the last answer are left out: no loss depends on them.

        Args:
            conversations: What to tokenize.
            window: Cut raw text to windows of so many tokens, each a row of its own; None keeps documents whole.

        Raises:
            ConfigError: The template fails, does not tell where an answer begins, or does not end it with a special
                token.

        Example:
            >>> encoder = Encoder(tiny_tokenizer(), config.template, "assistant")
            >>> [found] = encoder.encode([conversation([("user", "1+1?"), ("assistant", "2")])])
            >>> found.row.length, found.row.loss_tokens, found.row.loss_bytes   # the loss is on "2" and <|im_end|>
            (30, 2, 1)
        """
        batch: list[tuple[Conversation, Rendered]] = []
        for item in conversations:
            batch.append((item, render(item, self.tokenizer, self.special)))
            if len(batch) == BATCH:
                yield from _encode_batch(batch, self.tokenizer)
                batch = []
        yield from _encode_batch(batch, self.tokenizer)


def _encode_batch(
    batch: Sequence[tuple[Conversation, Rendered]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Encoded]:
    """Tokenize every piece of every conversation in one call, and put the rows together again."""
    pieces: list[str] = []
    openings: set[int] = set()
    for _, rendered in batch:
        openings.add(len(pieces))
        pieces += [piece for segment in rendered.segments for piece in segment.pieces]
    encoded = iter(_encode(pieces, openings, tokenizer))
    for item, rendered in batch:
        ids: list[int] = []
        mask: list[bool] = []
        spans: list[Span] = []
        for segment in rendered.segments:
            tokens = [token for _ in segment.pieces for token in next(encoded)]
            begin = len(ids)
            ids += tokens
            mask += [segment.learned] * len(tokens)
            stops = 1 if segment.learned else 0
            spans.append(Span(segment.role, segment.turn, begin, len(ids), segment.learned, stops))
        mask[0] = False
        yield Encoded(Row(item.id, ids, mask, rendered.loss_bytes), tuple(spans), item)


def _encode(pieces: list[str], openings: set[int], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each piece, as they are in the middle of a text.

    Tokenizers in the manner of sentencepiece put a space before whatever they are given. There, pieces that do not
    open a text (those not in ``openings``) are tokenized behind a guard character, whose tokens are taken away again.
    """
    if not pieces or not _adds_space(tokenizer):
        return _ids(pieces, tokenizer)
    guards = ["" if i in openings or not piece else _guard(piece) for i, piece in enumerate(pieces)]
    taken = {guard: _ids([guard], tokenizer)[0] if guard else [] for guard in set(guards)}
    encoded = _ids([guard + piece for guard, piece in zip(guards, pieces, strict=True)], tokenizer)
    for guard, piece, ids in zip(guards, pieces, encoded, strict=True):
        if ids[: len(taken[guard])] != taken[guard]:
            raise ConfigError(
                f"the model's tokenizer joins {guard!r} and {piece[:20]!r} to one token, so an answer cannot be "
                "tokenized by itself; use the model's fast tokenizer (tokenizer.json)"
            )
    return [ids[len(taken[guard]) :] for guard, ids in zip(guards, encoded, strict=True)]


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    alone, behind = _ids(["a", "\na"], tokenizer)
    return behind[-len(alone) :] != alone


def _guard(piece: str) -> str:
    """A character that is not joined with the piece: a newline could be joined with other white space."""
    return "a" if piece[0].isspace() else "\n"


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return found
