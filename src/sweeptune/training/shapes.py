"""How large the micro-batches of a run are: from its data, or the largest that its settings allow.

A step is cut into micro-batches of rows that are not alike, longest first, and filled up to the longest. So what counts
for memory is rows times the longest of them, and the positions at which any of them bears loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeptune.config.schema import Config
from sweeptune.data import Row, Step, load_run_tokenizer, load_splits, micro_batches, plan_steps, samples
from sweeptune.data.plan import eval_batches, positions
from sweeptune.kernels.attention import special
from sweeptune.models import load_config

FLAT = ("varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention back-ends that put all samples behind each other, without padding."""
STEPS = 50
"""So many steps are looked at one by one: micro-batches of ever other sizes leave holes in the allocator's segments."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch.

    Attributes:
        rows: Rows side by side.
        length: Tokens of the longest.
        positions: At how many positions any row bears loss; with all samples behind each other, loss tokens.
        tokens: Real tokens.
        padded: Whether rows differ in length, so that a mask says where they end.
        packed: Whether rows hold several samples.
    """

    rows: int
    length: int
    positions: int
    tokens: int
    padded: bool
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Shapes:
    """What decides the memory of a run's passes.

    Attributes:
        steps: The micro-batches of each step, in order.
        eval: The largest batch of evaluation.
    """

    steps: tuple[tuple[Shape, ...], ...]
    eval: Shape

    @property
    def largest(self) -> Shape:
        """The micro-batch with most tokens, padding included."""
        return max((shape for step in self.steps for shape in step), key=lambda shape: shape.rows * shape.length)


def backend(config: Config) -> str:
    """The attention back-end on a GPU that has all of them (`sweeptune.kernels.attention.resolve` asks the device)."""
    if config.model.attention != "auto":
        return config.model.attention
    return "sdpa" if config.hardware.precision == "fp32" or special(load_config(config.model)) else "varlen"


def bounds(config: Config) -> Shapes:
    """The largest micro-batches that the settings allow, whatever the data.

    Every token is taken to bear loss. Held-out rows are never cut, so that theirs may be longer than the
    ``data.max_length`` assumed here.

    Example:
        >>> bounds(compose(["data.max_length=512", "hardware.micro_batch=8"])).steps[0][0].length
        512
    """
    length, size, budget = config.data.max_length, config.hardware.micro_batch, config.train.tokens_per_step
    packed = config.data.packing != "none"
    flat = backend(config) in FLAT

    def shape(rows: int, longest: int) -> Shape:
        tokens = min(rows * longest, budget)
        return Shape(rows, longest, tokens if flat else longest - 1, tokens, padded=rows > 1, packed=packed)

    if packed:
        whole = max(1, budget // length)
        step = [shape(min(size, whole), length)] + [shape(min(size, whole - size), length)] * (whole > size)
    else:
        # Longest first, and together no more than the budget: a later micro-batch's rows are no longer than this.
        later = min(length, budget // (size + 1))
        step = [shape(max(1, min(size, budget - length + 1)), length)] + [shape(size, later)] * (later > 1)
    held, limit = config.eval.batch_size, config.eval.batch_tokens
    tokens = held * length if limit is None else min(held * length, max(limit, length))
    # As many rows of full length as the limit has room for, or one more, which are shorter.
    counts = [count for count in (tokens // length, tokens // length + 1) if count <= held]
    rows, longest = max(((n, min(length, tokens // n)) for n in counts), key=lambda batch: batch[0] * batch[1])
    judged = Shape(rows, longest, rows * longest if flat else longest - 1, rows * longest, padded=rows > 1)
    return Shapes((tuple(step),), judged)


def of_data(config: Config) -> Shapes:
    """The micro-batches of the run's own data, which is read and tokenized, or found so in the cache.

    Raises:
        ConfigError: The data cannot be used.
    """
    tokenizer = load_run_tokenizer(config.model, config.template)
    splits = load_splits(config.data, config.eval, config.template, tokenizer)
    return planned(config, splits.train, plan_steps(splits.train, config.data, config.train, config.seed), splits.eval)


def planned(config: Config, rows: Sequence[Row], steps: Sequence[Step], held_out: Sequence[Row]) -> Shapes:
    """The micro-batches of planned steps: of the first ones, which a probe sees, and of the fullest later one."""
    size, flat = config.hardware.micro_batch, backend(config) in FLAT
    chosen = list(steps[:STEPS])
    if later := steps[STEPS:]:
        chosen.append(max(later, key=lambda step: fullest(step, size, flat)))
    made = tuple(
        tuple(_shape(part, flat) for part in micro_batches(samples(rows, step.packs), size)) for step in chosen
    )
    judged = eval_batches(held_out, config.eval.batch_size, config.eval.batch_tokens)
    square = config.model.attention == "eager"  # its scores are what needs the most

    def needs(batch: list[Row]) -> int:
        tokens = sum(row.length for row in batch) if flat else positions(batch)
        return tokens * batch[0].length if square else tokens

    return Shapes(made, _shape([(row,) for row in max(judged, key=needs)], flat))


def fullest(step: Step, size: int, flat: bool) -> int:
    """Tokens of a step's first micro-batch, padding included where there is any; no row is read."""
    lengths = np.sort([sum(piece.end - piece.begin for piece in pack) for pack in step.packs])[::-1][:size]
    return int(lengths.sum() if flat else len(lengths) * lengths[0])


def _shape(packs: Sequence[tuple[Row, ...]], flat: bool) -> Shape:
    lengths = [sum(row.length for row in pack) for pack in packs]
    learned = np.zeros(max(lengths), dtype=bool)
    for pack, length in zip(packs, lengths, strict=True):
        learned[:length] |= np.concatenate([np.asarray(row.loss_mask, dtype=bool) for row in pack])
    positions = sum(row.loss_tokens for pack in packs for row in pack) if flat else int(learned.sum())
    several = any(len(pack) > 1 for pack in packs)
    return Shape(len(packs), max(lengths), positions, sum(lengths), min(lengths) < max(lengths), several)
