"""Blocks of device memory and the pools that keep the free ones."""

from __future__ import annotations

from bisect import bisect_left, insort

# A free block is known by one integer, its size above its address, so that the order of the
# integers is best fit with the lowest address first and bisect compares no tuples.
ADDRESS_BITS = 48


class Block:
    """A piece of a segment; `size` is what the statistics count while it is handed out."""

    __slots__ = ("address", "key", "mapped", "next", "pool", "previous", "size")

    address: int
    size: int
    key: int
    """Position in the free list; 0 while handed out or unmapped."""
    mapped: bool
    previous: Block | None
    next: Block | None
    pool: Pool

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.key = 0
        self.mapped = True
        self.previous = None
        self.next = None

    def cut(self, size: int) -> Block:
        """Cut after `size` bytes; the lower part stays this object, the rest is in no list."""
        rest = Block(self.pool, self.address + size, self.size - size)
        rest.previous, rest.next = self, self.next
        if self.next is not None:
            self.next.previous = rest
        self.next = rest
        self.size = size
        return rest

    def absorb_next(self) -> None:
        """Swallow the upper neighbour, which is in no list."""
        after = self.next
        assert after is not None
        self.size += after.size
        self.next = after.next
        if after.next is not None:
            after.next.previous = self


class Pool:
    """The free blocks of one stream, small or large."""

    __slots__ = ("index", "is_small", "keys", "stream", "unmapped")

    def __init__(self, stream: int, is_small: bool) -> None:
        self.stream = stream
        self.is_small = is_small
        self.keys: list[int] = []
        """Sorted; see `ADDRESS_BITS`."""
        self.index: dict[int, Block] = {}
        self.unmapped: list[Block] = []
        """Parts of expandable ranges without memory, by address."""

    def add(self, block: Block) -> None:
        """Put a block into the free list as it is."""
        key = block.size << ADDRESS_BITS | block.address
        block.key = key
        insort(self.keys, key)
        self.index[key] = block

    def remove(self, block: Block) -> None:
        """Take a block out of the free list."""
        del self.keys[bisect_left(self.keys, block.key)]
        del self.index[block.key]
        block.key = 0

    def merge(self, block: Block) -> Block:
        """Put a block into the free list, joined with its free neighbours."""
        after, before = block.next, block.previous
        if after is not None and after.key:
            self.remove(after)
            block.absorb_next()
        if before is not None and before.key:
            self.remove(before)
            before.absorb_next()
            block = before
        self.add(block)
        return block
