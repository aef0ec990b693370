"""What the search asks, answered from the pipeline: memory by `Memory`, hours by a `Clock`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rigsize.errors import SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.candidates import batches
from rigsize.plan.memory import Memory
from rigsize.plan.records import Candidate, Confirmation, Place, Way
from rigsize.plan.search import Batches, Ways
from rigsize.plan.traces import Traces
from rigsize.program.mesh import mesh_of
from rigsize.spec.strategy import SHARDS_WEIGHTS

__all__ = ["Clock", "PipelineJudge"]

_SHARDED = (*SHARDS_WEIGHTS, "zero2")


class Clock(Protocol):
    """Hours of a run; a floor holds for whatever is below it."""

    def answers(self, way: Way, card: Accelerator) -> bool:
        """Whether a time can be given at all, as far as the card's rates say."""

    def floor_of_place(self, place: Place, ways: Ways, batches: Batches) -> float:
        """Hours that none of the ways goes below in any of the batches, by the peaks of rates."""

    def alike(self, way: Way) -> object:
        """Equal for ways that do the same beside their kernels."""

    def floor_of_group(self, place: Place, ways: Ways, batches: Batches) -> float:
        """Hours that none of these ways, which are alike, goes below in any of the batches."""

    def floor_of_way(self, place: Place, way: Way, batches: Batches) -> float:
        """Hours that none of the batches goes below."""

    def floor_of_batch(self, candidate: Candidate) -> float:
        """The same of one batch."""

    def floor(self, candidate: Candidate) -> float:
        """The same by the candidate's own kernels."""

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
        self._cannot: dict[Accelerator, dict[Way, str]] = {}
        self._untraced: dict[tuple[Way, Accelerator], str] = {}
        self._groups: dict[int, list[list[Way]]] = {}
        self._ways: dict[tuple[object, ...], tuple[list[Way], dict[str, list[Way]]]] = {}
        self._batches: dict[tuple[int, int], Batches] = {}
        self._hours: dict[tuple[object, ...], float | None] = {}
        self._leasts: dict[tuple[int, Accelerator], Counter[int]] = {}

    # -- the grid -------------------------------------------------------------------------------

    def ways(self, place: Place) -> Ways:
        """Those that the card can do and the shape of the place has a use for."""
        return self._sorted(place)[0]

    def groups(self, place: Place) -> Sequence[tuple[float, Ways]]:
        """The same by what they do beside their kernels, and by their floors at the card's peak."""
        ways = self.ways(place)
        groups = self._groups.get(id(ways))
        if groups is None:
            by_key: dict[object, list[Way]] = {}
            for way in ways:
                by_key.setdefault(self.clock.alike(way), []).append(way)
            groups = self._groups[id(ways)] = list(by_key.values())
        floored = [
            (self.clock.floor_of_place(place, group, batches), group[0].order, group)
            for group in groups
            if (batches := self.batches(place, group[0]))
        ]
        return [(floor, group) for floor, _, group in sorted(floored)]

    def left_out(self, place: Place) -> dict[str, int]:
        """Candidates there that cannot be, by kind: dtype_missing, not_traced, no_time."""
        _, without = self._sorted(place)
        batches = len(self._all_batches(place.cluster.devices)) if without else 0
        return {kind: batches * len(ways) for kind, ways in without.items()}

    def _sorted(self, place: Place) -> tuple[list[Way], dict[str, list[Way]]]:
        cluster = place.cluster
        card = cluster.accelerator
        shape = (card, cluster.per_node, cluster.nodes)
        if not self._counts:
            shape = (card, min(cluster.per_node, 2), min(cluster.nodes, 2))
        if shape not in self._ways:
            cannot = self._cannot.get(card)
            if cannot is None:
                cannot = {way: self._why_not(way, card) for way in self.all_ways}
                self._cannot[card] = cannot
            able: list[Way] = []
            without: dict[str, list[Way]] = {}
            for way in self.all_ways:
                kind = cannot[way]
                if kind == _BETTER or not _is_of_use(way, place):
                    continue
                if kind:
                    without.setdefault(kind, []).append(way)
                elif _has_mesh(way, place):
                    able.append(way)
            self._ways[shape] = able, without
        return self._ways[shape]

    def _why_not(self, way: Way, card: Accelerator) -> str:
        """Why a card cannot run a way; empty where it can."""
        key = way, self.traces.like(card)
        if key not in self._untraced:
            self._untraced[key] = self._untraceable(*key)
        return self._untraced[key] or ("" if self.clock.answers(way, card) else "no_time")

    def _untraceable(self, way: Way, card: Accelerator) -> str:
        try:
            self.traces.key(way, card)
        except SizingError:
            return "dtype_missing" if self.traces.lacks_dtype(way, card) else _BETTER
        if self.traces.lacks_dtype(way, card):
            return "dtype_missing"
        half = way.strategy.policy.half_dtype
        if self.vary_precision and half == "float16" and card.supports_bf16:
            return _BETTER
        return "not_traced" if self.traces.profile(way, card) is None else ""

    def batches(self, place: Place, way: Way) -> Batches:
        """(micro-batch, accumulation), the largest micro-batch first."""
        least = self.traces.least_batch(way, place.cluster.accelerator)
        return self._proved(place.cluster.devices, least)

    def _proved(self, ranks: int, least: int) -> Batches:
        """Those that a profile is proved for, from its least micro-batch on; of 0 none."""
        if (ranks, least) not in self._batches:
            every = self._all_batches(ranks)
            self._batches[ranks, least] = [pair for pair in every if least and pair[0] >= least]
        return self._batches[ranks, least]

    def _all_batches(self, ranks: int) -> Batches:
        """Those of the global batch, spread over all devices."""
        if self.global_batch is None:  # inference: as many at a time as fit
            sizes = (self.micro_batch,) if self.micro_batch else _PASSES
            return [(size, 1) for size in sizes]
        return batches(self.global_batch, ranks, self.micro_batch)

    def size(self, place: Place, ways: Ways | None = None) -> int:
        """Equal at all machines with as many of cards that torch asks the same."""
        card = self.traces.like(place.cluster.accelerator)
        ways = self.ways(place) if ways is None else ways
        key, ranks = (id(ways), card), place.cluster.devices
        if key not in self._leasts:
            self._leasts[key] = Counter(self.traces.least_batch(way, card) for way in ways)
        return sum(len(self._proved(ranks, n)) * count for n, count in self._leasts[key].items())

    def over_bytes(self, place: Place, ways: Ways) -> int:
        """Of weights, gradients and states, which are the same in a group."""
        return self.memory.over_without_pass_bytes(place, ways[0])

    def possible(self, place: Place, way: Way) -> tuple[Batches, int]:
        """By the bound of `Memory`, which grows with the micro-batch."""
        every = self.batches(place, way)
        low, high, over = 0, len(every), 0
        while low < high:
            middle = (low + high) // 2
            micro, accumulation = every[middle]
            one = Candidate(place=place, way=way, micro_batch=micro, accumulation=accumulation)
            if missing := self.memory.over_bytes(one):
                low, over = middle + 1, missing
            else:
                high = middle
        return every[low:], over

    # -- bounds and answers -----------------------------------------------------------------

    def floor_of_place(self, place: Place) -> float:
        """Of the clock."""
        ways = self.ways(place)
        batches = self.batches(place, ways[0]) if ways else ()
        return self.clock.floor_of_place(place, ways, batches)

    def floor_of_group(self, place: Place, ways: Ways) -> float:
        """Of the clock, in any batch."""
        return self.clock.floor_of_group(place, ways, self.batches(place, ways[0]))

    def floor_of_way(self, place: Place, way: Way, batches: Batches) -> float:
        """Of the clock."""
        return self.clock.floor_of_way(place, way, batches)

    def floor_of_batch(self, candidate: Candidate) -> float:
        """Of the clock."""
        return self.clock.floor_of_batch(candidate)

    def floor(self, candidate: Candidate) -> float:
        """Of the clock."""
        return self.clock.floor(candidate)

    def hours(self, candidate: Candidate) -> float | None:
        """Of the clock, asked once a candidate."""
        cluster = candidate.place.cluster
        batch = candidate.micro_batch, candidate.accumulation
        shape = cluster.per_node, cluster.nodes, cluster.network_bytes_per_s
        key = (candidate.way, cluster.accelerator, *shape, *batch)
        if key not in self._hours:
            self.evaluations += 1
            self._hours[key] = self.clock.hours(candidate)
        return self._hours[key]

    def usd(self, place: Place, hours: float) -> float:
        """Of the clock."""
        return self.clock.usd(place, hours)

    def ruled_out(self, candidate: Candidate) -> bool:
        """By a fact of `Memory`."""
        return self.memory.ruled_out(candidate)

    def confirm(self, candidate: Candidate) -> Confirmation:
        """By a fact or a replay of `Memory`."""
        return self.memory.confirm(candidate)


_BETTER = "better"
"""The grid has a better one for the card, which is no reason to be told."""


_PASSES = tuple(2**power for power in range(12, -1, -1))
"""Texts of one pass in inference, where nothing but memory says how many."""


def _is_of_use(way: Way, place: Place) -> bool:
    """Whether a shape has a use for it: nobody shards over one card but to offload.

    ZeRO-1 and 2 are of use there as DeepSpeed's 16-bit engines: fp32 masters beside 16-bit weights.
    """
    cluster, strategy = place.cluster, way.strategy
    parallel, alone = strategy.parallel, cluster.devices == 1
    if parallel == "single":
        return alone
    if parallel == "hsdp":
        return cluster.nodes > 1 and cluster.per_node > 1
    if not alone:
        return True
    if strategy.offload == "none":
        return parallel in ("zero1", "zero2") and strategy.policy.half_dtype != "float32"
    return parallel in _SHARDED and strategy.offload in ("cpu", "cpu-params", "optimizer")


def _has_mesh(way: Way, place: Place) -> bool:
    try:
        mesh_of(way.strategy, place.cluster, training=way.workload.training)
    except SizingError:
        return False
    return True
