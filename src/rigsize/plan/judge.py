"""What the search asks, answered from the pipeline: memory by `Memory`, hours by a `Clock`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rigsize.errors import SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.candidates import batches
from rigsize.plan.memory import Memory
from rigsize.plan.records import Candidate, Confirmation, Place, Way
from rigsize.plan.traces import Traces
from rigsize.program.mesh import mesh_of
from rigsize.spec.strategy import SHARDS_WEIGHTS

__all__ = ["Clock", "PipelineJudge"]

_SHARDED = (*SHARDS_WEIGHTS, "zero2")


class Clock(Protocol):
    """Hours of a run; a floor holds for whatever is below it."""

    def answers(self, way: Way, card: Accelerator) -> bool:
        """Whether a time can be given at all, as far as the card's rates say."""

    def floor_of_place(self, place: Place, ways: Sequence[Way]) -> float:
        """Hours that none of the ways goes below."""

    def floor_of_way(self, place: Place, way: Way, batches: Sequence[tuple[int, int]]) -> float:
        """Hours that none of its batches goes below, the largest micro-batch first."""

    def floor(self, candidate: Candidate) -> float:
        """Hours that the candidate does not go below."""

    def hours(self, candidate: Candidate) -> float | None:
        """p50; None where no time can be given."""

    def usd(self, place: Place, hours: float) -> float:
        """The price of so many hours there; never falls when hours rise."""


