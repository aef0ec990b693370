"""The driver's side of device memory: what is reserved, and where the next segment goes."""

from __future__ import annotations

from typing import NamedTuple

from rigsize.memory.blocks import Block, Pool

FIRST_ADDRESS = 2 << 20


class SegmentView(NamedTuple):
    """One segment as `CachingAllocator.snapshot` lists it; sizes and addresses in bytes."""

    address: int
    size: int
    stream: int
    is_small: bool
    blocks: tuple[tuple[int, int, str], ...]
    """(address, size, 'allocated' | 'free' | 'unmapped') in address order."""


class Driver:
    """Hands out address ranges and counts the memory behind them, up to a capacity."""

    __slots__ = (
        "_next_address",
        "capacity_bytes",
        "heads",
        "peak_reserved_bytes",
        "reserved_bytes",
    )

    def __init__(self, capacity_bytes: int | None) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.heads: dict[int, Block] = {}
        """The first block of every segment or expandable range by address."""
        self._next_address = FIRST_ADDRESS

    def reserve(self, num_bytes: int) -> bool:
        """Whether the capacity still had so many bytes; they are taken then."""
        reserved = self.reserved_bytes + num_bytes
        if self.capacity_bytes is not None and reserved > self.capacity_bytes:
            return False
        self.reserved_bytes = reserved
        if reserved > self.peak_reserved_bytes:
            self.peak_reserved_bytes = reserved
        return True

    def place(self, pool: Pool, num_bytes: int, alignment: int = 1) -> Block:
        """A new range as one block; addresses only grow."""
        address = -(-self._next_address // alignment) * alignment
        block = Block(pool, address, num_bytes)
        self._next_address = address + num_bytes
        self.heads[address] = block
        return block

    def release(self, block: Block) -> None:
        """Take a wholly free segment back (`release_block`)."""
        block.pool.remove(block)
        del self.heads[block.address]
        self.reserved_bytes -= block.size

    def snapshot(self) -> list[SegmentView]:
        """The segments by address with their blocks."""
        return [_view(head) for _, head in sorted(self.heads.items())]


def _view(head: Block) -> SegmentView:
    blocks = []
    block: Block | None = head
    while block is not None:
        state = "free" if block.key else "allocated" if block.mapped else "unmapped"
        blocks.append((block.address, block.size, state))
        block = block.next
    mapped = sum(size for _, size, state in blocks if state != "unmapped")
    pool = head.pool
    return SegmentView(head.address, mapped, pool.stream, pool.is_small, tuple(blocks))
