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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MIB = 1 << 20
MIN_BLOCK_BYTES = 512
SMALL_LIMIT_BYTES = MIB
"""Requests up to this size (inclusive) are served by the small pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_PACK_LIMIT_BYTES = 10 * MIB
"""Large requests below this size (exclusive) share segments of `large_segment_bytes`."""
LARGE_ROUNDING_BYTES = 2 * MIB
POWER2_INTERVALS = 16
"""`roundup_power2_divisions` has one entry per power of two from 1 MiB to 32 GiB and beyond."""

# A free block is known by one integer, its size above its address, so that the order of the
# integers is best fit with the lowest address first and bisect compares no tuples.
_ADDRESS_BITS = 48
_EXPANDABLE_RANGE_BYTES = 1 << 42

_IGNORED_KEYS = frozenset(
    # Host memory, locking and error policy: no influence on device blocks. Garbage collection
    # acts only under a memory fraction, which is refused below.
    (
        "garbage_collection_threshold",
        "graph_capture_record_stream_reuse",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "throw_on_cudamalloc_oom",
    )
)
_UNMODELLED = {"backend": "native", "per_process_memory_fraction": "1.0"}
_KEYS = (
    "expandable_segments",
    "large_segment_size_mb",
    "max_non_split_rounding_mb",
    "max_split_size_mb",
    "roundup_power2_divisions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig:
    """The settings of `PYTORCH_CUDA_ALLOC_CONF` that shape device memory; bytes throughout."""

    max_split_size_bytes: int | None = None
    """Blocks of this size or more are never split and never lent to smaller requests."""
    large_segment_bytes: int = 20 * MIB
    """Segment requested for large blocks below 10 MiB."""
    expandable_segments: bool = False
    """Grow one virtual range per pool and stream by pages instead of separate segments."""
    roundup_power2_divisions: tuple[int, ...] = ()
    """Steps between powers of two, one entry per power from 1 MiB on; empty: no such rounding."""
    max_non_split_rounding_bytes: int = 20 * MIB
    """An unsplittable block may exceed the request it serves by less than this."""

    @classmethod
    def parse(cls, text: str) -> AllocatorConfig:
        """Read the syntax of `PYTORCH_CUDA_ALLOC_CONF` (c10/core/AllocatorConfig.cpp)."""
        settings: dict[str, str] = {}
        for item in _split_settings(text):
            key, separator, value = item.partition(":")
            if not separator or not value:
                raise ValueError(f"allocator setting {item!r} is not of the form key:value")
            settings[key] = value
        for key, value in settings.items():
            _check_setting(key, value)
        # Limits within a large segment would forbid packing; torch refuses them too.
        large = _mebibytes(settings, "large_segment_size_mb", least=10) or 20 * MIB
        rounding = _mebibytes(settings, "max_non_split_rounding_mb", least=20) or 20 * MIB
        return cls(
            max_split_size_bytes=_mebibytes(settings, "max_split_size_mb", least=20),
            large_segment_bytes=large,
            expandable_segments=_boolean(settings.get("expandable_segments", "False")),
            roundup_power2_divisions=_divisions(settings.get("roundup_power2_divisions", "")),
            max_non_split_rounding_bytes=rounding,
        )


def _split_settings(text: str) -> Iterator[str]:
    """Split at the commas outside square brackets, dropping all spaces."""
    depth, item = 0, ""
    for character in "".join(text.split()) + ",":
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            if item:
                yield item
            item = ""
        else:
            item += character
    if item:
        raise ValueError(f"allocator setting {item.rstrip(',')!r} lacks its closing bracket")


def _check_setting(key: str, value: str) -> None:
    if key in _UNMODELLED:
        if value != _UNMODELLED[key]:
            raise ValueError(
                f"allocator setting {key}:{value} is not modelled, only {key}:{_UNMODELLED[key]}"
            )
    elif key not in _KEYS and key not in _IGNORED_KEYS:
        raise ValueError(f"unknown allocator setting {key!r}; known: {', '.join(_KEYS)}")


def _mebibytes(settings: dict[str, str], key: str, least: int) -> int | None:
    if key not in settings:
        return None
    number = _whole_number(settings[key], key)
    if number < least:
        raise ValueError(f"allocator setting {key}:{number} must be at least {least} (MiB)")
    return number * MIB


def _whole_number(text: str, key: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"allocator setting {key}: {text!r} is not a whole number")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"allocator setting expandable_segments:{text} must be True or False")
    return text == "True"


def _divisions(text: str) -> tuple[int, ...]:
    """One number for all sizes, or `[256:1,512:2,>:8]` with sizes in MiB."""
    if not text:
        return ()
    if not text.startswith("["):
        return (_power_of_two(text),) * POWER2_INTERVALS
    divisions, last = [0] * POWER2_INTERVALS, -1
    for item in text.strip("[]").split(","):
        size, _, steps = item.partition(":")
        value = _power_of_two(steps)
        if size == ">":
            divisions[last + 1 :] = [value] * (POWER2_INTERVALS - last - 1)
            continue
        index = min(_power_of_two(size).bit_length() - 1, POWER2_INTERVALS - 1)
        if last < 0:
            divisions[:index] = [value] * index
        divisions[index] = value
        last = index
    return tuple(divisions)


def _power_of_two(text: str) -> int:
    number = _whole_number(text, "roundup_power2_divisions")
    if number < 1 or number & (number - 1):
        raise ValueError(f"allocator setting roundup_power2_divisions: {number} is no power of two")
    return number


class OutOfMemory(Exception):
    """A segment request did not fit the capacity even after all free segments were returned.

    A result of the replay, not an error of the tool: nobody outside the estimate sees it.
    """

    def __init__(
        self,
        *,
        requested_bytes: int,
        segment_bytes: int,
        allocated_bytes: int,
        reserved_bytes: int,
        capacity_bytes: int,
    ) -> None:
        super().__init__(
            f"{requested_bytes} bytes need a segment of {segment_bytes} bytes: {allocated_bytes} "
            f"allocated, {reserved_bytes} reserved, capacity {capacity_bytes}"
        )
        self.requested_bytes = requested_bytes
        self.segment_bytes = segment_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.capacity_bytes = capacity_bytes
        self.op_index: int | None = None
        """Position in the sequence given to `CachingAllocator.run`."""


class SegmentView(NamedTuple):
    """One segment as `CachingAllocator.snapshot` lists it; sizes and addresses in bytes."""

    address: int
    size: int
    stream: int
    is_small: bool
    blocks: tuple[tuple[int, int, str], ...]
    """(address, size, 'allocated' | 'free' | 'unmapped') in address order."""


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
    pool: _Pool

    def __init__(self, pool: _Pool, address: int, size: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.key = 0
        self.mapped = True
        self.previous = None
        self.next = None


class _Pool:
    """The free blocks of one stream, small or large."""

    __slots__ = ("index", "is_small", "keys", "stream", "unmapped")

    def __init__(self, stream: int, is_small: bool) -> None:
        self.stream = stream
        self.is_small = is_small
        self.keys: list[int] = []
        """Sorted; see `_ADDRESS_BITS`."""
        self.index: dict[int, Block] = {}
        self.unmapped: list[Block] = []
        """Parts of expandable ranges without memory, by address."""

    def add(self, block: Block) -> None:
        key = block.size << _ADDRESS_BITS | block.address
        block.key = key
        insort(self.keys, key)
        self.index[key] = block

    def remove(self, block: Block) -> None:
        del self.keys[bisect_left(self.keys, block.key)]
        del self.index[block.key]
        block.key = 0


class CachingAllocator:
    """Replays allocations and frees of one device; every figure in bytes.

    `capacity_bytes` is what the driver can give to segments (card minus context and other
    libraries); None means without limit.
    """

    def __init__(
        self, config: AllocatorConfig | None = None, capacity_bytes: int | None = None
    ) -> None:
        self.config = config or AllocatorConfig()
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_alloc_retries = 0
        self._pools: dict[tuple[int, bool], _Pool] = {}
        self._heads: dict[int, Block] = {}
        # Merged blocks are used again: making objects is the dearest part of a split.
        self._spare: list[Block] = []
        self._next_address = LARGE_ROUNDING_BYTES
        # Expandable segments, power-of-two rounding and a split limit leave the short path.
        self._plain = self.config == AllocatorConfig(
            large_segment_bytes=self.config.large_segment_bytes
        )

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
        self._merge(block)

    def empty_cache(self) -> None:
        """Return every wholly free segment (or page) of all streams to the driver."""
        for pool in self._pools.values():
            for block in list(pool.index.values()):
                if self.config.expandable_segments:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    self._release(block)

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

    def snapshot(self) -> list[SegmentView]:
        """List the segments by address with their blocks, for tests and explanations."""
        views = []
        for address, head in sorted(self._heads.items()):
            blocks = []
            block: Block | None = head
            while block is not None:
                state = "free" if block.key else "allocated" if block.mapped else "unmapped"
                blocks.append((block.address, block.size, state))
                block = block.next
            pool = head.pool
            mapped = sum(size for _, size, state in blocks if state != "unmapped")
            views.append(SegmentView(address, mapped, pool.stream, pool.is_small, tuple(blocks)))
        return views

    def run(  # noqa: C901, PLR0915  one loop without calls; the reason stands inside
        self, ops: Sequence[int], sizes: Sequence[int], blocks: list[Block | None]
    ) -> int:
        """Replay many operations on the default stream.

        `op >= 0` allocates `sizes[op]` bytes into `blocks[op]` (None for zero bytes), `op < 0`
        frees `blocks[~op]`. Returns the position of the operation at which allocated bytes
        reached their maximum, -1 if they never rose above the start. On `OutOfMemory` the
        exception's `op_index` says where, and all statistics stand as of that moment.
        """
        if not self._plain:
            return self._run_one_by_one(ops, sizes, blocks)
        # Same rules as malloc and free, written out: calls and attribute look-ups would double
        # the time, and a plan replays thousands of steps. tests/memory/test_allocator.py holds
        # the two paths equal.
        small, large = self._pool(0, 1), self._pool(0, SMALL_LIMIT_BYTES + 1)
        small_keys, small_index = small.keys, small.index
        large_keys, large_index = large.keys, large.index
        spare, bits, small_limit = self._spare, _ADDRESS_BITS, SMALL_LIMIT_BYTES
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
                i = find(keys, size << bits)
                if i < len(keys):
                    block = index.pop(keys.pop(i))
                else:
                    self.allocated_bytes = allocated
                    try:
                        block = self._obtain(small if keep == 511 else large, size)
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
        self, ops: Sequence[int], sizes: Sequence[int], blocks: list[Block | None]
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
                blocks[op] = self.malloc(sizes[op]) if sizes[op] else None
            except OutOfMemory as error:
                error.op_index = position
                raise
            if self.allocated_bytes > peak:
                peak, peak_position = self.allocated_bytes, position
        return peak_position

    def _pool(self, stream: int, size: int) -> _Pool:
        key = (stream, size <= SMALL_LIMIT_BYTES)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(*key)
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

    def _best_fit(self, pool: _Pool, size: int) -> Block | None:
        """Take the smallest free block that serves the request (`get_free_block`)."""
        keys, index = pool.keys, pool.index
        i = bisect_left(keys, size << _ADDRESS_BITS)
        if i == len(keys):
            return None
        if self.config.expandable_segments:
            # A block that can still grow is judged by what it could grow to.
            while i + 1 < len(keys) and _room(index[keys[i + 1]]) < _room(index[keys[i]]):
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
            block.pool.add(self._cut(block, size))

    def _cut(self, block: Block, size: int) -> Block:
        """Cut the block after `size` bytes; the lower part stays the same object."""
        rest = Block(block.pool, block.address + size, block.size - size)
        rest.previous, rest.next = block, block.next
        if block.next is not None:
            block.next.previous = rest
        block.next = rest
        block.size = size
        return rest

    def _absorb_next(self, block: Block) -> None:
        """Let the block swallow its upper neighbour, which is in no list."""
        after = block.next
        assert after is not None
        block.size += after.size
        block.next = after.next
        if after.next is not None:
            after.next.previous = block
        if after.mapped:
            self._spare.append(after)

    def _merge(self, block: Block) -> Block:
        """Put a block into the free list, joined with its free neighbours."""
        pool, after, before = block.pool, block.next, block.previous
        if after is not None and after.key:
            pool.remove(after)
            self._absorb_next(block)
        if before is not None and before.key:
            pool.remove(before)
            self._absorb_next(before)
            block = before
        pool.add(block)
        return block

    def _obtain(self, pool: _Pool, size: int) -> Block:
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

    def _grow(self, pool: _Pool, size: int) -> Block | None:
        """One segment (or the missing pages) holding a free block of at least `size` bytes."""
        if self.config.expandable_segments:
            return self._grow_expandable(pool, size)
        segment_bytes = self._segment_bytes(size)
        if not self._reserve(segment_bytes):
            return None
        block = Block(pool, self._next_address, segment_bytes)
        self._next_address += segment_bytes
        self._heads[block.address] = block
        return block

    def _reserve(self, num_bytes: int) -> bool:
        reserved = self.reserved_bytes + num_bytes
        if self.capacity_bytes is not None and reserved > self.capacity_bytes:
            return False
        self.reserved_bytes = reserved
        if reserved > self.peak_reserved_bytes:
            self.peak_reserved_bytes = reserved
        return True

    def _release(self, block: Block) -> None:
        """Give a wholly free segment back to the driver (`release_block`)."""
        block.pool.remove(block)
        del self._heads[block.address]
        self.reserved_bytes -= block.size

    def _release_oversize(self, pool: _Pool, size: int) -> bool:
        """Under a split limit, free just enough unsplittable blocks of this pool and stream."""
        limit = self.config.max_split_size_bytes
        if limit is None or self.config.expandable_segments:
            return False
        wanted = max(size, limit)
        i = bisect_left(pool.keys, wanted << _ADDRESS_BITS)
        if i < len(pool.keys):
            self._release(pool.index[pool.keys[i]])
            return True
        released = 0
        while pool.keys and released < wanted and pool.keys[-1] >> _ADDRESS_BITS >= limit:
            released += pool.keys[-1] >> _ADDRESS_BITS
            self._release(pool.index[pool.keys[-1]])
        return released >= wanted

    # Expandable segments: one virtual range per pool, whose unmapped parts are blocks too.

    def _page_bytes(self, pool: _Pool) -> int:
        return SMALL_SEGMENT_BYTES if pool.is_small else self.config.large_segment_bytes

    def _grow_expandable(self, pool: _Pool, size: int) -> Block | None:
        """Map pages behind the lowest free stretch with room (`try_allocate_expandable_block`)."""
        block: Block | None = self._expandable_candidate(pool, size)
        if block is not None and not block.mapped:
            block = self._map(block, min(block.size, size))
        while block is not None and block.size < size:
            after = block.next
            assert after is not None, "the candidate had room for the request"
            block = self._map(after, min(size - block.size, after.size))
        if block is not None:
            pool.remove(block)
        return block

    def _expandable_candidate(self, pool: _Pool, size: int) -> Block:
        for block in pool.unmapped:
            before = block.previous
            start = before if before is not None and before.key else block
            if _stretch(start, size):
                return start
        page_bytes = self._page_bytes(pool)
        address = -(-self._next_address // page_bytes) * page_bytes
        block = Block(pool, address, _EXPANDABLE_RANGE_BYTES // page_bytes * page_bytes)
        block.mapped = False
        self._next_address = address + block.size
        self._heads[address] = block
        pool.unmapped.append(block)
        return block

    def _map(self, block: Block, num_bytes: int) -> Block | None:
        """Back the start of an unmapped block with pages; the free block it became, or None."""
        pool, page_bytes = block.pool, self._page_bytes(block.pool)
        mapped_bytes = -(-num_bytes // page_bytes) * page_bytes
        if not self._reserve(mapped_bytes):
            return None
        place = pool.unmapped.index(block)
        if mapped_bytes < block.size:
            rest = self._cut(block, mapped_bytes)
            rest.mapped = False
            pool.unmapped[place] = rest
        else:
            del pool.unmapped[place]
        block.mapped = True
        return self._merge(block)

    def _unmap(self, block: Block) -> None:
        """Take the whole pages inside a free block away (`unmap_block`)."""
        pool, page_bytes = block.pool, self._page_bytes(block.pool)
        start = -(-block.address // page_bytes) * page_bytes
        end = (block.address + block.size) // page_bytes * page_bytes
        if end <= start:
            return
        pool.remove(block)
        if start > block.address:
            before, block = block, self._cut(block, start - block.address)
            pool.add(before)
        if block.size > end - start:
            pool.add(self._cut(block, end - start))
        block.mapped = False
        self.reserved_bytes -= block.size
        self._join_unmapped(block)

    def _join_unmapped(self, block: Block) -> None:
        pool, after, before = block.pool, block.next, block.previous
        if after is not None and not after.mapped:
            pool.unmapped.remove(after)
            self._absorb_next(block)
        if before is not None and not before.mapped:
            self._absorb_next(before)
        else:
            insort(pool.unmapped, block, key=_address)


def _address(block: Block) -> int:
    return block.address


def _room(block: Block) -> int:
    """What a free block could grow to."""
    after = block.next
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _stretch(block: Block, size: int) -> bool:
    """Whether free and unmapped blocks from here on hold `size` bytes."""
    room = 0
    current: Block | None = block
    while room < size and current is not None and (current.key or not current.mapped):
        room += current.size
        current = current.next
    return room >= size
