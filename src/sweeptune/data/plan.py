"""Which rows make up which step: decided once, for the whole run, by data, seed and tokens per step only."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import TrainConfig
from sweeptune.data.store import TokenStore, hash_digests, row_digest
from sweeptune.data.tokenize import Row


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one optimiser step.

    Attributes:
        rows: Indices into the training rows.
        tokens: Real tokens in them.
        loss_tokens: Tokens that bear loss.
        epoch: Passes over the data after this step.
    """

    rows: tuple[int, ...]
    tokens: int
    loss_tokens: int
    epoch: float


def plan_steps(rows: Sequence[Row], train: TrainConfig, seed: int) -> list[Step]:
    """Plan a whole run: rows in a random order per epoch, gathered until the next would exceed tokens_per_step.

    Epochs follow each other without a break inside a step. Of ``max_steps``, ``max_tokens`` and ``epochs`` the first
    limit reached ends the plan; a step that would exceed it is left out.

    Args:
        rows: The training rows.
        train: tokens_per_step and the limits.
        seed: Decides the order.

    Raises:
        ConfigError: No limit is set, a row is longer than a step, or not even one step fits.
    """
    if train.max_steps is None and train.max_tokens is None and train.epochs is None:
        raise ConfigError("nothing ends the training: set train.max_steps, train.max_tokens or train.epochs")
    lengths = [row.length for row in rows]
    learned = [row.loss_tokens for row in rows]
    longest = max(lengths)
    if longest > train.tokens_per_step:
        raise ConfigError(
            f"train.tokens_per_step={train.tokens_per_step}: the longest row has {longest} tokens and fits in no step; "
            f"set train.tokens_per_step={longest} or data.max_length={train.tokens_per_step}"
        )
    steps: list[Step] = []
    spent = 0
    for chosen, seen in _gather(lengths, train, seed):
        tokens = sum(lengths[i] for i in chosen)
        if train.max_tokens is not None and spent + tokens > train.max_tokens:
            break
        spent += tokens
        steps.append(Step(tuple(chosen), tokens, sum(learned[i] for i in chosen), seen / len(rows)))
        if train.max_steps is not None and len(steps) == train.max_steps:
            break
    if not steps:
        raise ConfigError(
            f"train.max_tokens={train.max_tokens}: not even the first step fits, it takes {tokens} tokens; "
            f"set train.max_tokens={tokens} or train.tokens_per_step={train.max_tokens}"
        )
    return steps


def _gather(lengths: Sequence[int], train: TrainConfig, seed: int) -> Iterator[tuple[list[int], int]]:
    """The rows of each step, with the number of rows seen after it."""
    chosen: list[int] = []
    tokens = seen = 0
    for index in _order(len(lengths), train.epochs, seed):
        if tokens + lengths[index] > train.tokens_per_step:
            yield chosen, seen
            chosen, tokens = [], 0
        chosen.append(index)
        tokens += lengths[index]
        seen += 1
    if chosen:
        yield chosen, seen


def _order(count: int, epochs: float | None, seed: int) -> Iterator[int]:
    """Row numbers, one permutation after another; endless without a number of epochs, and never none at all."""
    left = max(1, round(count * epochs)) if epochs is not None else None
    epoch = 0
    while left is None or left > 0:
        permutation = list(range(count))
        # Seeded by a text, which random hashes with SHA-512: the same on every machine and Python version.
        random.Random(f"sweeptune-{seed}-{epoch}").shuffle(permutation)
        yield from permutation[:left]
        left = None if left is None else left - count
        epoch += 1


def micro_batches(rows: Sequence[Row], size: int, rank: int = 0, world: int = 1) -> list[list[Row]]:
    """Deal a step's rows to the ranks, and those of this rank to micro-batches.

    Longest first: rows of like length waste little padding, and a micro-batch that does not fit is met at once.

    Args:
        rows: The rows of a step.
        size: Rows of a micro-batch.
        rank: This rank.
        world: Number of ranks.
    """
    return _chunks(sorted(rows, key=lambda row: (-row.length, row.id))[rank::world], size)


def eval_batches(rows: Sequence[Row], size: int, rank: int = 0, world: int = 1) -> list[list[Row]]:
    """Deal held-out rows to batches, and those to the ranks: which rows share a batch depends on the data alone."""
    return _chunks(sorted(rows, key=lambda row: (-row.length, row.id)), size)[rank::world]


def _chunks(rows: list[Row], size: int) -> list[list[Row]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def hash_rows(rows: Sequence[Row]) -> str:
    """Name rows by their content: ids, tokens and masks."""
    # A store knows the digest of each row, so that gigabytes need not be read for a name.
    return rows.content_hash if isinstance(rows, TokenStore) else hash_digests(map(row_digest, rows))


def hash_plan(rows: Sequence[Row], steps: Sequence[Step]) -> str:
    """Name the order in which rows are learned, step by step."""
    digest = hashlib.sha256()
    for step in steps:
        digest.update(repr([rows[i].id for i in step.rows]).encode())
    return digest.hexdigest()[:16]
