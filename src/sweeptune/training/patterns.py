"""A traced pass as a pattern: for any size of micro-batch and any number of layers.

The same code runs for every micro-batch, so that two of different sizes allocate the same blocks in the same order, and
each block's size is a multiple of one of a few figures (rows times tokens, rows times positions with logits, ...). Two
traces tell which. Layers in the middle are alike, too: a model of four of them is traced, and its third and second one
stand for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sweeptune.training.shapes import Shape
from sweeptune.training.trace import Section, Segment

DEPTH = 4
"""Layers of a traced model: the first, two in the middle, the last."""
FIRST, SECOND, THIRD, LAST = range(DEPTH)

T = TypeVar("T")


class NotAlike(Exception):
    """Traces or layers differ where they should not: trace the whole model."""


@dataclass(frozen=True)
class Split:
    """How loss tokens are dealt to chunks of logits (`sweeptune.kernels.head`).

    Of any number of chunks the first two are traced: each later one finds room where the one before it was.

    Attributes:
        rows: Loss tokens of a chunk; None in a trace: two thirds of them, so that there are two chunks.
        flat: Whether positions are loss tokens; else those of one row.
    """

    rows: int | None
    flat: bool

    def places(self, shape: Shape) -> int:
        """Loss tokens of a micro-batch; where rows stand side by side, all that there can be."""
        return shape.positions if self.flat else shape.rows * shape.positions

    def chunk(self, shape: Shape) -> int:
        """Rows of a chunk."""
        return self.rows or 2 * self.places(shape) // 3

    def chunks(self, shape: Shape) -> tuple[int, int]:
        """Loss tokens of the first two chunks."""
        places, rows = self.places(shape), self.chunk(shape)
        return min(places, rows), min(max(0, places - rows), rows)


@dataclass(frozen=True)
class Pattern:
    """Allocations of a pass.

    Attributes:
        events: As in `Segment`.
        tags: What each block holds.
        figure: Index of the figure (`figures`) that each block's size is a multiple of.
        bytes_: Its size where the figure is ``per``.
        per: See ``bytes_``.
        split: How loss tokens are dealt to chunks of logits; None where all logits are made at once.
    """

    events: list[int]
    tags: list[str]
    figure: NDArray[np.int64]
    bytes_: NDArray[np.int64]
    per: NDArray[np.int64]
    split: Split | None = None

    def sizes(self, shape: Shape) -> list[int]:
        """Bytes of every block for a micro-batch."""
        values = np.array(figures(shape, self.split), dtype=np.int64)[self.figure]
        whole, rest = np.divmod(self.bytes_, self.per)
        found: list[int] = (whole * values + rest * values // self.per).tolist()
        return found


def figures(shape: Shape, split: Split | None) -> tuple[int, ...]:
    """What sizes of blocks are multiples of; the first, for blocks that are always alike, is 1."""
    b, t, k, n = shape.rows, shape.length, shape.positions, shape.tokens
    eights = -(-t // 8) * 8
    plain = (1, b * t, b * k, n, k, t, b, b * t * eights, b * t * t, t * t, t * eights, b * (t - 1), n - 1, b + 1)
    return plain if split is None else (*plain, *split.chunks(shape))


def pattern(
    small: tuple[Shape, Segment], large: tuple[Shape, Segment], layers: int | None, split: Split | None = None
) -> Pattern:
    """Make a pattern of two traces.

    Args:
        small: A micro-batch and its trace.
        large: Another one, of other rows, length, positions and tokens.
        layers: Layers that the pattern is for, of which `DEPTH` were traced; None: all were.
        split: How loss tokens will be dealt to chunks of logits.

    Raises:
        NotAlike: The traces differ in more than sizes, or the middle layers do.
    """
    (shape, segment), (other, check) = small, large
    if segment.events != check.events:
        raise NotAlike("two sizes of micro-batch allocate different blocks")
    traced = None if split is None else replace(split, rows=None)
    here, there = figures(shape, traced), figures(other, traced)
    laws = [law(*sizes, here, there) for sizes in zip(segment.sizes, check.sizes, strict=True)]
    figure, bytes_, per = np.array(laws, dtype=np.int64).T
    events, source = segment.events, np.arange(len(segment.sizes))
    if layers is not None and layers > DEPTH:
        events, source = unroll(segment, layers)
    tags = [segment.tags[number] for number in source]
    return Pattern(events, tags, figure[source], bytes_[source], per[source], split)


def law(size: int, other: int, here: Sequence[int], there: Sequence[int]) -> tuple[int, int, int]:
    """Which figure two sizes of a block are a multiple of, and a size with its figure."""
    for index, (a, b) in enumerate(zip(here, there, strict=True)):
        if size * b == other * a:
            return index, size, a
    # Rounded up in some way: rows times tokens is the nearest.
    return 1, other, there[1]


def instances(section: Section, layers: int) -> range:
    """Which layers of the whole model a traced layer stands for; going backward the second stands for the middle."""
    assert section is not None
    direction, layer = section
    middle = THIRD if direction == "forward" else SECOND
    if layer in (FIRST, LAST):
        return range(layers - 1, layers) if layer == LAST else range(1)
    if layer == middle:
        return range(2, layers - 1) if direction == "forward" else range(1, layers - 2)
    return range(1, 2) if layer == SECOND else range(layers - 2, layers - 1)


def unroll(segment: Segment, layers: int) -> tuple[list[int], NDArray[np.int64]]:
    """Repeat the middle layer.

    Returns:
        The events of the whole model, and for each of its blocks the traced block that it is a copy of.

    Raises:
        NotAlike: The middle layers do not allocate the same.
    """
    parts = list(sections(segment))
    check_alike(segment, parts)
    births: dict[int, tuple[Section, int]] = {}
    for section, part in parts:
        for index, block in enumerate(event for event in part if event > 0):
            births[block] = section, index
    events: list[int] = []
    source = [0]
    copies: dict[tuple[str, int, int], int] = {}  # direction, layer, place among the layer's blocks -> new number
    plain: dict[int, int] = {}
    for section, part in parts:
        every: range | list[None] = [None] if section is None else instances(section, layers)
        if section is not None and section[0] == "backward":
            every = range(every.stop - 1, every.start - 1, -1)  # type: ignore[union-attr]
        for layer in every:
            for event in part:
                block = abs(event)
                born, index = births[block]
                if event > 0:
                    source.append(block)
                    events.append(len(source) - 1)
                    if section is None:
                        plain[block] = len(source) - 1
                    else:
                        copies[section[0], layer, index] = len(source) - 1  # type: ignore[index]
                elif born is None:
                    events.append(-plain[block])
                else:
                    for of in (
                        [layer + born[1] - section[1]] if section and layer is not None else instances(born, layers)
                    ):
                        if (born[0], of, index) not in copies:
                            raise NotAlike(f"a block of layer {of} is freed before there is one")
                        events.append(-copies[born[0], of, index])
    return events, np.array(source)


def sections(segment: Segment) -> Iterator[tuple[Section, list[int]]]:
    """A segment cut where sections begin."""
    marks = [(0, None), *segment.marks, (len(segment.events), None)]
    for (begin, section), (end, _) in pairwise(marks):
        yield section, segment.events[begin:end]


def check_alike(segment: Segment, parts: Sequence[tuple[Section, list[int]]]) -> None:
    """See that both middle layers allocate the same blocks.

    Raises:
        NotAlike: They do not.
    """
    found = {section: [segment.sizes[e] for e in events if e > 0] for section, events in parts if section is not None}
    for direction in ("forward", "backward"):
        if found.get((direction, SECOND)) != found.get((direction, THIRD)):
            raise NotAlike(f"the layers differ, {direction}")


def deepen(items: Sequence[tuple[int | None, T]], layers: int) -> list[T]:
    """Repeat what belongs to the third of `DEPTH` layers, so that there are ``layers`` of them.

    Example:
        >>> deepen([(None, "embedding"), (0, "a"), (1, "b"), (2, "c"), (3, "d")], 6)
        ['embedding', 'a', 'b', 'c', 'c', 'c', 'd']
    """
    middle = [item for layer, item in items if layer == THIRD]
    found: list[T] = []
    for place, (layer, item) in enumerate(items):
        found.append(item)
        if layer == THIRD and all(later != THIRD for later, _ in items[place + 1 :]):
            found += middle * (layers - DEPTH)
    return found
