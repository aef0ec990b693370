"""Whose each element is under DeepSpeed's ZeRO-1 and 2: one flat vector, cut in equal partitions.

Mirrors deepspeed 0.19.8, runtime/zero/stage_1_and_2.py: `flatten_dense_tensors_aligned`,
`initialize_gradient_partition` and `average_tensor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

__all__ = ["Layout", "copied_groups", "layout_of"]

ALIGNMENT = 2
"""Elements a rank that partitions start at (`nccl_start_alignment_factor`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The flat vector of all trainable parameters, as one rank sees it."""

    numels: tuple[int, ...]
    """Elements of each parameter, in the order of the optimizer's group."""
    ranks: int
    rank: int
    """Of the one that is looked at."""

    @property
    def padding(self) -> int:
        """Elements that make the vector divisible."""
        return -sum(self.numels) % (ALIGNMENT * self.ranks)

    @property
    def flat(self) -> int:
        """Elements of the vector."""
        return sum(self.numels) + self.padding

    @property
    def partition(self) -> int:
        """Elements of each rank's part."""
        return self.flat // self.ranks

    def pieces(self) -> list[list[tuple[int, int]]]:
        """For each parameter (rank, elements) of its consecutive pieces."""
        found, start = [], 0
        for numel in self.numels:
            found.append(list(_pieces(start, numel, self.partition)))
            start += numel
        return found

    def own(self) -> list[int]:
        """Elements of each parameter that belong to this rank."""
        return [sum(n for rank, n in p if rank == self.rank) for p in self.pieces()]


def _pieces(start: int, numel: int, partition: int) -> Iterator[tuple[int, int]]:
    end = start + numel
    while start < end:
        rank = start // partition
        stop = min(end, (rank + 1) * partition)
        yield rank, stop - start
        start = stop


def layout_of(numels: Sequence[int], ranks: int) -> Layout:
    """The layout seen by the rank that keeps the most gradients.

    A parameter whose piece a rank owns stays there whole until the step, so ranks at the borders of
    large parameters hold more than others.
    """
    layout = Layout(numels=tuple(numels), ranks=ranks, rank=0)
    held: dict[int, int] = {0: 0}
    start = 0
    for numel in numels:  # ranks amid one parameter hold no more than those at its ends
        ends = {start // layout.partition, (start + numel - 1) // layout.partition}
        for rank in ends:
            held[rank] = held.get(rank, 0) + numel
        start += numel
    most = max(held.values())
    return replace(layout, rank=min(rank for rank, kept in held.items() if kept == most))


def copied_groups(pieces: Sequence[tuple[int, int]], limit: int) -> list[int]:
    """Elements of each flat copy that a reduction of these (rank, elements) makes.

    Neighbours of one rank are one slice; slices are sent together until they pass the bucket's
    size, and a slice alone is sent where it is. Source: `average_tensor`, `allreduce_and_scatter`.
    """
    slices = [sum(n for _, n in run) for _, run in groupby(pieces, key=lambda piece: piece[0])]
    copies, together = [], []
    for numel in slices:
        together.append(numel)
        if sum(together) > limit:
            copies.append(together)
            together = []
    copies.append(together)
    return [sum(group) for group in copies if len(group) > 1]
