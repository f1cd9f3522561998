"""Token ids as text that can be shown: cut where tokens meet, and nothing in it that a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sweeptune.data.rows import Row

AROUND = 24
"""Tokens shown on each side of a spot."""
LONGEST_CHARACTER = 8
"""Tokens that may be waited for until their bytes make a character; more than that are broken text."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens that make whole characters: one, or several where a character is spread over them.

    Attributes:
        begin: First token.
        end: Behind the last one.
        text: What they say, as it is.
        special: Whether it is markup, such as the end of a turn.
    """

    begin: int
    end: int
    text: str
    special: bool


def escape(text: str) -> str:
    r"""Write what is no visible character as Python does; quotes and backslashes stay.

    Example:
        >>> escape("a\tb\x1b[31m 世界\u202e")
        'a\\tb\\x1b[31m 世界\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of all tokens that are markup; Llama 3's <|eot_id|>, for one, is not among ``all_special_ids``."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token as the vocabulary writes it, such as ``<|im_end|>`` or ``Ġthe``."""
    return str(tokenizer.convert_ids_to_tokens(token))


def cut_to_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[Piece]:
    """Split a row where tokens meet.

    A token is decoded behind the piece before it, so that a space which only stands between words is kept.

    Args:
        tokenizer: The model's.
        ids: Tokens of one row, or a stretch of it.
    """
    special = special_ids(tokenizer)
    before = begin = 0
    for end in range(1, len(ids) + 1):
        if ids[end - 1] in special:
            yield Piece(end - 1, end, token_text(tokenizer, ids[end - 1]), True)
            before = begin = end
            continue
        known, now = _decode(tokenizer, ids[before:begin]), _decode(tokenizer, ids[before:end])
        whole = not now.endswith("\ufffd") or end - begin >= LONGEST_CHARACTER
        if whole or end == len(ids) or ids[end] in special:
            yield Piece(begin, end, now[len(known) :], False)
            before, begin = begin, end


def excerpt(tokenizer: PreTrainedTokenizerBase, row: Row, at: int = 0) -> str:
    r"""The text around a token, with what is learned between [loss] and [/loss]; one line, control characters escaped.

    Example:
        >>> excerpt(tokenizer, row, at=12)
        '...user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n[loss]2<|im_end|>[/loss]\\n'
    """
    begin, end = max(0, at - AROUND), min(row.length, at + AROUND)
    mask = row.loss_mask[begin:end]
    shown, learned = ["..." if begin else ""], False
    for piece in cut_to_pieces(tokenizer, row.input_ids[begin:end]):
        if mask[piece.begin] != learned:
            shown.append("[/loss]" if learned else "[loss]")
            learned = not learned
        shown.append(escape(piece.text))
    return "".join([*shown, "[/loss]" if learned else "", "..." if end < row.length else ""])


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
