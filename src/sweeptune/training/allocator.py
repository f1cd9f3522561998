"""How much torch's caching allocator reserves for a sequence of allocations: its rules, without a GPU.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 with default settings. Sizes are rounded up to 512 bytes. Up to
1 MiB they come from segments of 2 MiB, below 10 MiB from segments of 20 MiB, above from segments of their own, rounded
up to 2 MiB. The smallest free block that is large enough is taken and split where enough is left; neighbours that are
free again are joined. Segments go back to the device only when asked to (`Allocator.release`). For
expandable segments see `sweeptune.training.expandable`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

MIB = 2**20
UNIT = 512
SMALL = MIB
SMALL_SEGMENT, LARGE_SEGMENT, OWN_SEGMENT = 2 * MIB, 20 * MIB, 10 * MIB
SEGMENT_STEP = 2 * MIB


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of a segment, with its neighbours in it."""

    address: int
    size: int
    small: bool
    free: bool = False
    mapped: bool = True
    """False: addresses without memory, which only expandable segments have."""
    before: Block | None = None
    after: Block | None = None


class Full(Exception):
    """There is no room, not even after all that was free went back to the device."""


class Allocator:
    """Replays allocations.

    Args:
        capacity: Bytes that may be reserved; None: as many as it takes.

    Attributes:
        allocated: Bytes in use, rounded as the allocator does.
        reserved: Bytes taken from the device.
        peak_allocated: Largest ``allocated`` since `reset_peak`.
        peak_reserved: Largest ``reserved`` since `reset_peak`.

    Example:
        >>> allocator = Allocator()
        >>> block = allocator.take(3 * 2**20)
        >>> allocator.reserved // 2**20, allocator.allocated // 2**20
        (20, 3)
        >>> allocator.give(block)
        >>> allocator.release()
        >>> allocator.reserved
        0
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._end = 0  # addresses are only compared, so they never come again
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._at: dict[int, Block] = {}

    def take(self, size: int) -> Block:
        """Allocate ``size`` bytes.

        Raises:
            Full: There is no room.
        """
        size = max(UNIT, -(-size // UNIT) * UNIT)
        small = size <= SMALL
        block = self._find(size, small) or self._segment(size, small)
        if self._leaves_rest(block.size - size, small):
            self._split(block, size)
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def give(self, block: Block) -> None:
        """Free a block, which stays reserved."""
        self.allocated -= block.size
        self._join(block)

    def release(self) -> None:
        """Give segments without any block in use back to the device (``torch.cuda.empty_cache``)."""
        for block in [b for b in self._at.values() if b.before is None and b.after is None]:
            self._forget(block)
            self.reserved -= block.size

    def reset_peak(self) -> None:
        """Begin a new phase."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _find(self, size: int, small: bool) -> Block | None:
        """Take the smallest free block that is large enough."""
        free = self._free[small]
        place = bisect_left(free, (size, -1))
        if place == len(free):
            return None
        block = self._at[free[place][1]]
        self._forget(block)
        return block

    def _leaves_rest(self, left: int, small: bool) -> bool:
        """Whether so much is cut off a block that is larger than what was asked for."""
        return left >= UNIT if small else left > SMALL

    def _segment(self, size: int, small: bool) -> Block:
        length = self._room(size, small)
        block = Block(self._end, length, small)
        self._end += length
        self.reserved += length
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _room(self, size: int, small: bool) -> int:
        """Bytes of a segment for a request, for which there is room: what is free goes back first where it must."""
        length = segment_length(size, small)
        if self.capacity is not None and self.reserved + length > self.capacity:
            self.release()
            if self.reserved + length > self.capacity:
                raise Full(f"{length} bytes more than {self.reserved} of {self.capacity}")
        return length

    def _join(self, block: Block) -> Block:
        """Make one free block of a block and its free neighbours."""
        for near in (block.before, block.after):
            if near is not None and near.free and near.mapped:
                self._forget(near)
                block = self._absorb(block, near)
        self._remember(block)
        return block

    def _absorb(self, block: Block, near: Block) -> Block:
        """One block of two that stand next to each other."""
        first, second = (near, block) if near is block.before else (block, near)
        first.size += second.size
        first.after = second.after
        if first.after is not None:
            first.after.before = first
        first.mapped = block.mapped
        return first

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, block.small, before=block, after=block.after)
        if rest.after is not None:
            rest.after.before = rest
        block.size, block.after = size, rest
        self._remember(rest)

    def _remember(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address))
        self._at[block.address] = block

    def _forget(self, block: Block) -> None:
        free = self._free[block.small]
        del free[bisect_left(free, (block.size, block.address))]
        del self._at[block.address]
        block.free = False


def segment_length(size: int, small: bool) -> int:
    """Bytes of the segment that torch makes for a request of ``size`` bytes."""
    own = -(-size // SEGMENT_STEP) * SEGMENT_STEP
    return SMALL_SEGMENT if small else LARGE_SEGMENT if size < OWN_SEGMENT else own