class PipelineJudge:
    """Ways that a card can do, batches of the global batch, memory and hours."""

    def __init__(
        self,
        ways: Sequence[Way],
        traces: Traces,
        memory: Memory,
        clock: Clock,
        *,
        global_batch: int | None,
        micro_batch: int | None,
        vary_precision: bool,
    ) -> None:
        self.all_ways, self.traces, self.memory, self.clock = ways, traces, memory, clock
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.vary_precision = vary_precision
        self.evaluations = 0
        # Whether a mesh depends on how many devices there are, not only on whether there are more.
        self._counts = any(way.strategy.shard_size is not None for way in ways)
        self._ways: dict[tuple[object, ...], tuple[list[Way], dict[str, list[Way]]]] = {}
        self._batches: dict[tuple[object, ...], Sequence[tuple[int, int]]] = {}
        self._hours: dict[tuple[object, ...], float | None] = {}
        self._sizes: dict[tuple[object, ...], int] = {}

    # -- the grid -------------------------------------------------------------------------------

    def ways(self, place: Place) -> Sequence[Way]:
        """Those that the card can do and the shape of the place has a use for."""
        return self._sorted(place)[0]

    def left_out(self, place: Place) -> dict[str, int]:
        """Candidates there that cannot be, by kind: dtype_missing, not_traced, no_time."""
        _, without = self._sorted(place)
        return {
            kind: sum(len(self._all_batches(place, way)) for way in ways)
            for kind, ways in without.items()
        }

    def _sorted(self, place: Place) -> tuple[list[Way], dict[str, list[Way]]]:
        cluster = place.cluster
        shape = (cluster.accelerator, cluster.per_node, cluster.nodes)
        if not self._counts:
            shape = (cluster.accelerator, min(cluster.per_node, 2), min(cluster.nodes, 2))
        if shape not in self._ways:
            able: list[Way] = []
            without: dict[str, list[Way]] = {}
            for way in self.all_ways:
                if not _is_of_use(way, place):
                    continue
                kind = self._cannot(way, place)
                if kind is None:
                    able.append(way)
                elif kind:
                    without.setdefault(kind, []).append(way)
            self._ways[shape] = able, without
        return self._ways[shape]

    def _cannot(self, way: Way, place: Place) -> str | None:
        """Why a card cannot run a way; empty where the grid has a better one for it."""
        card = place.cluster.accelerator
        try:
            mesh_of(way.strategy, place.cluster, training=way.workload.training)
            self.traces.key(way, card)
        except SizingError:
            lacks = self.traces.lacks_dtype(way, card)
            return "dtype_missing" if lacks else ""
        if self.traces.lacks_dtype(way, card):
            return "dtype_missing"
        half = way.strategy.policy.half_dtype
        if self.vary_precision and half == "float16" and card.supports_bf16:
            return ""
        if self.traces.profile(way, card) is None:
            return "not_traced"
        return None if self.clock.answers(way, card) else "no_time"

    def batches(self, place: Place, way: Way) -> Sequence[tuple[int, int]]:
        """(micro-batch, accumulation), the largest micro-batch first."""
        card = place.cluster.accelerator
        key = way, card, place.cluster.devices
        if key not in self._batches:
            self._batches[key] = [
                (micro, accumulation)
                for micro, accumulation in self._all_batches(place, way)
                if self.traces.covers(way, card, micro)
            ]
        return self._batches[key]

    def _all_batches(self, place: Place, way: Way) -> Sequence[tuple[int, int]]:
        """Those of the global batch; the profile may not be proved for one text alone."""
        ranks = mesh_of(way.strategy, place.cluster, training=way.workload.training).ranks
        if self.global_batch is None:  # inference: as many at a time as fit
            sizes = (self.micro_batch,) if self.micro_batch else _PASSES
            return [(size, 1) for size in sizes]
        return batches(self.global_batch, ranks, self.micro_batch)

    def size(self, place: Place) -> int:
        """Equal at all machines with the same cards."""
        cluster = place.cluster
        key = cluster.accelerator, cluster.per_node, cluster.nodes
        if key not in self._sizes:
            self._sizes[key] = sum(len(self.batches(place, way)) for way in self.ways(place))
        return self._sizes[key]

    # -- bounds and answers -----------------------------------------------------------------

    def floor_of_place(self, place: Place) -> float:
        """Of the clock."""
        return self.clock.floor_of_place(place, self.ways(place))

    def floor_of_way(self, place: Place, way: Way) -> float:
        """Of the clock."""
        return self.clock.floor_of_place(place, (way,))

    def floor_of_spread(self, place: Place, way: Way) -> float:
        """Of the clock."""
        return self.clock.floor_of_way(place, way, self.batches(place, way))

    def floor(self, candidate: Candidate) -> float:
        """Of the clock."""
        return self.clock.floor(candidate)

    def hours(self, candidate: Candidate) -> float | None:
        """Of the clock, asked once a candidate."""
        cluster = candidate.place.cluster
        batch = candidate.micro_batch, candidate.accumulation
        key = (candidate.way, cluster.accelerator, cluster.per_node, cluster.nodes, *batch)
        if key not in self._hours:
            self.evaluations += 1
            self._hours[key] = self.clock.hours(candidate)
        return self._hours[key]

    def usd(self, place: Place, hours: float) -> float:
        """Of the clock."""
        return self.clock.usd(place, hours)

    def over_bytes(self, candidate: Candidate) -> int:
        """By the bound of `Memory`."""
        return self.memory.over_bytes(candidate)

    def possible(self, place: Place, way: Way) -> bool:
        """By the bound of the least batch, else by its replay.

        The card alone: a dearer machine's host may have more memory.
        """
        roomy = replace(place, cluster=replace(place.cluster, host_memory_bytes=None))
        micro, accumulation = self.batches(place, way)[-1]
        least = Candidate(place=roomy, way=way, micro_batch=micro, accumulation=accumulation)
        return not self.over_bytes(least) and self.confirm(least).fits

    def ruled_out(self, candidate: Candidate) -> bool:
        """By a fact of `Memory`."""
        return self.memory.ruled_out(candidate)

    def confirm(self, candidate: Candidate) -> Confirmation:
        """By a fact or a replay of `Memory`."""
        return self.memory.confirm(candidate)


_PASSES = tuple(2**power for power in range(12, -1, -1))
"""Texts of one pass in inference, where nothing but memory says how many."""


def _is_of_use(way: Way, place: Place) -> bool:
    """Whether a shape has a use for it: nobody shards over one card but to offload."""
    cluster, strategy = place.cluster, way.strategy
    parallel, alone = strategy.parallel, cluster.devices == 1
    if parallel == "single":
        return alone
    if parallel == "hsdp":
        return cluster.nodes > 1 and cluster.per_node > 1
    if not alone:
        return True
    return parallel in _SHARDED and strategy.offload in ("cpu", "cpu-params", "optimizer")
