"""Nanoseconds per allocation or free of the allocator model: python benchmarks/allocator_speed.py.

The sequence imitates training: a forward pass that keeps most of what it makes, a backward pass
that gives it back in reverse with temporaries in between, sizes from a short list.
"""

from __future__ import annotations

import random
import time

from rigsize.memory.allocator import Block, CachingAllocator

NUM_LAYERS, NUM_STEPS, REPEATS = 24, 4, 7


def training_step(generator: random.Random) -> tuple[list[int], list[int]]:
    """One step's operations and the sizes in bytes of its storages."""
    ops: list[int] = []
    sizes: list[int] = []
    saved: list[int] = []
    kinds = [512, 4096, 8192, 1 << 19, 3 << 20, 6291456, 8 << 20, 25165824, 12582912]

    def temporary() -> None:
        sizes.append(generator.choice(kinds))
        ops.extend((len(sizes) - 1, -len(sizes)))

    for _ in range(NUM_LAYERS):
        for _ in range(25):
            sizes.append(generator.choice(kinds))
            ops.append(len(sizes) - 1)
            saved.append(len(sizes) - 1)
            temporary()
    while saved:
        for _ in range(3):
            temporary()
        ops.append(~saved.pop())
    return ops, sizes


def best_ns_per_op() -> tuple[float, float, int]:
    """The best of several repeats for `run` and for single calls, and the operation count."""
    ops, sizes = training_step(random.Random(0))
    bulk, single = [], []
    for _ in range(REPEATS):
        blocks: list[Block | None] = [None] * len(sizes)
        allocator = CachingAllocator()
        start = time.perf_counter()
        for _ in range(NUM_STEPS):
            allocator.run(ops, sizes, blocks)
        bulk.append((time.perf_counter() - start) / NUM_STEPS / len(ops))
        allocator = CachingAllocator()
        held: dict[int, Block] = {}
        start = time.perf_counter()
        for op in ops:
            if op >= 0:
                held[op] = allocator.malloc(sizes[op])
            else:
                allocator.free(held[~op])
        single.append((time.perf_counter() - start) / len(ops))
    return min(bulk) * 1e9, min(single) * 1e9, len(ops)


if __name__ == "__main__":
    bulk_ns, single_ns, num_ops = best_ns_per_op()
    print(f"{num_ops} operations a step: run {bulk_ns:.0f} ns, malloc/free {single_ns:.0f} ns each")
