"""Raw text to token ids: a document between its tokens, whole or in windows, with loss on all but the first.

There is nothing before the first token of a row that could predict it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweeptune.data.conversation import TEXT, Conversation
from sweeptune.data.render import Special, mark_for, marked
from sweeptune.data.rows import Encoded, Row, Span

Request = tuple[str, bool, bool]
"""A text to tokenize, whether the places of its tokens are needed, and whether it opens its row."""
Found = tuple[list[int], list[int]]
"""Token ids, and where each ends in its text, in characters (nothing where that was not asked)."""


@dataclass(frozen=True, slots=True)
class Document:
    """A raw text on its way to token ids.

    Attributes:
        item: Its conversation.
        texts: The text in pieces: special tokens that stand in it stay text, so it is cut inside of them.
        start: Id of the token before it, or None.
        end: Id of the token behind it, or None.
        window: Tokens in a row; None for one row.
    """

    item: Conversation
    texts: list[str]
    start: int | None
    end: int | None
    window: int | None

    def requests(self) -> list[Request]:
        """What is to be tokenized; places are needed where the bytes of tokens are counted one by one."""
        whole = self.window is not None
        return [(text, whole or (i == 0 and self.start is None), i == 0) for i, text in enumerate(self.texts)]

    def finish(self, found: Sequence[Found]) -> Iterator[Encoded]:
        """The row, or one for each window; a last window of one token, which could bear no loss, is left out."""
        text = self.item.messages[0].content
        ids: list[int] = [] if self.start is None else [self.start]
        ends: list[int] = [0] * len(ids)  # where tokens end in the text, so far as that is known
        done = 0
        for piece, (tokens, places) in zip(self.texts, found, strict=True):
            ids += tokens
            if places:
                ends += [done + place for place in places]
                ends[-1] = done + len(piece)
            else:
                ends += [done + len(piece)] * len(tokens)
            done += len(piece)
        ids += [] if self.end is None else [self.end]
        ends += [] if self.end is None else [done]
        size = self.window or max(len(ids), 1)
        for k, begin in enumerate(range(0, len(ids), size)):
            part = ids[begin : begin + size]
            if len(part) < 2 and k:
                return
            loss_bytes = len(text[ends[begin] : ends[begin + len(part) - 1]].encode())
            last = begin + len(part) == len(ids)
            stops = int(last and self.end is not None and len(part) > 1)
            learned = [Span(TEXT, 0, 1, len(part), True, stops)] if len(part) > 1 else []
            name = f"{self.item.id}-{k}" if self.window else self.item.id
            row = Row(name, part, [False] + [True] * (len(part) - 1), loss_bytes)
            yield Encoded(row, (Span(TEXT, 0, 0, 1, False), *learned), self.item)


def document(
    item: Conversation, special: Special, tokens: tuple[int | None, int | None], window: int | None
) -> Document:
    """Prepare a raw text; an empty one has no pieces."""
    text, texts = item.messages[0].content, []
    if special.inside(text):
        mark = mark_for(item)
        texts = str(marked(text, special, mark)).split(mark)
    elif text:
        texts = [text]
    return Document(item, texts, tokens[0], tokens[1], window)
