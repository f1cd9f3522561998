"""Which rows make up which step: decided once, for the whole run, by data, packing, seed and tokens per step only."""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig, TrainConfig
from sweeptune.data.pack import Pack, Packs, Piece, cut_equal, pack_whole
from sweeptune.data.store import TokenStore, hash_digests, row_digest
from sweeptune.data.tokenize import Row

log = logging.getLogger("sweeptune")


@dataclass(frozen=True, slots=True)
class Step:
    """The packs of one optimiser step; without packing every pack is one whole row.

    Attributes:
        packs: Each a tuple of `Piece`: (index into the training rows, first token, behind the last).
        tokens: Real tokens in them.
        loss_tokens: Tokens that bear loss; the first of a piece never does.
        epoch: Passes over the data after this step.
    """

    packs: Packs
    tokens: int
    loss_tokens: int
    epoch: float

    @property
    def rows(self) -> tuple[int, ...]:
        """The row of every piece, in order."""
        return tuple(self.packs.pieces[:, 0].tolist())


def plan_steps(rows: Sequence[Row], data: DataConfig, train: TrainConfig, seed: int) -> list[Step]:
    """Plan a whole run: packs in a random order per epoch, gathered until the next would exceed tokens_per_step.

    Epochs follow each other without a break inside a step, but no pack holds samples of two. Of ``max_steps``,
    ``max_tokens`` and ``epochs`` the first limit reached ends the plan; a step that would exceed it is left out. So are
    packs of ``split`` without any loss token, and the log says how many.

    Args:
        rows: The training rows.
        data: How samples share rows, and how long these are.
        train: tokens_per_step and the limits.
        seed: Decides the order.

    Raises:
        ConfigError: No limit is set, a row is longer than a step, or not even one step fits.
    """
    if train.max_steps is None and train.max_tokens is None and train.epochs is None:
        raise ConfigError("nothing ends the training: set train.max_steps, train.max_tokens or train.epochs")
    lengths = _column(rows, "lengths", lambda row: row.length)
    learned = _column(rows, "loss_counts", lambda row: row.loss_tokens)
    longest = max(lengths) if data.packing == "none" else data.max_length
    if longest > train.tokens_per_step:
        raise ConfigError(
            f"train.tokens_per_step={train.tokens_per_step}: the longest row has {longest} tokens and fits in no step; "
            f"set train.tokens_per_step={longest} or data.max_length={train.tokens_per_step}"
        )

    def loss_tokens(piece: Piece) -> int:
        whole = piece.begin == 0 and piece.end == lengths[piece.row]
        return learned[piece.row] if whole else cut(rows[piece.row], piece.begin, piece.end).loss_tokens

    steps: list[Step] = []
    spent = 0
    for chosen, seen in _gather(_packs(lengths, loss_tokens, data, train, seed), lengths, train.tokens_per_step):
        tokens = sum(piece.end - piece.begin for pack in chosen for piece in pack)
        if train.max_tokens is not None and spent + tokens > train.max_tokens:
            break
        spent += tokens
        loss = sum(loss_tokens(piece) for pack in chosen for piece in pack)
        steps.append(Step(Packs(chosen), tokens, loss, seen / len(rows)))
        if train.max_steps is not None and len(steps) == train.max_steps:
            break
    if not steps:
        raise ConfigError(
            f"train.max_tokens={train.max_tokens}: not even the first step fits, it takes {tokens} tokens; "
            f"set train.max_tokens={tokens} or train.tokens_per_step={train.max_tokens}"
        )
    return steps


def _column(rows: Sequence[Row], name: str, value: Callable[[Row], int]) -> list[int]:
    """A number of every row: from the store's own column where it has one, without reading the rows."""
    stored = getattr(rows, name, None)
    return [value(row) for row in rows] if stored is None else list(map(int, stored))


def _packs(
    lengths: Sequence[int], loss_tokens: Callable[[Piece], int], data: DataConfig, train: TrainConfig, seed: int
) -> Iterator[Pack]:
    for epoch, order in enumerate(_epochs(len(lengths), train.epochs, seed)):
        if data.packing == "pack":
            yield from pack_whole(order, lengths, data.max_length, f"sweeptune-packs-{seed}-{epoch}")
        elif data.packing == "split":
            # A pack out of the middle of a long prompt teaches nothing, and a step of only such would divide by zero.
            found = list(cut_equal(order, lengths, data.max_length))
            taught = [pack for pack in found if any(loss_tokens(piece) for piece in pack)]
            if not taught:
                raise ConfigError("data.packing=split: no row bears a loss token; is data.loss_on what was meant?")
            if len(taught) < len(found):
                empty = len(found) - len(taught)
                log.info("epoch %d: %d of %d rows bear no loss and are left out", epoch + 1, empty, len(found))
            yield from taught
        else:
            yield from ((Piece(row, 0, lengths[row]),) for row in order)


def _gather(packs: Iterator[Pack], lengths: Sequence[int], limit: int) -> Iterator[tuple[list[Pack], int]]:
    """The packs of each step, with the number of rows that are through after it."""
    chosen: list[Pack] = []
    tokens = seen = 0
    for pack in packs:
        size = sum(piece.end - piece.begin for piece in pack)
        if tokens + size > limit:
            yield chosen, seen
            chosen, tokens = [], 0
        chosen.append(pack)
        tokens += size
        seen += sum(piece.end == lengths[piece.row] for piece in pack)
    if chosen:
        yield chosen, seen


