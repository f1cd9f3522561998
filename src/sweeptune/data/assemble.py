"""From a conversation's turns to its token ids: what is tokenized once, what for every row, and whose each token is.

No token crosses the edge of an answer (nor that of other text that is learned), whatever is learned: ids are the same
for every ``data.loss_on``. Elsewhere text is tokenized in one, as the model sees it when it is asked. Where the
tokenizer allows, the text is also cut at special tokens, so that markup that returns in every row is tokenized once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sweeptune.data.cuts import SENTINEL, Turn
from sweeptune.data.pieces import Pieces
from sweeptune.data.render import Special

SLOT = re.compile(SENTINEL.format(r"(\d+)"))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a stretch of tokens is; see `sweeptune.data.tokenize.Span`."""

    role: str
    turn: int
    learned: bool
    stops: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text with one owner.

    Attributes:
        text: As it is rendered; may hold slots, where contents of messages are put.
        owner: Whose it is.
        edge: No token crosses its beginning.
        ids: Token ids that stand for it: nothing is tokenized.
    """

    text: str
    owner: Owner
    edge: bool = False
    ids: tuple[int, ...] | None = None


@dataclass(slots=True)
class Step:
    """Tokens of a row that are known (``ids``), or a text that is tokenized for every row (``fragments``).

    Attributes:
        ids: The tokens, where they are known.
        fragments: The text, in literals and numbers of slots; empty where the tokens are known.
        ends: Owners, each with where its part ends: in tokens of ``ids``, or in fragments.
        opening: Whether the text opens the row.
        located: Whether places in the text are needed, for parts that end inside it or bytes of the first token.
    """

    ids: list[int] = field(default_factory=list)
    fragments: tuple[str | int, ...] = ()
    ends: list[tuple[int, int]] = field(default_factory=list)
    opening: bool = False
    located: bool = False

    def text(self, contents: Sequence[str]) -> str:
        """The text with the contents in their slots."""
        return "".join([f if f.__class__ is str else contents[f] for f in self.fragments])  # type: ignore[index]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a conversation of one shape becomes token ids.

    Attributes:
        owners: In order; adjacent stretches of one owner are one.
        steps: In order.
        literals: What stands before, between and behind the contents: together they are the template's text.
        learned: Numbers of the contents that bear loss.
        loss_bytes: UTF-8 bytes of the other text that bears loss.
        texts: The steps whose text is tokenized for every row.
    """

    owners: tuple[Owner, ...]
    steps: tuple[Step, ...]
    literals: tuple[str, ...]
    learned: tuple[int, ...]
    loss_bytes: int
    texts: tuple[Step, ...]

    def whole(self, contents: Sequence[str]) -> str:
        """The text of the conversation."""
        text = [""] * (2 * len(contents) + 1)
        text[::2], text[1::2] = self.literals, contents
        return "".join(text)


def parts_of(turns: Sequence[Turn], learned: Sequence[bool], everything: bool) -> list[Part]:
    """Turns as stretches with owners.

    Args:
        turns: In order.
        learned: Whether each message is.
        everything: Whether markup around a learned turn is learned, too.
    """
    parts: list[Part] = []
    answers = sum(_answers(turn) for turn in turns)
    answer, behind_body = 0, False

    def add(text: str, owner: Owner, *, body: bool = False) -> None:
        nonlocal behind_body
        if text:
            parts.append(Part(text, owner, edge=body or behind_body))
            behind_body = body

    for turn in turns:
        loss = learned[turn.message] if turn.message is not None else True
        # The tail of an answer comes as a turn of its own, when the answer has been counted.
        number = answer - 1 if turn.role == "assistant" and not turn.head and not turn.body else answer
        around = Owner(turn.role, max(min(number, answers - 1), 0), loss and everything)
        add(turn.head, around)
        add(turn.body, replace(around, learned=loss, stops=turn.stops if loss else 0), body=True)
        add(turn.tail, around)
        answer += _answers(turn)
    return parts


def _answers(turn: Turn) -> int:
    return int(turn.role == "assistant" and turn.body != "")


