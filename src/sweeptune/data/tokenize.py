"""From a conversation to token ids and the mask of what is learned.

The text is the template's (`sweeptune.data.template`); each stretch of it is tokenized by itself, so that no token
crosses the mask's edge, and nothing is added that the template did not write: there is never a second begin-of-text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
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


def tokenize(conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase) -> Iterable[Row]:
    """Tokenize conversations, in order. Turns after the last answer are left out: no loss depends on them.

    Args:
        conversations: What to tokenize.
        tokenizer: With a chat template.

    Raises:
        ConfigError: The template is missing, fails, does not tell where an answer begins, or does not end it with a
            special token.

    Example:
        >>> [row] = tokenize([conversation([("user", "1+1?"), ("assistant", "2")])], tiny_tokenizer())
        >>> row.length, row.loss_tokens, row.loss_bytes   # the loss is on "2" and <|im_end|>
        (30, 2, 1)
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "template=auto: this model's tokenizer has no chat template; fine-tune an instruct model, or one whose "
            "folder holds a chat_template.jinja"
        )
    special = special_pattern(tokenizer)
    batch: list[tuple[Conversation, Rendered]] = []
    for item in conversations:
        batch.append((item, render(item, tokenizer, special)))
        if len(batch) == BATCH:
            yield from _tokenize_batch(batch, tokenizer)
            batch = []
    yield from _tokenize_batch(batch, tokenizer)


def _tokenize_batch(
    batch: Sequence[tuple[Conversation, Rendered]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Row]:
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
        for segment in rendered.segments:
            tokens = [token for _ in segment.pieces for token in next(encoded)]
            ids += tokens
            mask += [segment.learned] * len(tokens)
        mask[0] = False
        yield Row(item.id, ids, mask, rendered.loss_bytes)


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
