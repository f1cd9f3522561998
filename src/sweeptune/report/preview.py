"""``sweeptune preview``: the loss ledger and real rows, token by token, before anything is trained.

Tokenizer and data are loaded, weights never. `preview_text` shows it on a terminal, `preview_html` in a browser.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config, DataConfig
from sweeptune.data import Conversation, Encoded, Encoder, Ledger, load_run_tokenizer, load_splits
from sweeptune.data.conversation import TEXT
from sweeptune.data.excerpt import cut_to_pieces, token_text
from sweeptune.data.fit import Different, HoldOut, policy
from sweeptune.data.ledger import LedgerError
from sweeptune.data.sources import Found, read
from sweeptune.tracking.console import progress

Split = Literal["train", "eval", "test"]
SPLITS = ("train", "eval", "test")
MOST = 4000
"""Tokens shown of one row; of a longer one the first three quarters of so many, and the last quarter."""


@dataclass(frozen=True)
class Token:
    """What stands between two boundaries: one token, or the few whose bytes make a character.

    Attributes:
        text: What it says, as it is: untrusted, to be escaped by whoever shows it.
        label: Id and name in the vocabulary, of each.
        learned: Whether it bears loss.
        special: Whether it is markup.
        cut: Whether truncation takes it away before training.
    """

    text: str
    label: str
    learned: bool
    special: bool
    cut: bool


@dataclass(frozen=True)
class Stretch:
    """Tokens with one owner; those of an omission are counted instead of shown.

    Attributes:
        owner: Role and, for answers and what leads up to them, the number of the answer.
        tokens: In order.
        omitted: Tokens left out in front of them, because the row is long.
    """

    owner: str
    tokens: tuple[Token, ...]
    omitted: int = 0


@dataclass(frozen=True)
class ShownRow:
    """A row as it will be trained on, or judged on."""

    place: str
    tokens: int
    loss_tokens: int
    note: str
    """What happens to it because it is long; empty where nothing does."""
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Preview:
    """Everything there is to see.

    Attributes:
        title: Model, data, template and what the loss is on.
        split: Where the rows are from.
        ledger: The counts over all rows of all splits.
        rows: Some of them, token by token.
    """

    title: str
    split: Split
    ledger: Ledger
    rows: tuple[ShownRow, ...]


def preview(config: Config, split: Split = "train", rows: int = 5) -> Preview:
    """Load tokenizer and data of a run, count, and take the first rows of a split.

    Args:
        config: The run's settings.
        split: train, eval or test.
        rows: How many rows to show.

    Raises:
        ConfigError: Tokenizer, data or template cannot be used. What the ledger finds wrong does not raise: see
            ``preview.ledger.problems()``.

    Example:
        >>> preview(compose(["model=tiny", "data=pydocs"]), rows=1).ledger.problems()
        []
    """
    tokenizer = load_run_tokenizer(config.model, config.template)
    try:
        ledger = load_splits(config.data, config.eval, config.template, tokenizer, progress).ledger
    except LedgerError as error:
        ledger = error.ledger
    encoder = Encoder(tokenizer, config.template, config.data.loss_on)
    chosen = list(islice(_of_split(config.data, split), rows))
    encoded = islice(encoder.encode(chosen, window=config.data.max_length), rows)  # a document may become many rows
    title = (
        f"model {config.model.name}, data {config.data.name}, template {config.template.name}, "
        f"loss on {config.data.loss_on}"
    )
    limit = config.data.max_length if split == "train" else None
    shown = tuple(show_row(found, tokenizer, limit, config.data) for found in encoded)
    return Preview(title, split, ledger, shown)


def _of_split(data: DataConfig, split: Split) -> Iterator[Conversation]:
    """The rows of a split in the dataset's order, each content once."""
    held = HoldOut(data)
    return (item for item in Different().of(read(data, Found())) if held.part(item.split_key) == split)


def show_row(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, limit: int | None, data: DataConfig) -> ShownRow:
    """Prepare a row for showing.

    Args:
        encoded: The row.
        tokenizer: The model's.
        limit: The longest row that is trained on; None where rows are kept whole.
        data: Says what happens to longer ones.
    """
    row = encoded.row
    handled = policy(data)
    long = limit is not None and row.length > limit and encoded.conversation.messages[0].role != TEXT
    words = {"truncate": "the rest is cut away", "split": "it becomes several rows", "drop": "it is left out"}
    note = f"longer than data.max_length={limit}: {words.get(handled, 'an error')}" if long else ""
    end = limit if long and handled == "truncate" and limit is not None else row.length
    return ShownRow(
        place=encoded.conversation.place or f"id {row.id}",
        tokens=row.length,
        loss_tokens=row.loss_tokens,
        note=note,
        stretches=tuple(_joined(_stretches(encoded, tokenizer, end))),
    )


def _joined(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Neighbours of one owner as one: a turn's markup and what is said in it."""
    before: Stretch | None = None
    for stretch in stretches:
        if before is not None and before.owner == stretch.owner and not stretch.omitted:
            before = replace(before, tokens=before.tokens + stretch.tokens)
            continue
        if before is not None:
            yield before
        before = stretch
    if before is not None:
        yield before


def _stretches(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, end: int) -> Iterator[Stretch]:
    """Span by span; of a very long row the beginning and the end."""
    ids, mask = encoded.row.input_ids, encoded.row.loss_mask
    first, last = len(ids), len(ids) + 1
    if len(ids) > MOST:
        first, last = 3 * MOST // 4, len(ids) - MOST // 4
    for span in encoded.spans:
        owner = span.role if span.role in ("system", TEXT) else f"{span.role} {span.turn + 1}"
        for begin, stop in ((span.begin, min(span.end, first)), (max(span.begin, last), span.end)):
            if begin >= stop:
                continue
            tokens = tuple(
                Token(
                    text=piece.text,
                    label=" ".join(
                        f"{i} {token_text(tokenizer, i)}" for i in ids[begin + piece.begin : begin + piece.end]
                    ),
                    learned=mask[begin + piece.begin],
                    special=piece.special,
                    cut=begin + piece.begin >= end,
                )
                for piece in cut_to_pieces(tokenizer, ids[begin:stop])
            )
            yield Stretch(owner, tokens, omitted=last - first if begin == last else 0)


def parse_split(text: str) -> Split:
    """A split by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    for split in SPLITS:
        if split == text:
            return split  # type: ignore[return-value]
    raise ConfigError(f"--split {text}: use {', '.join(SPLITS)}")
