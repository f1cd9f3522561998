"""From a conversation to token ids and the mask of what is learned.

The text is the template's (`sweeptune.data.cuts`); each answer is tokenized by itself, so that no token crosses the
mask's edge, and nothing is added that the template did not write: there is never a second begin-of-text.

Conversations of one shape (the same roles in the same order) are cut once, with other contents in place of theirs.
Each of them is then rendered once, as a whole: where its contents in the shape's markup give exactly that text, the
shape's cuts are its own; where not (a template that trims, say), it is cut by itself, which is slower. Of a template
that is proved to write contents as they are (`sweeptune.data.verbatim`), the first row of a shape speaks for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import TemplateConfig
from sweeptune.data.assemble import Owner, Part, Plan, Planner, parts_of, share
from sweeptune.data.conversation import TEXT, Conversation, Message
from sweeptune.data.cuts import SENTINEL, Cutter, cutter
from sweeptune.data.documents import Document, Found, Request, document
from sweeptune.data.excerpt import escape
from sweeptune.data.pieces import Pieces
from sweeptune.data.render import Renderer, Special, mark_for, marked, plain, unwritten
from sweeptune.data.rows import Encoded, Row, Span
from sweeptune.data.template import apply_template, document_texts, drops, no_template, token_id

__all__ = ["Encoded", "Encoder", "Row", "Span"]

VERSION = 2  # raised whenever other ids or masks come out than before, so that nothing old is used again
BATCH = 512
BATCH_CHARACTERS = 4_000_000
SHAPES = 2048
Shape = tuple[tuple[str, ...], tuple[bool, ...]]
"""Roles, and which messages bear loss."""


@dataclass(slots=True)
class Chat:
    """A conversation on its way to token ids: its plan, and the contents that go into the plan's slots."""

    item: Conversation
    plan: Plan
    contents: Sequence[str]
    special: Special

    def requests(self) -> list[Request]:
        """What is to be tokenized."""
        contents = self.contents
        return [(step.text(contents), step.located, step.opening) for step in self.plan.texts]

    def finish(self, found: Sequence[Found]) -> list[Encoded]:
        """Put the row together."""
        plan, number = self.plan, 0
        ids: list[int] = []
        ends = [0] * len(plan.owners)
        for step in plan.steps:
            if not step.fragments:
                base = len(ids)
                ids += step.ids
                for owner, end in step.ends:
                    ends[owner] = base + end
                continue
            tokens, places = found[number]
            number += 1
            if len(step.ends) > 1:
                self._share(step.fragments, step.ends, places, len(ids), ends)
            ids += tokens
            ends[step.ends[-1][0]] = len(ids)
        loss_bytes = plan.loss_bytes + sum([len(self.contents[i].encode()) for i in plan.learned])
        spans, mask = _spans(plan.owners, ends, len(ids))
        if mask and mask[0]:
            mask[0] = False
            loss_bytes -= self._first_bytes(found)
            spans = _first_apart(spans)
        return [Encoded(Row(self.item.id, ids, mask, loss_bytes), tuple(spans), self.item)]

    def _share(
        self,
        fragments: tuple[str | int, ...],
        owners: list[tuple[int, int]],
        places: list[int],
        base: int,
        ends: list[int],
    ) -> None:
        sizes = [len(f if isinstance(f, str) else self.contents[f]) for f in fragments]
        for owner, end in owners[:-1]:
            ends[owner] = base + share(places, sum(sizes[:end]))

    def _first_bytes(self, found: Sequence[Found]) -> int:
        step = self.plan.steps[0]
        if not step.fragments or not found[0][1]:
            return 0  # a special token
        text = step.text(self.contents)[: found[0][1][0]]
        return len(self.special.without(text).encode())


def _spans(owners: Sequence[Owner], ends: Sequence[int], size: int) -> tuple[list[Span], list[bool]]:
    spans: list[Span] = []
    mask = [False] * size
    begin = 0
    for owner, end in zip(owners, ends, strict=True):
        if end > begin:
            spans.append(Span(owner.role, owner.turn, begin, end, owner.learned, owner.stops))
            if owner.learned:
                mask[begin:end] = [True] * (end - begin)
            begin = end
    return spans, mask


def _first_apart(spans: list[Span]) -> list[Span]:
    """The first token of all bears no loss, so it is a span of its own."""
    first, *others = spans
    alone = Span(first.role, first.turn, 0, 1, False)
    rest = Span(first.role, first.turn, 1, first.end, True, first.stops if first.end > 1 else 0)
    return [alone, *([rest] if first.end > 1 else []), *others]


def _shown(item: Conversation) -> str:
    """A row for an error message: where it stands and how its turns begin; its text is untrusted and may be long."""
    turns = ", ".join(f"{message.role} '{escape(message.content[:60])}'" for message in item.messages[:4])
    return f"{item.place or item.id}: {turns}" + (", ..." if len(item.messages) > 4 else "")