class Planner:
    """Makes plans with one tokenizer."""

    def __init__(self, pieces: Pieces, special: Special) -> None:
        self.pieces = pieces
        self.special = special
        self._known: dict[str, list[int]] = {}

    def plan(self, parts: Sequence[Part], mark: str | None = None) -> Plan:
        """Plan a row.

        Args:
            parts: Its text.
            mark: Cuts the text without standing in it. A plan with a mark is for one row: its text is tokenized with
                that of other rows. One without is for many: it is tokenized here, but for the slots.
        """
        owners, numbers = _merge([part.owner for part in parts])
        steps: list[Step] = []
        unit: list[tuple[str | int, int]] = []
        opened = False

        def flush() -> None:
            nonlocal opened
            if unit:
                steps.append(self._step(unit, owners, opening=not opened, once=mark is not None))
                opened = True
            unit.clear()

        for part, number in zip(parts, numbers, strict=True):
            if part.edge or part.ids is not None:
                flush()
            if part.ids is not None:
                steps.append(Step(ids=list(part.ids), ends=[(number, len(part.ids))]))
            for fragment, cut in self._fragments(part.text, mark):
                if isinstance(cut, list):
                    flush()
                    steps.append(Step(ids=cut, ends=[(number, len(cut))]))
                    opened = True
                elif cut:
                    flush()
                if fragment != "":
                    unit.append((fragment, number))
        flush()
        literals, learned, loss_bytes = self._texts(parts, mark)
        texts = tuple(step for step in steps if step.fragments)
        return Plan(tuple(owners), tuple(_joined(steps)), literals, learned, loss_bytes, texts)

    def _fragments(self, text: str, mark: str | None) -> Iterator[tuple[str | int, list[int] | bool]]:
        """Literals and slots; before each, whether the text is cut there, or the token at which it is."""
        for i, piece in enumerate(text.split(mark) if mark else [text]):
            yield "", i > 0
            for literal, slot in _slots(piece) if mark is None else [(piece, None)]:
                at = 0
                markup = self.pieces.markup
                while markup and (found := markup.search(literal, at)):
                    yield literal[at : found.start()], False
                    yield "", self._ids(found["token"])
                    at = found.end("token")
                yield literal[at:], False
                if slot is not None:
                    yield slot, False

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            [self._known[text]] = self.pieces.ids([text])
        return self._known[text]

    def _step(self, unit: list[tuple[str | int, int]], owners: Sequence[Owner], *, opening: bool, once: bool) -> Step:
        ends = [(owner, i + 1) for i, (_, owner) in enumerate(unit) if i + 1 == len(unit) or unit[i + 1][1] != owner]
        located = len(ends) > 1 or (opening and owners[ends[0][0]].learned)
        step = Step(fragments=tuple(f for f, _ in unit), ends=ends, opening=opening, located=located)
        if once or located or any(isinstance(f, int) for f in step.fragments):
            return step
        [ids] = self.pieces.ids([step.text(())], [opening])
        return Step(ids=ids, ends=[(ends[0][0], len(ids))])

    def _texts(self, parts: Sequence[Part], mark: str | None) -> tuple[tuple[str, ...], tuple[int, ...], int]:
        literals, learned, size = [""], [], 0
        for part in parts:
            for literal, slot in _slots(part.text) if mark is None else [(part.text, None)]:
                literals[-1] += literal
                if part.owner.learned:
                    bare = self.special.without(literal) if self.special.inside(literal) else literal
                    size += len((bare.replace(mark, "") if mark else bare).encode())
                if slot is not None:
                    literals.append("")
                    learned += [slot] if part.owner.learned else []
        return tuple(literals), tuple(learned), size


def _slots(text: str) -> Iterator[tuple[str, int | None]]:
    """Literals, each with the slot behind it."""
    pieces = SLOT.split(text)
    for i in range(0, len(pieces), 2):
        yield pieces[i], int(pieces[i + 1]) if i + 1 < len(pieces) else None


def _merge(owners: Sequence[Owner]) -> tuple[list[Owner], list[int]]:
    """Adjacent owners that are one; and the number of each in the result. The end of a turn ends a stretch."""
    merged: list[Owner] = []
    numbers = []
    for owner in owners:
        if merged and not merged[-1].stops and replace(merged[-1], stops=owner.stops) == owner:
            merged[-1] = owner
        else:
            merged.append(owner)
        numbers.append(len(merged) - 1)
    return merged, numbers


def _joined(steps: Sequence[Step]) -> list[Step]:
    """Neighbours whose tokens are known, as one."""
    joined: list[Step] = []
    for step in steps:
        if joined and not step.fragments and not joined[-1].fragments:
            last = joined[-1]
            ends = [(owner, end + len(last.ids)) for owner, end in step.ends]
            # Of an owner, the last end is the one that counts.
            joined[-1] = Step(ids=last.ids + step.ids, ends=list(dict(last.ends + ends).items()))
        else:
            joined.append(step)
    return joined


def share(ends: Sequence[int], cut: int) -> int:
    """How many tokens, ending at ``ends`` characters, begin before character ``cut``."""
    count = bisect_right(ends, cut)
    inside = count < len(ends) and (ends[count - 1] if count else 0) < cut
    return count + inside
