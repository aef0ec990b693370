"""A model of PyTorch's CUDA caching allocator, fast enough to replay whole training steps.

It reproduces what `torch.cuda.memory_allocated` and `memory_reserved` count: rounding, one small
and one large pool per stream, best fit, the split rule, merging, segments, expandable segments,
and freeing cached segments before giving up. Source: pytorch/pytorch,
c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (2.13).

Left out: `record_stream`, private pools of CUDA graphs, garbage collection under a memory
fraction. Where the driver would place a new segment is unknown; here addresses only grow, which
settles ties between equally large free blocks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rigsize.memory.allocator_config import MIB, POWER2_INTERVALS, AllocatorConfig
from rigsize.memory.blocks import ADDRESS_BITS, Block, Pool
from rigsize.memory.driver import Driver, SegmentView
from rigsize.memory.expandable import ExpandableSegments, room
from rigsize.memory.out_of_memory import OutOfMemory

__all__ = ["AllocatorConfig", "Block", "CachingAllocator", "OutOfMemory", "SegmentView"]

MIN_BLOCK_BYTES = 512
SMALL_LIMIT_BYTES = MIB
"""Requests up to this size (inclusive) are served by the small pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_PACK_LIMIT_BYTES = 10 * MIB
"""Large requests below this size (exclusive) share segments of `large_segment_bytes`."""
LARGE_ROUNDING_BYTES = 2 * MIB
NO_STREAMS: Mapping[int, int] = MappingProxyType({})