class Encoder:
    """Turns conversations into token ids with their loss mask.

    Args:
        tokenizer: The model's; its chat template becomes that of ``template``.
        template: How a conversation becomes text.
        loss_on: assistant, last or all.

    Attributes:
        renderer: The chat template, which counts its renderings; None where there is none.

    Raises:
        ConfigError: The tokenizer cannot speak the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateConfig, loss_on: str) -> None:
        self.tokenizer = apply_template(tokenizer, template)
        self.template = template
        self.loss_on = loss_on
        self.special = Special(tokenizer)
        self.pieces = Pieces(tokenizer, self.special)
        self.document_texts = document_texts(tokenizer, template)
        chats = template.name != "none" and tokenizer.chat_template
        self.renderer = Renderer(tokenizer, template.name) if chats else None
        self._planner = Planner(self.pieces, self.special)
        self._losses: dict[tuple[tuple[str, bool | None], ...], tuple[bool, ...]] = {}
        self._shapes: dict[Shape, Plan | None] = {}
        self._proved: set[Shape] = set()

    @cached_property
    def digest(self) -> str:
        """Names everything that token ids and masks depend on beside the conversations."""
        backend: Any = self.pieces.backend
        self.pieces.ids(["a"])  # leaves truncation and padding off, which would be part of the text
        content = backend.to_str() if backend else repr(sorted(self.tokenizer.get_vocab().items()))
        named = (
            VERSION,
            self.tokenizer.chat_template,
            sorted(self.tokenizer.special_tokens_map.items()),
            self.template.name == "none",
            self.document_texts,
            self.loss_on,
        )
        return hashlib.sha256(repr(named).encode() + content.encode()).hexdigest()

    def encode(self, conversations: Iterable[Conversation], *, window: int | None = None) -> Iterator[Encoded]:
        """Tokenize conversations, in order.

        Turns after the last answer are left out, unless they bear loss: no other loss depends on them.

        Args:
            conversations: What to tokenize.
            window: Cut raw text to windows of so many tokens, each a row of its own, named ``<id>-<k>``; None keeps
                documents whole.

        Raises:
            ConfigError: The template fails, does not tell where an answer begins, or does not end it with a special
                token; or there is none.

        Example:
            >>> encoder = Encoder(tiny_tokenizer(), config.template, "assistant")
            >>> [found] = encoder.encode([conversation([("user", "1+1?"), ("assistant", "2")])])
            >>> found.row.length, found.row.loss_tokens, found.row.loss_bytes   # the loss is on "2" and <|im_end|>
            (30, 2, 1)
        """
        batch: list[Conversation] = []
        characters = 0
        for item in conversations:
            batch.append(item)
            for message in item.messages:
                characters += len(message.content)
            if len(batch) == BATCH or characters > BATCH_CHARACTERS:
                yield from self._encode(batch, window)
                batch, characters = [], 0
        yield from self._encode(batch, window)

    def turns(self, item: Conversation) -> tuple[Message, ...]:
        """The turns of a conversation that are tokenized: up to the last answer, or the last that bears loss."""
        return item.messages[: len(self._learned(tuple([(m.role, m.loss) for m in item.messages])))]

    def _encode(self, items: Sequence[Conversation], window: int | None) -> Iterator[Encoded]:
        """Tokenize a batch: every text in two calls; then the rows are put together again.

        One by one, so that the memory of a row that has been used is there for the next: that is measurably quicker.
        """
        batch = [self._ready(item, window) for item in items]
        jobs = [job.requests() for job in batch]
        wanted: dict[bool, list[str]] = {False: [], True: []}
        openings: dict[bool, list[bool]] = {False: [], True: []}
        for requests in jobs:
            for text, located, opening in requests:
                wanted[located].append(text)
                openings[located].append(opening)
        plain = iter(self.pieces.ids(wanted[False], openings[False]))
        placed = iter(self.pieces.located(wanted[True], openings[True]))
        for job, requests in zip(batch, jobs, strict=True):
            yield from job.finish([next(placed) if located else (next(plain), []) for _, located, _ in requests])

    def _ready(self, item: Conversation, window: int | None) -> Chat | Document:
        try:
            return self._prepare(item, window)
        except ConfigError as error:
            if self.renderer is None and self.template.name != "none":
                raise  # that there is no template is no fault of a row
            raise ConfigError([f"{problem}. The row: {_shown(item)}" for problem in error.problems]) from error

    def _prepare(self, item: Conversation, window: int | None) -> Chat | Document:
        if item.messages[0].role == TEXT:
            start, end = (None if t is None else token_id(self.tokenizer, t) for t in self.document_texts)
            # A long file is read in sections, which begin and end inside its one document.
            section = item.messages[0].extra or {}
            start = start if section.get("opens", True) else None
            end = end if section.get("closes", True) else None
            return document(item, self.special, (start, end), window)
        learned = self._learned(tuple([(m.role, m.loss) for m in item.messages]))
        messages = item.messages[: len(learned)]
        if self.template.name == "none":
            return self._joined(item, messages, learned)
        if self.renderer is None:
            raise no_template(self.tokenizer, self.template.name)
        ordinary, contents = not item.tools, []
        for message in messages:
            ordinary = ordinary and not message.extra and not self.special.inside(message.content)
            contents.append(message.content)
        if ordinary:
            shape = (tuple([m.role for m in messages]), learned)
            plan = self._shape(*shape)
            if plan is not None and (shape in self._proved or self._agrees(plan, shape, contents)):
                return Chat(item, plan, contents, self.special)
        return self._alone(item, messages, learned)

    def _agrees(self, plan: Plan, shape: Shape, contents: Sequence[str]) -> bool:
        """Whether contents in the shape's markup are what the template writes; once is enough where that is proved."""
        assert self.renderer is not None
        written = [{"role": role, "content": content} for role, content in zip(shape[0], contents, strict=True)]
        same = plan.whole(contents) == self.renderer.text(written, False)
        if same and self.renderer.verbatim:
            self._proved.add(shape)
        return same

    def _learned(self, turns: tuple[tuple[str, bool | None], ...]) -> tuple[bool, ...]:
        """Whether each message bears loss: as the row says, else as ``loss_on`` does; up to the last that matters."""
        known = self._losses.get(turns)
        if known is None:
            answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
            chosen = {"assistant": answers, "last": answers[-1:], "all": range(len(turns))}[self.loss_on]
            learned = tuple(i in chosen if loss is None else loss for i, (_, loss) in enumerate(turns))
            count = max([i + 1 for i, loss in enumerate(learned) if loss] + [i + 1 for i in answers], default=0)
            self._losses = self._losses if len(self._losses) < SHAPES else {}
            known = self._losses[turns] = learned[:count]
        return known

    @cached_property
    def _cutter(self) -> Cutter:
        assert self.renderer is not None
        return cutter(self.renderer, self.special)

    def _shape(self, roles: tuple[str, ...], learned: tuple[bool, ...]) -> Plan | None:
        """The plan of every conversation with these roles; None where contents cannot be told from markup."""
        if (roles, learned) not in self._shapes:
            if len(self._shapes) >= SHAPES:
                return None
            self._shapes[roles, learned] = self._probe(roles, learned)
        return self._shapes[roles, learned]

    def _probe(self, roles: tuple[str, ...], learned: tuple[bool, ...]) -> Plan | None:
        messages = [{"role": role, "content": SENTINEL.format(i)} for i, role in enumerate(roles)]
        try:
            plan = self._planner.plan(self._parts(messages, learned, None))
        except ConfigError:
            return None  # the row itself is asked next, and its error is about its own text
        slots = [f for step in plan.steps for f in step.fragments if isinstance(f, int)]
        return plan if slots == list(range(len(roles))) else None

    def _alone(self, item: Conversation, messages: Sequence[Message], learned: tuple[bool, ...]) -> Chat:
        """A conversation that is cut by itself."""
        mark = mark_for(item)
        written = [marked(plain(m), self.special, mark) | {"role": m.role} for m in messages]
        tools = marked(item.tools, self.special, mark) if item.tools else None
        if lost := unwritten(self.renderer, written, tools):
            raise drops(self.template.name, lost)
        return Chat(item, self._planner.plan(self._parts(written, learned, tools), mark), (), self.special)

    def _parts(self, messages: list[dict[str, Any]], learned: tuple[bool, ...], tools: Any) -> list[Part]:
        everything = self.loss_on == "all"
        # Where all is learned, what is said by others need not be told from the markup around it.
        told = [
            loss and (m["role"] == "assistant" or not everything) for m, loss in zip(messages, learned, strict=True)
        ]
        return parts_of(self._cutter.cut(messages, told, tools), learned, everything)

    def _joined(self, item: Conversation, messages: Sequence[Message], learned: tuple[bool, ...]) -> Chat:
        """A conversation without a template: what is said, one after the other, between the tokens of a document."""
        if lost := unwritten(None, [plain(m) for m in messages], item.tools):
            raise drops(self.template.name, lost)
        parts: list[Part] = []
        mark, turn = mark_for(item), 0
        answers = sum(m.role == "assistant" for m in messages)
        start, end = self.document_texts
        if start is not None:
            first = Owner(messages[0].role, 0, False)
            parts.append(Part("", first, ids=tuple(self.pieces.ids([start])[0])))
        edge = False
        for message, loss in zip(messages, learned, strict=True):
            owner = Owner(message.role, max(min(turn, answers - 1), 0), loss)
            alone = message.role == "assistant" or loss
            parts.append(Part(marked(message.content, self.special, mark), owner, edge=edge or alone))
            edge = alone
            turn += message.role == "assistant"
        if end is not None and messages:
            last = parts[-1].owner
            stop = Owner(last.role, last.turn, last.learned, int(last.learned))
            parts.append(Part("", stop, ids=tuple(self.pieces.ids([end])[0])))
        return Chat(item, self._planner.plan(parts, mark), (), self.special)
