"""Expandable segments: torch's rules, and that the order of sizes costs nearly nothing."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from sweeptune.training.allocator import MIB, Allocator, Full
from sweeptune.training.expandable import PAGE, Expandable


def test_pages_are_mapped_as_they_are_missing() -> None:
    allocator = Expandable()
    allocator.take(1)
    assert (allocator.allocated, allocator.reserved) == (512, 2 * MIB)
    allocator.take(3 * MIB)
    assert allocator.reserved == (2 + 20) * MIB
    allocator.take(18 * MIB)  # 17 of it are there
    assert allocator.reserved == (2 + 40) * MIB
    allocator.take(MIB + 512)  # fits into what is left, of which any rest is cut off
    assert allocator.reserved == (2 + 40) * MIB
    assert allocator.allocated == 512 + 22 * MIB + 512


def test_freed_neighbours_are_one_block_whatever_they_were_mapped_for() -> None:
    allocator = Expandable()
    blocks = [allocator.take(size * MIB) for size in (11, 15, 33, 1)]
    for block in blocks:
        allocator.give(block)
    assert (allocator.allocated, allocator.reserved) == (0, (60 + 2) * MIB)
    allocator.take(60 * MIB)
    assert allocator.reserved == 62 * MIB


def test_pages_between_used_blocks_are_given_back_and_mapped_again() -> None:
    allocator = Expandable()
    blocks = [allocator.take(size * MIB) for size in (30, 50, 30)]  # 0 to 30, 80, 110; of pages of 20
    assert allocator.reserved == 120 * MIB
    allocator.give(blocks[1])
    allocator.release()
    assert allocator.reserved == (120 - 40 - 0) * MIB  # pages 40 to 80; 30 to 40 shares a page; so does 110 to 120
    gap = allocator.take(45 * MIB)  # the free 10 before the gap are part of it
    assert (gap.address - blocks[0].address, allocator.reserved) == (30 * MIB, 120 * MIB)
    allocator.give(gap)
    allocator.give(blocks[0])
    allocator.give(blocks[2])
    allocator.release()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def test_a_block_that_could_grow_is_taken_last() -> None:
    allocator = Expandable()
    first = allocator.take(30 * MIB)
    allocator.take(2 * MIB)  # 32 to 40 are the end, which can grow
    allocator.give(first)
    small = allocator.take(5 * MIB)
    assert small.address == first.address, "8 MiB at the end are the better fit, and could grow"


def test_near_its_capacity_it_gives_pages_back_before_it_gives_up() -> None:
    allocator = Expandable(capacity=100 * MIB)
    blocks = [allocator.take(512 * 1024) for _ in range(80)]
    assert allocator.reserved == 40 * MIB
    for block in blocks:
        allocator.give(block)
    allocator.take(90 * MIB)
    assert allocator.reserved == 100 * MIB
    with pytest.raises(Full):
        allocator.take(20 * MIB)


def test_sizes_in_any_order_leave_no_holes() -> None:
    sizes = [100 + 4 * number for number in range(20)]
    for seed in range(4):
        random.Random(seed).shuffle(sizes)
        found = []
        for allocator in (Expandable(), Allocator()):
            for size in sizes:
                blocks = [allocator.take(part * size * MIB // 4) for part in (1, 2, 1)]
                for block in blocks:
                    allocator.give(block)
            found.append(allocator.peak_reserved / allocator.peak_allocated)
        assert found[0] < 1.12, found
        assert found[1] > 1.3, found


def test_the_books_are_kept_under_random_requests() -> None:
    draw = random.Random(0)
    allocator, live = Expandable(), {}
    for number in range(3000):
        if live and (draw.random() < 0.5 or len(live) > 60):
            allocator.give(live.pop(draw.choice(list(live))))
        else:
            live[number] = allocator.take(int(2 ** draw.uniform(5, 27)))
        if number % 200 == 0:
            allocator.release()
        assert allocator.allocated == sum(block.size for block in live.values()) <= allocator.reserved
        spans = sorted((block.address, block.size) for block in live.values())
        assert all(a + size <= b for (a, size), (b, _) in pairwise(spans))
        mapped = {True: 0, False: 0}
        for block in [*live.values(), *(b for b in allocator._at.values() if b.mapped)]:
            mapped[block.small] += block.size
        assert sum(mapped.values()) == allocator.reserved
        assert all(size % PAGE[small] == 0 for small, size in mapped.items())
