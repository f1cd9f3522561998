"""Packing: which samples share a row of ``max_length`` tokens, decided by lengths, settings and seed only.

``pack`` keeps samples whole: the longest first, each into the fullest row that still takes it (best-fit decreasing),
inside windows of the shuffled order. ``split`` puts the shuffled samples behind each other and cuts at every multiple
of ``max_length``; the rest at the end of an epoch is a shorter row, never lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from sweeptune.config.errors import ConfigError

WINDOW = 16_384
"""Samples that are packed together. More would fill rows no better, and the order would mix less."""


class Piece(NamedTuple):
    """Tokens ``begin`` to ``end`` of a training row."""

    row: int
    begin: int
    end: int


Pack = tuple[Piece, ...]


class Packs(Sequence[Pack]):
    """Packs in the 24 bytes a piece that they need, since a plan may have ten million.

    Args:
        packs: The pieces of each.

    Example:
        >>> packs = Packs([(Piece(4, 0, 30), Piece(1, 0, 12)), (Piece(0, 0, 44),)])
        >>> len(packs), packs[1]
        (2, (Piece(row=0, begin=0, end=44),))
    """

    __slots__ = ("_bounds", "_pieces")

    def __init__(self, packs: Iterable[Sequence[tuple[int, int, int]]]) -> None:
        found = list(packs)
        self._bounds: NDArray[np.int64] = np.cumsum([0, *map(len, found)])
        self._pieces: NDArray[np.int64] = np.array([p for pack in found for p in pack], dtype=np.int64).reshape(-1, 3)

    @property
    def pieces(self) -> NDArray[np.int64]:
        """All pieces in order: int64 [n, 3] of row, begin, end."""
        return self._pieces

    @overload
    def __getitem__(self, at: int) -> Pack: ...
    @overload
    def __getitem__(self, at: slice) -> Packs: ...
    def __getitem__(self, at: int | slice) -> Pack | Packs:
        if isinstance(at, slice):
            return Packs([self[i] for i in range(*at.indices(len(self)))])
        place = range(len(self))[at]
        return tuple(Piece(*p) for p in self._pieces[self._bounds[place] : self._bounds[place + 1]].tolist())

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packs):
            return NotImplemented
        return np.array_equal(self._bounds, other._bounds) and np.array_equal(self._pieces, other._pieces)

    def __hash__(self) -> int:
        return hash((self._bounds.tobytes(), self._pieces.tobytes()))

    def __repr__(self) -> str:
        return f"Packs({list(self)!r})"


def pack_whole(
    order: Iterable[int], lengths: Sequence[int], size: int, seed: str, window: int = WINDOW
) -> Iterator[Pack]:
    """Pack whole samples, window by window; inside a window the packs come in random order.

    Args:
        order: Row numbers in the order of an epoch.
        lengths: Tokens of every row.
        size: Tokens that fit in a pack.
        seed: Decides the order of the packs; a text.
        window: Samples that are packed together.

    Raises:
        ConfigError: A sample is longer than a pack.
    """
    waiting: list[int] = []
    number = 0
    for row in order:
        waiting.append(row)
        if len(waiting) == window:
            yield from _window(waiting, lengths, size, f"{seed}-{number}")
            waiting, number = [], number + 1
    yield from _window(waiting, lengths, size, f"{seed}-{number}")


def _window(rows: list[int], lengths: Sequence[int], size: int, seed: str) -> list[Pack]:
    bins = best_fit([lengths[row] for row in rows], size)
    Random(seed).shuffle(bins)
    # Back in the order of the epoch inside a pack: the longest sample is not always the first.
    return [tuple(Piece(rows[i], 0, lengths[rows[i]]) for i in sorted(found)) for found in bins]


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Best-fit decreasing (Johnson 1973): each item, the longest first, goes to the fullest bin that still takes it.

    Which capacities are left in any bin is a set of bits in one integer, so that the best of them is found without
    looking at the bins: the lowest bit at or above the item's length.

    Args:
        lengths: Of the items.
        size: Of a bin.

    Returns:
        The bins, as numbers of items.

    Raises:
        ConfigError: An item is longer than a bin.
    """
    bins: list[list[int]] = []
    left: list[list[int]] = [[] for _ in range(size + 1)]  # bins by what is left in them
    open_: int = 0
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        if length > size:
            raise ConfigError(
                f"data.packing=pack: a sample has {length} tokens and a row takes data.max_length={size}; set "
                "data.on_long_row=split, drop or truncate"
            )
        fits = open_ >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            chosen = left[room].pop()
            if not left[room]:
                open_ ^= 1 << room
        else:
            room, chosen = size, len(bins)
            bins.append([])
        bins[chosen].append(item)
        if not left[room - length]:
            open_ |= 1 << (room - length)
        left[room - length].append(chosen)
    return bins


def cut_equal(order: Iterable[int], lengths: Sequence[int], size: int) -> Iterator[Pack]:
    """Put samples behind each other and cut at every multiple of ``size``; the last pack may be shorter.

    Args:
        order: Row numbers in the order of an epoch.
        lengths: Tokens of every row.
        size: Tokens of a pack.
    """
    found: list[Piece] = []
    room = size
    for row in order:
        begin, length = 0, lengths[row]
        while begin < length:
            end = min(length, begin + room)
            found.append(Piece(row, begin, end))
            room -= end - begin
            begin = end
            if room == 0:
                yield tuple(found)
                found, room = [], size
    if found:
        yield tuple(found)
