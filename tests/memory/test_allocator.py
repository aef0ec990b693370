"""The allocator model against hand-worked sequences and against its own invariants.

The sequences A1 to G2 were stepped through by hand from the rules of
pytorch/pytorch, c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigsize.memory.allocator import (
    NO_STREAMS,
    AllocatorConfig,
    Block,
    CachingAllocator,
    OutOfMemory,
)

KIB = 1 << 10
MIB = 1 << 20


def statistics(allocator: CachingAllocator) -> tuple[int, int]:
    """Allocated bytes, reserved MiB."""
    return allocator.allocated_bytes, allocator.reserved_bytes // MIB


def test_a_small_pool() -> None:
    allocator = CachingAllocator()
    allocator.malloc(1)
    assert statistics(allocator) == (512, 2)
    second = allocator.malloc(MIB)  # 1 MiB still belongs to the small pool
    assert statistics(allocator) == (1_049_088, 2)
    allocator.malloc(MIB)  # the rest is 512 bytes short
    assert statistics(allocator) == (2_097_664, 4)
    allocator.free(second)  # merges with the rest of the first segment
    assert statistics(allocator) == (1_049_088, 4)
    assert (512, 2_096_640, "free") in [
        (address - view.address, size, state)
        for view in allocator.snapshot()
        for address, size, state in view.blocks
    ]
    fifth = allocator.malloc(600 * KIB)  # best fit: the 1 MiB rest of the second segment
    assert statistics(allocator) == (1_663_488, 4)
    assert fifth.address >= allocator.snapshot()[1].address


def test_b_large_pool() -> None:
    allocator = CachingAllocator()
    allocator.malloc(MIB + 1)
    assert statistics(allocator) == (1_049_088, 20)
    allocator.malloc(9 * MIB)
    assert statistics(allocator) == (10_486_272, 20)
    allocator.malloc(10 * MIB)  # 10 MiB takes a segment of its own size
    assert statistics(allocator) == (20_972_032, 30)
    allocator.malloc(8 * MIB)
    assert statistics(allocator) == (29_360_640, 30)
    assert allocator.inactive_split_bytes == 2_096_640


def test_c_split_only_above_one_mebibyte() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB))
    block = allocator.malloc(29 * MIB + 512 * KIB)  # 0.5 MiB would remain
    assert statistics(allocator) == (31_457_280, 30)
    allocator.free(block)
    allocator.malloc(28 * MIB)  # 2 MiB remain
    assert statistics(allocator) == (29_360_128, 30)
    allocator.malloc(1536 * KIB)  # takes the 2 MiB rest whole
    assert statistics(allocator) == (31_457_280, 30)
    allocator.malloc(512 * KIB)
    assert statistics(allocator) == (31_981_568, 32)


def test_d_fragmentation() -> None:
    allocator = CachingAllocator()
    first, middle, last = (allocator.malloc(64 * MIB) for _ in range(3))
    assert statistics(allocator) == (201_326_592, 192)
    allocator.free(middle)
    allocator.malloc(40 * MIB)
    assert statistics(allocator) == (176_160_768, 192)
    allocator.free(first)
    allocator.free(last)
    allocator.malloc(100 * MIB)
    assert statistics(allocator) == (146_800_640, 292)
    assert allocator.inactive_split_bytes == 24 * MIB


def test_d_under_pressure_unsplit_segments_are_returned() -> None:
    allocator = CachingAllocator(capacity_bytes=200 * MIB)
    first, middle, last = (allocator.malloc(64 * MIB) for _ in range(3))
    allocator.free(middle)
    allocator.malloc(40 * MIB)
    allocator.free(first)
    allocator.free(last)
    allocator.malloc(100 * MIB)  # the two 64 MiB segments go back, the 24 MiB rest cannot
    assert statistics(allocator) == (140 * MIB, 164)
    assert allocator.num_alloc_retries == 1
    assert allocator.peak_reserved_bytes == 192 * MIB


def test_e_cublas_workspaces() -> None:
    allocator = CachingAllocator()
    allocator.malloc(8_519_680)
    assert statistics(allocator) == (8_519_680, 20)
    allocator.malloc(8_519_680)
    assert statistics(allocator) == (17_039_360, 20)
    allocator.malloc(3 * MIB)  # 786,432 bytes would remain: takes all 3,932,160
    assert statistics(allocator) == (20_971_520, 20)


def test_f_logits_of_xlm_roberta() -> None:
    logits = 2048 * 250_002 * 4
    allocator = CachingAllocator()
    held = [allocator.malloc(logits)]
    assert statistics(allocator) == (2_048_917_504, 1954)
    held += [allocator.malloc(logits) for _ in range(3)]
    assert statistics(allocator) == (8_195_670_016, 7816)
    for block in held[1:]:
        allocator.free(block)
    allocator.malloc(768_006_144)
    assert statistics(allocator) == (2_816_923_648, 7816)


def test_g_max_split_size() -> None:
    config = AllocatorConfig(max_split_size_bytes=128 * MIB)
    allocator = CachingAllocator(config)
    allocator.free(allocator.malloc(256 * MIB))
    allocator.malloc(8 * MIB)  # may not use a block of 128 MiB or more
    assert statistics(allocator) == (8_388_608, 276)
    allocator.malloc(240 * MIB)  # 256 < 240 + 20: taken whole
    assert statistics(allocator) == (276_824_064, 276)


def test_oversize_blocks_are_freed_first_without_a_retry() -> None:
    config = AllocatorConfig(max_split_size_bytes=128 * MIB)
    allocator = CachingAllocator(config, capacity_bytes=300 * MIB)
    allocator.free(allocator.malloc(256 * MIB))
    allocator.free(allocator.malloc(40 * MIB))
    allocator.malloc(200 * MIB)  # 256 is not < 200 + 20: released, the 40 MiB segment stays
    assert statistics(allocator) == (200 * MIB, 240)
    assert allocator.num_alloc_retries == 0


def test_oversize_blocks_that_do_not_suffice_are_lost_to_the_retry() -> None:
    config = AllocatorConfig(max_split_size_bytes=128 * MIB)
    allocator = CachingAllocator(config, capacity_bytes=600 * MIB)
    allocator.free(allocator.malloc(256 * MIB))
    allocator.free(allocator.malloc(40 * MIB))
    allocator.malloc(400 * MIB)  # 256 released is short of 400: everything free goes
    assert statistics(allocator) == (400 * MIB, 400)
    assert allocator.num_alloc_retries == 1


def test_zero_bytes_count_nothing() -> None:
    allocator = CachingAllocator()
    block = allocator.malloc(0)
    allocator.free(block)
    assert (block.size, allocator.allocated_bytes, allocator.reserved_bytes) == (0, 0, 0)


def test_streams_do_not_share_blocks() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB))
    allocator.malloc(30 * MIB, stream=1)
    assert statistics(allocator) == (30 * MIB, 60)


def test_out_of_memory_carries_the_figures() -> None:
    allocator = CachingAllocator(capacity_bytes=50 * MIB)
    allocator.malloc(30 * MIB)
    with pytest.raises(OutOfMemory) as caught:
        allocator.malloc(21 * MIB)
    error = caught.value
    assert (error.requested_bytes, error.segment_bytes) == (21 * MIB, 22 * MIB)
    assert (error.allocated_bytes, error.reserved_bytes) == (30 * MIB, 30 * MIB)
    assert (error.capacity_bytes, error.op_index) == (50 * MIB, None)
    assert allocator.num_alloc_retries == 1
    allocator.malloc(20 * MIB)  # the allocator stays usable


def test_run_reports_the_peak_and_the_failing_operation() -> None:
    sizes = [30 * MIB, 0, 4 * MIB, 40 * MIB]
    blocks: list[Block | None] = [None] * 4
    allocator = CachingAllocator(capacity_bytes=60 * MIB)
    assert allocator.run([0, 1, 2, ~0, ~1], sizes, blocks) == 2
    assert allocator.peak_allocated_bytes == 34 * MIB
    assert allocator.run([0, ~0], [4 * MIB, 0, 0, 0], [None] * 4) == 0
    with pytest.raises(OutOfMemory) as caught:
        allocator.run([1, 3, 0], sizes, blocks)
    # 40 MiB fits once the free 30 MiB segment is returned, the next 30 MiB do not.
    assert caught.value.op_index == 2
    assert statistics(allocator) == (44 * MIB, 60)


def test_run_never_above_the_start() -> None:
    allocator = CachingAllocator()
    blocks: list[Block | None] = [allocator.malloc(MIB), None]
    assert allocator.run([~0, 1], [MIB, MIB], blocks) == -1


def test_expandable_segments_grow_by_pages() -> None:
    allocator = CachingAllocator(AllocatorConfig(expandable_segments=True))
    allocator.malloc(1)  # small pages of 2 MiB
    assert statistics(allocator) == (512, 2)
    first = allocator.malloc(30 * MIB + 1)  # large pages of 20 MiB
    assert statistics(allocator) == (512 + 30 * MIB + 512, 42)
    allocator.malloc(20 * MIB)  # the free rest (10 MiB - 512) and one more page
    assert statistics(allocator) == (512 + 50 * MIB + 512, 62)
    allocator.free(first)
    allocator.empty_cache()  # only the whole page within the hole goes back
    assert allocator.reserved_bytes == 42 * MIB
    allocator.malloc(30 * MIB + 1)  # and is mapped again in place
    assert statistics(allocator) == (512 + 50 * MIB + 512, 62)
    assert len(allocator.snapshot()) == 2


def test_expandable_segments_respect_the_capacity() -> None:
    config = AllocatorConfig(expandable_segments=True)
    allocator = CachingAllocator(config, capacity_bytes=60 * MIB)
    block = allocator.malloc(30 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(31 * MIB)
    allocator.free(block)
    assert allocator.malloc(60 * MIB).size == 60 * MIB


@pytest.mark.parametrize(
    ("num_bytes", "rounded"),
    [
        (1200, 1536),  # below 512 * 4: plain rounding to 512
        (1200 * KIB, 1280 * KIB),  # between 1 and 2 MiB in steps of 256 KiB
        (2 * MIB, 2 * MIB),
        (2 * MIB + 1, 2 * MIB + 512 * KIB),
    ],
)
def test_power2_rounding(num_bytes: int, rounded: int) -> None:
    config = AllocatorConfig.parse("roundup_power2_divisions:4")
    # Expandable segments make the rounded size visible: they never hand out more.
    config = AllocatorConfig(
        roundup_power2_divisions=config.roundup_power2_divisions, expandable_segments=True
    )
    assert CachingAllocator(config).malloc(num_bytes).size == rounded


def test_parse() -> None:
    parse = AllocatorConfig.parse
    assert parse("") == AllocatorConfig()
    assert parse(" expandable_segments:True , max_split_size_mb:128 ") == AllocatorConfig(
        expandable_segments=True, max_split_size_bytes=128 * MIB
    )
    assert parse("large_segment_size_mb:40,pinned_use_background_threads:True") == AllocatorConfig(
        large_segment_bytes=40 * MIB
    )
    divisions = parse("roundup_power2_divisions:[4:2,16:4,>:8]").roundup_power2_divisions
    # below 8 MiB two steps, 16 to 32 MiB four, above eight; 8 to 16 MiB was not named
    assert divisions == (2, 2, 2, 0, 4) + (8,) * 11


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_split_size:128", "max_split_size"),
        ("max_split_size_mb:4", "max_split_size_mb"),
        ("max_split_size_mb:x", "max_split_size_mb"),
        ("expandable_segments:yes", "expandable_segments"),
        ("expandable_segments", "expandable_segments"),
        ("backend:cudaMallocAsync", "backend"),
        ("roundup_power2_divisions:3", "roundup_power2_divisions"),
        ("roundup_power2_divisions:[4:2", "roundup_power2_divisions"),
    ],
)
def test_parse_refuses(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AllocatorConfig.parse(text)


CONFIGS = st.sampled_from(
    [
        AllocatorConfig(),
        AllocatorConfig(expandable_segments=True),
        AllocatorConfig(max_split_size_bytes=40 * MIB),
        AllocatorConfig(roundup_power2_divisions=(4,) * 16),
    ]
)


def random_ops(seed: int, num_ops: int) -> tuple[list[int], list[int]]:
    """Allocations of widely mixed sizes, each freed at some later time or never."""
    generator = random.Random(seed)
    ops: list[int] = []
    sizes: list[int] = []
    live: list[int] = []
    for _ in range(num_ops):
        if live and generator.random() < 0.45:
            ops.append(~live.pop(generator.randrange(len(live))))
        else:
            sizes.append(int(2 ** generator.uniform(0, 27)) if generator.random() < 0.95 else 0)
            live.append(len(sizes) - 1)
            ops.append(len(sizes) - 1)
    return ops, sizes


def replay_singly(
    allocator: CachingAllocator,
    ops: list[int],
    sizes: list[int],
    streams: Mapping[int, int] = NO_STREAMS,
) -> tuple[dict[int, Block], int]:
    """Live blocks afterwards and the position of the peak, by malloc and free."""
    held: dict[int, Block] = {}
    peak, position = allocator.allocated_bytes, -1
    for i, op in enumerate(ops):
        if op >= 0:
            held[op] = allocator.malloc(sizes[op], streams.get(op, 0))
            if allocator.allocated_bytes > peak:
                peak, position = allocator.allocated_bytes, i
        else:
            allocator.free(held.pop(~op))
    return held, position


def figures(allocator: CachingAllocator) -> tuple[int, ...]:
    return (
        allocator.allocated_bytes,
        allocator.reserved_bytes,
        allocator.peak_allocated_bytes,
        allocator.peak_reserved_bytes,
        allocator.num_alloc_retries,
        allocator.inactive_split_bytes,
    )


def check_layout(allocator: CachingAllocator) -> None:
    """Blocks tile their segments, segments do not overlap, the sums are the statistics."""
    end_before = allocated = reserved = 0
    for view in allocator.snapshot():
        position = view.address
        assert position >= end_before
        states = []
        for address, size, state in view.blocks:
            assert address == position
            assert size > 0
            position += size
            allocated += size if state == "allocated" else 0
            states.append(state)
        assert all(a == "allocated" or a != b for a, b in pairwise(states))
        end_before = position
        reserved += view.size
    assert allocated == allocator.allocated_bytes
    assert reserved == allocator.reserved_bytes >= allocated


@settings(max_examples=60, deadline=None)
@given(config=CONFIGS, seed=st.integers(0, 2**32), num_ops=st.integers(1, 300))
def test_invariants(config: AllocatorConfig, seed: int, num_ops: int) -> None:
    allocator = CachingAllocator(config)
    ops, sizes = random_ops(seed, num_ops)
    held, _ = replay_singly(allocator, ops, sizes)
    check_layout(allocator)
    assert allocator.allocated_bytes == sum(block.size for block in held.values())
    assert all(block.size >= sizes[op] for op, block in held.items())
    if config == AllocatorConfig(expandable_segments=True):
        assert allocator.allocated_bytes == sum(-(-sizes[op] // 512) * 512 for op in held)
    for block in held.values():
        allocator.free(block)
    check_layout(allocator)
    allocator.empty_cache()
    assert figures(allocator)[:2] == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    config=CONFIGS,
    seed=st.integers(0, 2**32),
    num_ops=st.integers(1, 300),
    capacity=st.sampled_from([None, 200 * MIB, 1000 * MIB]),
    num_streams=st.integers(1, 3),
)
def test_run_equals_single_calls(
    config: AllocatorConfig, seed: int, num_ops: int, capacity: int | None, num_streams: int
) -> None:
    ops, sizes = random_ops(seed, num_ops)
    streams = {op: op % num_streams for op in range(len(sizes)) if op % num_streams}
    single = CachingAllocator(config, capacity)
    bulk = CachingAllocator(config, capacity)
    failed: list[bool] = []
    for _ in range(2):  # twice: the second round starts from a used cache
        blocks: list[Block | None] = [None] * len(sizes)
        try:
            position = bulk.run(ops, sizes, blocks, streams)
            failed.append(False)
        except OutOfMemory:
            failed.append(True)
        try:
            held, expected = replay_singly(single, ops, sizes, streams)
            assert not failed[-1]
            assert position == expected
            live = {op: block.address for op, block in held.items() if block.size}
            assert live == {op: block.address for op, block in enumerate(blocks) if block}
        except OutOfMemory:
            assert failed[-1]
        assert figures(bulk) == figures(single)
        check_layout(bulk)
