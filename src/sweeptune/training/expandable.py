"""How much torch's caching allocator reserves with ``expandable_segments:True``: its rules, without a GPU.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (find_expandable_block, map_block, unmap_block,
try_allocate_expandable_block, get_free_block, should_split). Each pool, of blocks up to 1 MiB and of larger ones, has
one range of addresses that is larger than the device. Pages of 2 MiB and 20 MiB are mapped where a request finds no
free block that is large enough: at the lowest gap, together with the free block before it. All neighbours that are free
again are joined, whatever they were mapped for. Pages without any byte in use go back when asked to (`release`).
"""

from __future__ import annotations

from bisect import bisect_left, insort

from sweeptune.training.allocator import MIB, UNIT, Allocator, Block

PAGE = {True: 2 * MIB, False: 20 * MIB}
ADDRESSES = 2**50
"""More than any device has, and a multiple of neither page: it never runs out."""


class Expandable(Allocator):
    """Replays allocations as `Allocator`, with expandable segments.

    Example:
        >>> allocator = Expandable()
        >>> for size in (100, 104, 108):  # each finds the room of the one before it, and a few pages more
        ...     allocator.give(allocator.take(size * 2**20))
        >>> allocator.reserved // 2**20
        120
    """

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self._unmapped: dict[bool, list[int]] = {True: [], False: []}
        for small, base in ((True, 0), (False, ADDRESSES * PAGE[False])):
            self._leave(Block(base, ADDRESSES * PAGE[small], small))

    def release(self) -> None:
        """Give pages without any byte in use back to the device."""
        for free in self._free.values():
            for _, address in list(free):
                self._unmap(self._at[address])

    def _find(self, size: int, small: bool) -> Block | None:
        """The smallest block that is large enough; one that could grow counts as what it could grow to."""
        free = self._free[small]
        place = bisect_left(free, (size, -1))
        if place == len(free):
            return None
        found = self._at[free[place][1]]
        for _, address in free[place + 1 :]:
            other = self._at[address]
            if self._reach(other) >= self._reach(found):
                break
            found = other
        self._forget(found)
        return found

    def _reach(self, block: Block) -> int:
        after = block.after
        return block.size + (after.size if after is not None and not after.mapped else 0)

    def _leaves_rest(self, left: int, small: bool) -> bool:
        return left >= UNIT

    def _segment(self, size: int, small: bool) -> Block:
        """Map as many pages as are missing.

        The limit is held against what a fixed segment would be, as torch does under a memory fraction.
        """
        self._room(size, small)
        block = self._lowest(size, small)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            assert block.after is not None and not block.after.mapped
            block = self._map(block.after, min(size - block.size, block.after.size))
        self._forget(block)
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _lowest(self, size: int, small: bool) -> Block:
        """Where the first run of free and unmapped blocks begins that is long enough."""
        for address in self._unmapped[small]:
            begin = self._at[address]
            if begin.before is not None and begin.before.free:
                begin = begin.before
            room, block = 0, begin
            while room < size and block.free:
                room += block.size
                if block.after is None:
                    break
                block = block.after
            if room >= size:
                return begin
        raise AssertionError("the last unmapped block is larger than any request")

    def _map(self, block: Block, size: int) -> Block:
        """Map pages at the beginning of an unmapped block, for ``size`` bytes, and join them with free neighbours."""
        page = PAGE[block.small]
        mapped = min(block.size, -(-size // page) * page)
        self._unmapped[block.small].remove(block.address)
        del self._at[block.address]
        if mapped < block.size:
            rest = Block(block.address + mapped, block.size - mapped, block.small, before=block, after=block.after)
            if rest.after is not None:
                rest.after.before = rest
            block.size, block.after = mapped, rest
            self._leave(rest)
        block.mapped = True
        self.reserved += mapped
        return self._join(block)

    def _unmap(self, block: Block) -> None:
        """Give the whole pages inside a free block back; what stands at its ends on pages in use stays free."""
        page = PAGE[block.small]
        begin, end = -(-block.address // page) * page, (block.address + block.size) // page * page
        if begin >= end:
            return
        self._forget(block)
        if end < block.address + block.size:
            self._split(block, end - block.address)
        if begin > block.address:
            gap = Block(begin, end - begin, block.small, before=block, after=block.after)
            if gap.after is not None:
                gap.after.before = gap
            block.size, block.after = begin - block.address, gap
            self._remember(block)
            block = gap
        self.reserved -= block.size
        for near in (block.before, block.after):
            if near is not None and not near.mapped:
                self._unmapped[near.small].remove(near.address)
                del self._at[near.address]
                block = self._absorb(block, near)
        self._leave(block)

    def _leave(self, block: Block) -> None:
        """Note an unmapped block."""
        block.mapped, block.free = False, True
        insort(self._unmapped[block.small], block.address)
        self._at[block.address] = block