def _epochs(count: int, epochs: float | None, seed: int) -> Iterator[list[int]]:
    """Row numbers, a permutation for every epoch; endless without a number of epochs, and never none at all."""
    left = max(1, round(count * epochs)) if epochs is not None else None
    epoch = 0
    while left is None or left > 0:
        permutation = list(range(count))
        # Seeded by a text, which random hashes with SHA-512: the same on every machine and Python version.
        random.Random(f"sweeptune-{seed}-{epoch}").shuffle(permutation)
        yield permutation[:left]
        left = None if left is None else left - count
        epoch += 1


def cut(row: Row, begin: int, end: int) -> Row:
    """A piece of a row; a piece that begins inside it bears no loss on its first token, which nothing predicts."""
    if begin == 0 and end == row.length:
        return row
    mask = [False, *row.loss_mask[begin + 1 : end]]
    return replace(row, input_ids=row.input_ids[begin:end], loss_mask=mask, loss_bytes=0)


def samples(rows: Sequence[Row], packs: Sequence[Pack]) -> list[tuple[Row, ...]]:
    """Read packs: the samples of each, cut as it says."""
    return [tuple(cut(rows[piece.row], piece.begin, piece.end) for piece in pack) for pack in packs]


def micro_batches(
    packs: Sequence[tuple[Row, ...]], size: int, rank: int = 0, world: int = 1
) -> list[list[tuple[Row, ...]]]:
    """Deal a step's packs to the ranks, and those of this rank to micro-batches.

    Longest first: packs of like length waste little padding, and a micro-batch that does not fit is met at once.

    Args:
        packs: The packs of a step, each with its samples.
        size: Packs of a micro-batch.
        rank: This rank.
        world: Number of ranks.
    """
    own = sorted(packs, key=lambda pack: (-sum(row.length for row in pack), [row.id for row in pack]))[rank::world]
    return [own[at : at + size] for at in range(0, len(own), size)]


def eval_batches(
    rows: Sequence[Row], size: int, tokens: int | None = None, rank: int = 0, world: int = 1
) -> list[list[Row]]:
    """Deal held-out rows to batches, and those to the ranks: which rows share a batch depends on the data alone.

    Args:
        rows: In any order.
        size: Rows of a batch at most.
        tokens: Its positions at most, padding included; a longer row is alone. None: any number.
        rank: This rank.
        world: Number of ranks.
    """
    ordered = sorted(rows, key=lambda row: (-row.length, row.id))
    return [ordered[part] for part in _dealt([row.length for row in ordered], size, tokens)][rank::world]


def positions(batch: Sequence[Row]) -> int:
    """Of a batch whose longest row comes first, padding included."""
    return len(batch) * batch[0].length


def _dealt(lengths: Sequence[int], size: int, tokens: int | None) -> list[slice]:
    """Where batches begin and end in rows of falling length."""
    found, at = [], 0
    while at < len(lengths):
        count = size if tokens is None else min(size, max(1, tokens // lengths[at]))
        found.append(slice(at, at + count))
        at += count
    return found


def largest_batches(rows: Sequence[Row], count: int | None, size: int, tokens: int | None = None) -> Sequence[Row]:
    """The rows of the batches (`eval_batches`) that need the most memory, in their own order.

    Those are the batches with most positions, and the one of the longest row, whose attention may need more.

    Args:
        rows: In any order.
        count: As many batches as would hold so many rows if all were full, and that of the longest; None is all rows.
        size: Rows of a batch at most.
        tokens: Its positions at most.
    """
    if count is None:
        return rows
    lengths = _column(rows, "lengths", lambda row: row.length)
    ordered = sorted(range(len(rows)), key=lambda at: -lengths[at])
    batches = [ordered[part] for part in _dealt([lengths[at] for at in ordered], size, tokens)]
    chosen = sorted(batches, key=lambda batch: -len(batch) * lengths[batch[0]])[: math.ceil(count / size)]
    chosen += [batch for batch in batches[:1] if batch not in chosen]
    return [rows[at] for at in sorted(chain(*chosen))]


def hash_rows(rows: Sequence[Row]) -> str:
    """Name rows by their content: ids, tokens and masks."""
    # A store knows the digest of each row, so that gigabytes need not be read for a name.
    return rows.content_hash if isinstance(rows, TokenStore) else hash_digests(map(row_digest, rows))


def hash_plan(rows: Sequence[Row], steps: Sequence[Step]) -> str:
    """Name the order in which rows are learned, step by step, and which share a row; one whole row a pack is its id."""
    # A store has ids and lengths as columns, so that no token is read.
    stored = getattr(rows, "ids", None)
    ids = [row.id for row in rows] if stored is None else [name.decode() for name in stored.tolist()]
    lengths = _column(rows, "lengths", lambda row: row.length)

    def name(piece: Piece) -> str | tuple[str, int, int]:
        whole = piece.begin == 0 and piece.end == lengths[piece.row]
        return ids[piece.row] if whole else (ids[piece.row], piece.begin, piece.end)

    digest = hashlib.sha256()
    for step in steps:
        named = [[name(piece) for piece in pack] for pack in step.packs]
        alone = all(len(pack) == 1 for pack in named)
        digest.update(repr([pack[0] for pack in named] if alone else named).encode())
    return digest.hexdigest()[:16]
