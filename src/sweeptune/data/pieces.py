"""Texts to token ids, as they are in the middle of a longer text.

Everything goes through the tokenizer's own Rust code in large batches, which it spreads over all cores (unless
TOKENIZERS_PARALLELISM=false), and nothing is added that a text does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.data.render import Special, special_pattern

JOINED = 2_000  # characters; measured: more is slower on a busy machine, and a batch still is many of these


class Pieces:
    """Tokenizes stretches of a text each by itself.

    Short texts are given to the tokenizer several at a time, with a special token between them at which it cuts anyway:
    a call for each of them takes longer.

    Tokenizers in the manner of sentencepiece put a space before whatever they are given. There, pieces that do not
    open a text are tokenized behind a guard character, whose tokens are taken away again.

    Attributes:
        guarded: Whether the tokenizer is of that kind.
        markup: Finds special tokens at which a text may be cut without changing its tokens; None where there are none.
        separator: One of them, with its id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Special) -> None:
        self.tokenizer = tokenizer
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        self.guarded = False
        self.separator: tuple[str, int] | None = None
        alone, behind = self.ids(["a", "\na"])
        self.guarded = behind[-len(alone) :] != alone
        self.markup = None if self.guarded else self._markup(special)

    def _markup(self, special: Special) -> re.Pattern[str] | None:
        added = [token for token in self.tokenizer.added_tokens_decoder.values() if token.content in special.texts]
        if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
            return None
        probe = ["a b\n", " c\n\nd ", "e"]
        tokens = sorted(token.content for token in added)[:8]
        for token in tokens:
            [whole, *parts] = self.ids([token.join(probe), token, *probe])
            mark, *inner = parts
            if len(mark) != 1 or whole != [*inner[0], *mark, *inner[1], *mark, *inner[2]]:
                return None
            self.separator = (token, mark[0])
        return special_pattern([token.content for token in added]) if added else None

    def ids(self, texts: Sequence[str], openings: Sequence[bool] | None = None) -> list[list[int]]:
        """Token ids of each text.

        Args:
            texts: What to tokenize.
            openings: Which of them open a text; None for none of them.

        Raises:
            ConfigError: The tokenizer joins a piece with the character before it.
        """
        if not texts:
            return []
        if self.guarded:
            return [ids for ids, _ in self._behind_guards(texts, openings or [False] * len(texts), located=False)]
        if self.separator and len(texts) > 1:
            return self._together(texts, *self.separator)
        return [ids for ids, _ in self._encode(texts, located=False)]

    def _together(self, texts: Sequence[str], separator: str, mark: int) -> list[list[int]]:
        groups: list[list[str]] = []
        size = JOINED
        for text in texts:
            if size >= JOINED:
                groups.append([])
                size = 0
            groups[-1].append(text)
            size += len(text)
        encoded = self._encode([separator.join(group) for group in groups], located=False)
        found: list[list[int]] = []
        for group, (ids, _) in zip(groups, encoded, strict=True):
            alone, at = [], 0
            try:
                for _ in group[1:]:
                    end = ids.index(mark, at)
                    alone.append(ids[at:end])
                    at = end + 1
            except ValueError:
                at = -1
            rest = ids[at:]
            if at < 0 or mark in rest:  # a text holds the separator, or swallows it
                found += [tokens for tokens, _ in self._encode(group, located=False)]
            else:
                found += [*alone, rest]
        return found

    def located(
        self, texts: Sequence[str], openings: Sequence[bool] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Like `ids`, with where in its text each token ends, in characters.

        A character of several tokens ends with the first of them: that one counts for all of it.

        Raises:
            ConfigError: As `ids`; or the tokenizer cannot say where tokens stand.
        """
        if not texts:
            return []
        if self.guarded:
            return self._behind_guards(texts, openings or [False] * len(texts), located=True)
        return self._encode(texts, located=True)

    def _behind_guards(
        self, texts: Sequence[str], openings: Sequence[bool], *, located: bool
    ) -> list[tuple[list[int], list[int]]]:
        guards = ["" if opening or not text else _guard(text) for text, opening in zip(texts, openings, strict=True)]
        taken = {guard: self._encode([guard], located=False)[0][0] if guard else [] for guard in set(guards)}
        encoded = self._encode([guard + text for guard, text in zip(guards, texts, strict=True)], located=located)
        found = []
        for guard, text, (ids, ends) in zip(guards, texts, encoded, strict=True):
            size = len(taken[guard])
            if ids[:size] != taken[guard]:
                raise ConfigError(
                    f"the model's tokenizer joins {guard!r} and {text[:20]!r} to one token, so an answer cannot be "
                    "tokenized by itself; use the model's fast tokenizer (tokenizer.json)"
                )
            found.append((ids[size:], [max(end - len(guard), 0) for end in ends[size:]]))
        return found

    def _encode(self, texts: Sequence[str], *, located: bool) -> list[tuple[list[int], list[int]]]:
        if self.backend is None:
            if located:
                raise ConfigError(
                    "the model's tokenizer cannot say where its tokens stand in a text, which raw text and this "
                    "template need; use the model's fast tokenizer (tokenizer.json)"
                )
            encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            return [(ids, []) for ids in encoded]
        self._prepare()
        if not located:
            return [(found.ids, []) for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        processor = self.backend.post_processor
        self.backend.post_processor = None  # it adds nothing here, but may leave spaces out of the places of tokens
        try:
            encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        finally:
            self.backend.post_processor = processor
        return [(found.ids, _ends(found)) for found in encodings]

    def _prepare(self) -> None:
        # tokenizer.json may ask for truncation or padding, and another call may have left them on.
        backend: Any = self.backend
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False


def _ends(encoding: Any) -> list[int]:
    ends, last = [], 0
    for _, end in encoding.offsets:
        last = max(last, end)
        ends.append(last)
    return ends


def _guard(piece: str) -> str:
    """A character that is not joined with the piece: a newline could be joined with other white space."""
    return "a" if piece[0].isspace() else "\n"
