"""Expandable segments: one virtual range a pool, whose parts without memory are blocks too.

Source: pytorch/pytorch, c10/cuda/CUDACachingAllocator.cpp (2.13).
"""

from __future__ import annotations

from bisect import insort

from rigsize.memory.blocks import Block, Pool
from rigsize.memory.driver import Driver

SMALL_PAGE_BYTES = 2 << 20
_RANGE_BYTES = 1 << 42


class ExpandableSegments:
    """Maps pages of the driver into the ranges and takes them away again."""

    def __init__(self, driver: Driver, large_page_bytes: int) -> None:
        self.driver = driver
        self.large_page_bytes = large_page_bytes

    def _page_bytes(self, pool: Pool) -> int:
        return SMALL_PAGE_BYTES if pool.is_small else self.large_page_bytes

    def grow(self, pool: Pool, size: int) -> Block | None:
        """Map pages behind the lowest free stretch with room (`try_allocate_expandable_block`)."""
        block: Block | None = self._candidate(pool, size)
        if block is not None and not block.mapped:
            block = self._map(block, min(block.size, size))
        while block is not None and block.size < size:
            after = block.next
            assert after is not None, "the candidate had room for the request"
            block = self._map(after, min(size - block.size, after.size))
        if block is not None:
            pool.remove(block)
        return block

    def _candidate(self, pool: Pool, size: int) -> Block:
        for block in pool.unmapped:
            before = block.previous
            start = before if before is not None and before.key else block
            if _stretch(start, size):
                return start
        page_bytes = self._page_bytes(pool)
        range_bytes = _RANGE_BYTES // page_bytes * page_bytes
        block = self.driver.place(pool, range_bytes, page_bytes)
        block.mapped = False
        pool.unmapped.append(block)
        return block

    def _map(self, block: Block, num_bytes: int) -> Block | None:
        """Back the start of an unmapped block with pages; the free block it became, or None."""
        pool, page_bytes = block.pool, self._page_bytes(block.pool)
        mapped_bytes = -(-num_bytes // page_bytes) * page_bytes
        if not self.driver.reserve(mapped_bytes):
            return None
        place = pool.unmapped.index(block)
        if mapped_bytes < block.size:
            rest = block.cut(mapped_bytes)
            rest.mapped = False
            pool.unmapped[place] = rest
        else:
            del pool.unmapped[place]
        block.mapped = True
        return pool.merge(block)

    def unmap(self, block: Block) -> None:
        """Take the whole pages inside a free block away (`unmap_block`)."""
        pool, page_bytes = block.pool, self._page_bytes(block.pool)
        start = -(-block.address // page_bytes) * page_bytes
        end = (block.address + block.size) // page_bytes * page_bytes
        if end <= start:
            return
        pool.remove(block)
        if start > block.address:
            before, block = block, block.cut(start - block.address)
            pool.add(before)
        if block.size > end - start:
            pool.add(block.cut(end - start))
        block.mapped = False
        self.driver.reserved_bytes -= block.size
        self._join_unmapped(block)

    def _join_unmapped(self, block: Block) -> None:
        pool, after, before = block.pool, block.next, block.previous
        if after is not None and not after.mapped:
            pool.unmapped.remove(after)
            block.absorb_next()
        if before is not None and not before.mapped:
            before.absorb_next()
        else:
            insort(pool.unmapped, block, key=_address)


def _address(block: Block) -> int:
    return block.address


def room(block: Block) -> int:
    """What a free block could grow to."""
    after = block.next
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _stretch(block: Block, size: int) -> bool:
    """Whether free and unmapped blocks from here on hold `size` bytes."""
    found = 0
    current: Block | None = block
    while found < size and current is not None and (current.key or not current.mapped):
        found += current.size
        current = current.next
    return found >= size
