"""The loss ledger: what is learned of every row, counted while rows are tokenized, and what is wrong with it.

A template that never trains the stop token, a doubled begin-of-text or a row of which nothing is learned cost a run
without a word. Here they are counted, for each dataset and template, and stop the run with the row shown.

Counts of parts of the data add up: ledgers filled side by side and merged in order equal one that saw every row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.data import ledger_words
from sweeptune.data.conversation import TEXT, Conversation
from sweeptune.data.excerpt import escape, excerpt, special_ids, token_text
from sweeptune.data.ledger_part import Counts, Part
from sweeptune.data.rendering import SAMPLE, Rendering
from sweeptune.data.tokenize import Encoded

TURNS = 8
"""Answers that are counted by their number; those behind are counted together."""
ASSISTANT = "assistant"


class Ledger:
    """Counts what is learned.

    Args:
        tokenizer: The model's; None for a ledger that only receives the counts of others.
        template: The name of the template in use, for the counts and for messages.
        skip: Leave rows without loss out (``data.on_bad_row=skip``) instead of calling them a problem.

    Attributes:
        parts: Counts by dataset and template.
        cuts: What making rows fit cost, by kind: rows, tokens, loss_tokens.
        examples: The first row of each kind of problem, as text.
        sample: The first conversations under a template, for `check_rendering`.
        rendering: How their rows compare with the template's own text, once that has looked.

    Example:
        >>> ledger = Ledger(tokenizer)
        >>> rows = [found.row for found in encoder.encode(conversations) if ledger.add(found)]
        >>> raise_on_problems(ledger)
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None = None, template: str = "auto", *, skip: bool = False
    ) -> None:
        self.tokenizer, self.template, self.skip = tokenizer, template, skip
        self.parts: dict[tuple[int, str], Part] = {}
        self.cuts: dict[str, Counts] = {}
        self.examples: dict[str, str] = {}
        self.sample: list[Conversation] = []
        self.rendering: Rendering | None = None
        bos = None if tokenizer is None else tokenizer.bos_token_id
        self._bos = -1 if bos is None else int(bos)  # no token has the number -1
        self._special = special_ids(tokenizer) if tokenizer is not None else frozenset()
        self._texts: dict[int, str] = {}
        self._opening: dict[int, str] = {}

    def add(self, encoded: Encoded) -> bool:
        """Count a row as it was encoded, before it is cut.

        Returns:
            Whether to keep it: with ``skip`` a row of which nothing is learned is to be left out.
        """
        row = encoded.row
        ids, mask = row.input_ids, row.loss_mask
        raw = encoded.conversation.messages[0].role == TEXT
        part = self._part(encoded.conversation.source, TEXT if raw else self.template)
        learned = mask.count(True)
        if not learned:
            part.without_loss += 1
            self._example("without_loss", encoded, len(ids))
            if self.skip:
                part.left_out += 1
                return False
        part.rows += 1
        part.tokens += len(ids)
        part.loss_tokens += learned
        if len(ids) > part.longest:
            part.longest = len(ids)
        if len(self.sample) < SAMPLE and not raw:
            self.sample.append(encoded.conversation)
        counted = self._spans(encoded, part, TEXT if raw else ASSISTANT)
        if mask and mask[0]:
            part.first_learned += 1
            self._example("first_learned", encoded, 0)
        if counted != learned or not encoded.spans or encoded.spans[-1].end != len(ids):
            part.uneven += 1
            self._example("uneven", encoded, len(ids))
        return True

    def cut(self, kind: str, *, rows: int, tokens: int, loss_tokens: int) -> None:
        """Note what making rows fit ``data.max_length`` cost.

        Args:
            kind: ``truncated``, ``split`` or ``dropped``.
            rows: Rows that it happened to.
            tokens: Tokens that are lost by it; splitting loses none.
            loss_tokens: How many of them bore loss.
        """
        counts = self.cuts.setdefault(kind, {"rows": 0, "tokens": 0, "loss_tokens": 0})
        for key, count in (("rows", rows), ("tokens", tokens), ("loss_tokens", loss_tokens)):
            counts[key] += count

    def merge(self, other: Ledger) -> None:
        """Add what another ledger counted of the rows that follow."""
        for (source, template), part in other.parts.items():
            self._part(source, template).absorb(part)
        for kind, counts in other.cuts.items():
            self.cut(kind, **counts)
        self.examples = other.examples | self.examples
        self.sample = [*self.sample, *other.sample][:SAMPLE]
        self.rendering = self.rendering or other.rendering

    def problems(self) -> list[str]:
        """What is wrong, each with its first row and the override that mends it; empty where nothing is."""
        return ledger_words.problems(self)

    def lines(self) -> list[str]:
        """The ledger as a few lines for a log."""
        return ledger_words.lines(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; `from_dict` makes an equal ledger of it."""
        return self._counts() | {
            "template": self.template,
            "skip": self.skip,
            "examples": dict(sorted(self.examples.items())),
            "rendering": asdict(self.rendering) if self.rendering else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], template: str | None = None) -> Ledger:
        """A ledger as it was, for reading and merging.

        Args:
            values: What `as_dict` gave.
            template: The name that the template has for the reader: the same text may come from another setting.
        """
        ledger = cls(template=template or values["template"], skip=values["skip"])
        for part in values["parts"]:
            name = TEXT if part["template"] == TEXT else template or part["template"]
            ledger._part(part["source"], name).absorb(Part(**part))
        for kind, counts in values["cut"].items():
            ledger.cut(kind, **counts)
        ledger.examples = dict(values["examples"])
        ledger.rendering = Rendering(**values["rendering"]) if values["rendering"] else None
        return ledger

    @property
    def digest(self) -> str:
        """16 hex digits that name the counts: the same for equal data, wherever its files lie, under an equal template,
        whatever its name."""
        counts = self._counts()
        for part in counts["parts"]:
            part["template"] = TEXT if part["template"] == TEXT else "chat"
        counts["parts"].sort(key=lambda part: (part["source"], part["template"]))
        return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]

    def _counts(self) -> dict[str, Any]:
        parts = [asdict(self.parts[key]) for key in sorted(self.parts)]
        for part in parts:
            for name in ("roles", "stops", "opened", "inside", "bos"):
                part[name] = dict(sorted(part[name].items()))
            part["roles"] = {role: dict(sorted(turns.items())) for role, turns in part["roles"].items()}
        return {"parts": parts, "cut": {kind: dict(self.cuts[kind]) for kind in sorted(self.cuts)}}

    def _part(self, source: int, template: str) -> Part:
        part = self.parts.get((source, template))
        if part is None:
            part = self.parts[source, template] = Part(source, template)
        return part

    def _spans(self, encoded: Encoded, part: Part, speaker: str) -> int:
        """Count whose the tokens are and how answers end; return how many tokens the spans call learned.

        This runs over every row there is: about 55 ns a token, a fortieth of what encoding it takes.
        """
        ids, mask, roles, bos = encoded.row.input_ids, encoded.row.loss_mask, part.roles, self._bos
        total, answer, stopped, place, openings, near = 0, -1, True, 0, 0, False
        for span in encoded.spans:
            begin, end, turn, role = span.begin, span.end, span.turn, span.role
            if begin == end:
                continue
            try:
                cell = roles[role][NUMBERS[turn] if turn < TURNS else BEYOND]
            except KeyError:
                cell = roles.setdefault(role, {}).setdefault(NUMBERS[turn] if turn < TURNS else BEYOND, [0, 0])
            cell[0] += end - begin
            if not span.learned:
                if count := ids[begin:end].count(bos):
                    openings += count
                    near = near or count > 1 or (begin > 0 and ids[begin - 1] == bos == ids[begin])
                continue
            behind = end - span.stops
            learned = end - begin if begin or mask[0] else end - 1  # the first token of all is never predicted
            cell[1] += learned
            total += learned
            if not self._special.isdisjoint(ids[begin:behind]):
                self._inside(encoded, begin, behind, part)
                openings += ids[begin:behind].count(bos)
                near = True
            if role != speaker:
                if behind < end == len(ids) and part.template == "none" and mask[end - 1]:
                    self._stop(ids[behind:end], part)  # of the document, whoever spoke last
                continue
            if turn != answer:
                if not stopped:
                    self._unstopped(encoded, part, place)
                answer, stopped = turn, False
                part.answers += 1
                if kind := self._opens(ids[begin]):
                    part.opened[kind] = part.opened.get(kind, 0) + 1
            if behind < end and not stopped and mask[end - 1]:
                stopped = True
                self._stop(ids[behind:end], part)
            place = end
        if not stopped:
            self._unstopped(encoded, part, place)
        if openings:
            text = self._text(bos)
            part.bos[text] = part.bos.get(text, 0) + openings
            if near:
                self._look_for_doubles(encoded, part)
        return total

    def _stop(self, tokens: list[int], part: Part) -> None:
        stop = self._text(tokens[0]) if len(tokens) == 1 else "".join(map(self._text, tokens))
        part.stops[stop] = part.stops.get(stop, 0) + 1

    def _opens(self, token: int) -> str:
        """How an answer begins: with ``space``, with a ``special`` token, or "" for anything else."""
        kind = self._opening.get(token)
        if kind is None:
            plain = self._text(token).translate(SPACES)
            kind = "special" if token in self._special else "space" if plain[:1].isspace() else ""
            self._opening[token] = kind
        return kind

    def _unstopped(self, encoded: Encoded, part: Part, at: int) -> None:
        part.unstopped += 1
        if part.has_turns:
            self._example("unstopped", encoded, at)

    def _inside(self, encoded: Encoded, begin: int, end: int, part: Part) -> None:
        for at in range(begin, end):
            if (token := encoded.row.input_ids[at]) in self._special:
                text = self._text(token)
                part.inside[text] = part.inside.get(text, 0) + 1
                self._example("inside", encoded, at)

    def _look_for_doubles(self, encoded: Encoded, part: Part) -> None:
        """Two begin-of-text in a row are a fault; where the same token also ends texts, only at the row's start."""
        assert self.tokenizer is not None
        ids, bos = encoded.row.input_ids, self._bos
        at = ids.index(bos)
        for _ in range(ids.count(bos) - 1):
            before, at = at, ids.index(bos, at + 1)
            if at == before + 1 and (before == 0 or self.tokenizer.eos_token_id != bos):
                part.doubled_bos += 1
                self._example("doubled_bos", encoded, at)
                return

    def _text(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = "" if self.tokenizer is None else token_text(self.tokenizer, token)
        return text

    def _example(self, kind: str, encoded: Encoded, at: int) -> None:
        """Keep the first row of a kind."""
        if kind not in self.examples and self.tokenizer is not None:
            place = encoded.conversation.place or f"row {encoded.row.id}"
            self.examples[kind] = f"{escape(place)}: {excerpt(self.tokenizer, encoded.row, at)}"


NUMBERS = tuple(str(number) for number in range(1, TURNS + 1))
BEYOND = f"{TURNS + 1}+"
SPACES = str.maketrans("▁ĠĊĉ", "    ")
"""How vocabularies write white space at a token's start."""


class LedgerError(ConfigError):
    """The ledger found something wrong; it comes along, so that a preview can show it all the same."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.problems())
        self.ledger = ledger


def raise_on_problems(ledger: Ledger) -> None:
    """Stop before training where the ledger found anything wrong.

    Raises:
        LedgerError: All problems at once.
    """
    if ledger.problems():
        raise LedgerError(ledger)
