"""What the loss ledger counts of one dataset under one template."""

from __future__ import annotations

from dataclasses import dataclass, field

from sweeptune.data.conversation import TEXT

Counts = dict[str, int]


@dataclass(slots=True)
class Part:
    """The counts of one dataset under one template.

    Attributes:
        source: Number of the dataset in a mixture, from 0.
        template: What made text of it; ``text`` for raw documents, which take none.
        rows: Rows, without those left out.
        tokens: Tokens in them.
        loss_tokens: Tokens that bear loss.
        longest: Tokens of the longest row.
        roles: By role and number of the answer (``1`` to ``8``, then ``9+``): tokens, and how many bear loss.
        answers: Answers (of raw text: pieces of documents) that are learned.
        stops: How many of them train which stop token; without a template, how many rows train which end of document.
        unstopped: How many train none.
        opened: How many begin with ``space``, or with a ``special`` token.
        inside: Special tokens that are learned in front of the stop token.
        bos: Begin-of-text tokens, by their text.
        doubled_bos: Rows in which two of them follow each other.
        without_loss: Rows of which nothing is learned.
        left_out: Of those, the ones that were left out (``data.on_bad_row=skip``).
        first_learned: Rows whose first token bears loss, though nothing comes before it to predict it.
        uneven: Rows whose mask is not what their spans say.
    """

    source: int
    template: str
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    longest: int = 0
    roles: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    answers: int = 0
    stops: Counts = field(default_factory=dict)
    unstopped: int = 0
    opened: Counts = field(default_factory=dict)
    inside: Counts = field(default_factory=dict)
    bos: Counts = field(default_factory=dict)
    doubled_bos: int = 0
    without_loss: int = 0
    left_out: int = 0
    first_learned: int = 0
    uneven: int = 0

    @property
    def has_turns(self) -> bool:
        """Whether answers have an end of their own; without a template only the document has one."""
        return self.template not in (TEXT, "none")

    def absorb(self, other: Part) -> None:
        """Add the counts of the same dataset and template."""
        for name in ("rows", "tokens", "loss_tokens", "answers", "unstopped", "doubled_bos"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("without_loss", "left_out", "first_learned", "uneven"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        for name in ("stops", "opened", "inside", "bos"):
            counts = getattr(self, name)
            for key, count in getattr(other, name).items():
                counts[key] = counts.get(key, 0) + count
        for role, turns in other.roles.items():
            for turn, (tokens, learned) in turns.items():
                cell = self.roles.setdefault(role, {}).setdefault(turn, [0, 0])
                cell[0] += tokens
                cell[1] += learned