class CachingAllocator:
    """Replays allocations and frees of one device; every figure in bytes.

    `capacity_bytes` is what the driver can give to segments (card minus context and other
    libraries); None means without limit.
    """

    def __init__(
        self, config: AllocatorConfig | None = None, capacity_bytes: int | None = None
    ) -> None:
        self.config = config or AllocatorConfig()
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.num_alloc_retries = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._driver = Driver(capacity_bytes)
        self._expandable: ExpandableSegments | None = None
        if self.config.expandable_segments:
            large = self.config.large_segment_bytes
            self._expandable = ExpandableSegments(self._driver, large)
        # Merged blocks are used again: making objects is the dearest part of a split.
        self._spare: list[Block] = []
        # Expandable segments, power-of-two rounding and a split limit leave the short path.
        self._plain = self.config == AllocatorConfig(
            large_segment_bytes=self.config.large_segment_bytes
        )

    @property
    def capacity_bytes(self) -> int | None:
        """What the driver can give to segments."""
        return self._driver.capacity_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all segments, as `torch.cuda.memory_reserved` counts them."""
        return self._driver.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The highest `reserved_bytes` so far."""
        return self._driver.peak_reserved_bytes

    def malloc(self, num_bytes: int, stream: int = 0) -> Block:
        """Hand out a block for `num_bytes`; its `size` is what counts as allocated."""
        if num_bytes == 0:
            return Block(self._pool(stream, 0), 0, 0)
        size = self._round(num_bytes)
        pool = self._pool(stream, size)
        block = self._best_fit(pool, size) or self._obtain(pool, size)
        self._split(block, size)
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Take a block back and merge it with its free neighbours; nothing goes to the driver."""
        if not block.size:
            return
        assert not block.key, "block was already freed"
        self.allocated_bytes -= block.size
        block.pool.merge(block)

    def empty_cache(self) -> None:
        """Return every wholly free segment (or page) of all streams to the driver."""
        for pool in self._pools.values():
            for block in list(pool.index.values()):
                if self._expandable is not None:
                    self._expandable.unmap(block)
                elif block.previous is None and block.next is None:
                    self._driver.release(block)

    @property
    def inactive_split_bytes(self) -> int:
        """Free parts of partly used segments: reserved, but not returnable."""
        if self.config.expandable_segments:
            return 0
        return sum(
            block.size
            for pool in self._pools.values()
            for block in pool.index.values()
            if block.previous is not None or block.next is not None
        )

    def state(self, blocks: Sequence[Block | None]) -> tuple[object, ...] | None:
        """What decides all further answers: equal twice, the same operations do the same again.

        Free blocks by size and address, and where what `blocks` holds lies; None where more decides
        (expandable segments, a split limit).
        """
        if not self._plain:
            return None
        free = {key: tuple(pool.keys) for key, pool in self._pools.items()}
        held = [(n, b.address, b.size) for n, b in enumerate(blocks) if b is not None]
        return free, held, self.reserved_bytes

    def snapshot(self) -> list[SegmentView]:
        """List the segments by address with their blocks, for tests and explanations."""
        return self._driver.snapshot()

    def run(  # noqa: C901, PLR0915  one loop without calls; the reason stands inside
        self,
        ops: Sequence[int],
        sizes: Sequence[int],
        blocks: list[Block | None],
        streams: Mapping[int, int] = NO_STREAMS,
    ) -> int:
        """Replay many operations.

        `op >= 0` allocates `sizes[op]` bytes into `blocks[op]` (None for zero bytes), `op < 0`
        frees `blocks[~op]`. `streams` names those that are not on stream 0. Returns the position of
        the operation at which allocated bytes reached their maximum, -1 if they never rose above
        the start. On `OutOfMemory` the exception's `op_index` says where, and all statistics stand
        as of that moment.
        """
        if not self._plain:
            return self._run_one_by_one(ops, sizes, blocks, streams)
        # Same rules as malloc and free, written out: calls and attribute look-ups would double
        # the time, and a plan replays thousands of steps. tests/memory/test_allocator.py holds
        # the two paths equal.
        small, large = self._pool(0, 1), self._pool(0, SMALL_LIMIT_BYTES + 1)
        small_keys, small_index = small.keys, small.index
        large_keys, large_index = large.keys, large.index
        spare, bits, small_limit = self._spare, ADDRESS_BITS, SMALL_LIMIT_BYTES
        find, insert = bisect_left, insort
        allocated = peak = self.allocated_bytes
        peak_position = -1
        for position, op in enumerate(ops):
            if op >= 0:
                size = sizes[op]
                if not size:
                    blocks[op] = None
                    continue
                size = (size + 511) & -512
                if size <= small_limit:
                    keys, index, keep = small_keys, small_index, 511
                else:
                    keys, index, keep = large_keys, large_index, small_limit
                if streams and op in streams:
                    other = self._pool(streams[op], size)
                    keys, index = other.keys, other.index
                i = find(keys, size << bits)
                if i < len(keys):
                    block = index.pop(keys.pop(i))
                else:
                    self.allocated_bytes = allocated
                    try:
                        block = self._obtain(self._pool(streams.get(op, 0), size), size)
                    except OutOfMemory as error:
                        self.peak_allocated_bytes = max(self.peak_allocated_bytes, peak)
                        error.op_index = position
                        raise
                rest_size = block.size - size
                if rest_size > keep:
                    block.size = size
                    address = block.address + size
                    rest = spare.pop() if spare else Block(block.pool, address, 0)
                    rest.size = rest_size
                    rest.address = address
                    rest.pool = block.pool
                    rest.previous = block
                    rest.next = after = block.next
                    block.next = rest
                    if after is not None:
                        after.previous = rest
                    rest.key = key = rest_size << bits | address
                    insert(keys, key)
                    index[key] = rest
                    allocated += size
                else:
                    allocated += block.size
                block.key = 0
                blocks[op] = block
                if allocated > peak:
                    peak = allocated
                    peak_position = position
            else:
                op = ~op
                taken = blocks[op]
                if taken is None:
                    continue
                block = taken
                blocks[op] = None
                size = block.size
                allocated -= size
                pool = block.pool
                keys, index = pool.keys, pool.index
                after = block.next
                if after is not None and after.key:
                    key = after.key
                    del keys[find(keys, key)]
                    del index[key]
                    size += after.size
                    spare.append(after)
                    after = after.next
                    block.next = after
                    if after is not None:
                        after.previous = block
                before = block.previous
                if before is not None and before.key:
                    key = before.key
                    del keys[find(keys, key)]
                    del index[key]
                    size += before.size
                    before.next = after
                    if after is not None:
                        after.previous = before
                    spare.append(block)
                    block = before
                block.size = size
                block.key = key = size << bits | block.address
                insert(keys, key)
                index[key] = block
        self.allocated_bytes = allocated
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, peak)
        return peak_position

    def _run_one_by_one(
        self,
        ops: Sequence[int],
        sizes: Sequence[int],
        blocks: list[Block | None],
        streams: Mapping[int, int],
    ) -> int:
        peak, peak_position = self.allocated_bytes, -1
        for position, op in enumerate(ops):
            if op < 0:
                block = blocks[~op]
                blocks[~op] = None
                if block is not None:
                    self.free(block)
                continue
            try:
                blocks[op] = self.malloc(sizes[op], streams.get(op, 0)) if sizes[op] else None
            except OutOfMemory as error:
                error.op_index = position
                raise
            if self.allocated_bytes > peak:
                peak, peak_position = self.allocated_bytes, position
        return peak_position

    def _pool(self, stream: int, size: int) -> Pool:
        key = (stream, size <= SMALL_LIMIT_BYTES)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(*key)
        return pool

    def _round(self, num_bytes: int) -> int:
        """Round a request to the size of its block (`round_size`)."""
        divisions = 0
        if self.config.roundup_power2_divisions:
            interval = min(max(num_bytes.bit_length() - 21, 0), POWER2_INTERVALS - 1)
            divisions = self.config.roundup_power2_divisions[interval]
        if divisions > 1 and num_bytes > MIN_BLOCK_BYTES * divisions:
            step = (1 << num_bytes.bit_length() - 1) // divisions
            return -(-num_bytes // step) * step
        return (num_bytes + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES

    def _segment_bytes(self, size: int) -> int:
        if size <= SMALL_LIMIT_BYTES:
            return SMALL_SEGMENT_BYTES
        if size < LARGE_PACK_LIMIT_BYTES:
            return self.config.large_segment_bytes
        return -(-size // LARGE_ROUNDING_BYTES) * LARGE_ROUNDING_BYTES

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """Take the smallest free block that serves the request (`get_free_block`)."""
        keys, index = pool.keys, pool.index
        i = bisect_left(keys, size << ADDRESS_BITS)
        if i == len(keys):
            return None
        if self.config.expandable_segments:
            # A block that can still grow is judged by what it could grow to.
            while i + 1 < len(keys) and room(index[keys[i + 1]]) < room(index[keys[i]]):
                i += 1
        block = index[keys[i]]
        limit = self.config.max_split_size_bytes
        if limit is not None:
            if size < limit <= block.size:
                return None
            if size >= limit and block.size >= size + self.config.max_non_split_rounding_bytes:
                return None
        pool.remove(block)
        return block

    def _split(self, block: Block, size: int) -> None:
        """Keep `size` bytes of the block, free the rest if the rule allows (`should_split`)."""
        rest_size = block.size - size
        limit = self.config.max_split_size_bytes
        if block.pool.is_small or self.config.expandable_segments:
            splits = rest_size >= MIN_BLOCK_BYTES
        else:
            splits = rest_size > SMALL_LIMIT_BYTES and (limit is None or size < limit)
        if splits:
            block.pool.add(block.cut(size))

    def _obtain(self, pool: Pool, size: int) -> Block:
        """Get memory from the driver, returning cached segments first if it has none left."""
        block = self._grow(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._grow(pool, size)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._grow(pool, size)
        if block is None:
            raise OutOfMemory(
                requested_bytes=size,
                segment_bytes=self._segment_bytes(size),
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
                capacity_bytes=self.capacity_bytes or 0,
            )
        return block

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """One segment (or the missing pages) holding a free block of at least `size` bytes."""
        if self._expandable is not None:
            return self._expandable.grow(pool, size)
        segment_bytes = self._segment_bytes(size)
        if not self._driver.reserve(segment_bytes):
            return None
        return self._driver.place(pool, segment_bytes)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Under a split limit, free just enough unsplittable blocks of this pool and stream."""
        limit = self.config.max_split_size_bytes
        if limit is None or self.config.expandable_segments:
            return False
        wanted = max(size, limit)
        i = bisect_left(pool.keys, wanted << ADDRESS_BITS)
        if i < len(pool.keys):
            self._driver.release(pool.index[pool.keys[i]])
            return True
        released = 0
        while pool.keys and released < wanted and pool.keys[-1] >> ADDRESS_BITS >= limit:
            released += pool.keys[-1] >> ADDRESS_BITS
            self._driver.release(pool.index[pool.keys[-1]])
        return released >= wanted
