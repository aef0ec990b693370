"""Whether a candidate fits: by a bound, by what follows from a replay, else by its own replay.

What follows: a replay that ran into no limit needs the same on any card of the same kernels, so it
fits wherever there is as much room; what fits fits with more shards, and with a smaller micro-batch
that accumulates as well; what does not fit does not with fewer shards or a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rigsize.estimate import estimate_where_it_fits
from rigsize.memory.host import HostEstimate, host_memory, run_of
from rigsize.models import ModelSource
from rigsize.plan.bounds import (
    Held,
    Sums,
    card_room_bytes,
    held_by,
    least_bytes,
    parameters_of,
    sums_of,
)
from rigsize.plan.passes import Passes
from rigsize.plan.records import Candidate, Confirmation, Place, Way
from rigsize.plan.traces import Traces
from rigsize.program.environment import environment_of
from rigsize.program.mesh import mesh_of
from rigsize.program.timeline import Parameter
from rigsize.trace.profile import Profile, TraceKey

__all__ = ["Memory"]


@dataclass(frozen=True, slots=True)
class _Fact:
    """What one replay said."""

    shard: int
    micro_batch: int
    num_bytes: int
    """Of the allocator: what was enough, or what was not."""


@dataclass(slots=True)
class _Facts:
    """Of one way under the same kernels, with or without accumulation and copies."""

    fitting: list[_Fact] = field(default_factory=list)
    failing: list[_Fact] = field(default_factory=list)

    def enough(self, shard: int, micro: int, room: int) -> int | None:
        """What a replay of no fewer texts on no more shards was content with; None if above."""
        asked = (
            fact.num_bytes
            for fact in self.fitting
            if fact.shard <= shard and fact.micro_batch >= micro and fact.num_bytes <= room
        )
        return min(asked, default=None)

    def fails_some(self, room: int) -> bool:
        """Whether any replay ran out of as much room."""
        return any(fact.num_bytes >= room for fact in self.failing)

    def fails(self, shard: int, micro: int, room: int) -> bool:
        """Whether as much room was too little for no more texts on no fewer shards."""
        return any(
            fact.shard >= shard and fact.micro_batch <= micro and fact.num_bytes >= room
            for fact in self.failing
        )


class Memory:
    """The memory of candidates."""

    def __init__(self, source: ModelSource, traces: Traces) -> None:
        self.source, self.traces = source, traces
        self.replays = 0
        self._held: dict[Way, Held] = {}
        self._parameters: dict[TraceKey, list[Parameter]] = {}
        self._sums: dict[tuple[object, ...], Sums] = {}
        self._passes: dict[tuple[TraceKey, int], Passes] = {}
        self._least: dict[tuple[object, ...], int] = {}
        self._hosts: dict[tuple[object, ...], HostEstimate] = {}
        self._facts: dict[tuple[object, ...], _Facts] = {}
        self._confirmed: dict[tuple[object, ...], Confirmation] = {}

    # -- bounds -----------------------------------------------------------------------------

    def over_bytes(self, candidate: Candidate) -> int:
        """By how much the card cannot hold it, whatever the rest takes; 0 where it may."""
        return max(0, self.above_bytes(candidate))

    def above_bytes(self, candidate: Candidate) -> int:
        """The least that it holds, less the card's room: negative where there is some left."""
        way, cluster, mesh = candidate.way, candidate.place.cluster, candidate.mesh
        profile = self.traces.profile(way, cluster.accelerator)
        assert profile is not None, way
        again = candidate.accumulation > 1
        key = way, profile.key, mesh.shard, mesh.replicas > 1, candidate.micro_batch, again
        if key not in self._least:
            passes = self._passes_of(profile, candidate.point)
            self._least[key] = least_bytes(self._held_by(way, profile), passes, candidate)
        return self._least[key] - card_room_bytes(mesh, cluster.accelerator)

    def over_without_pass_bytes(self, place: Place, way: Way) -> int:
        """By how much a card cannot hold a way's weights, gradients and states, batch or none."""
        cluster = place.cluster
        profile = self.traces.profile(way, cluster.accelerator)
        assert profile is not None, way
        mesh = mesh_of(way.strategy, cluster, training=way.workload.training)
        held = self._held_by(way, profile)
        least = max(held.loading, held.at_step_end(mesh.shard))
        return max(0, least - card_room_bytes(mesh, cluster.accelerator))

    def _held_by(self, way: Way, profile: Profile) -> Held:
        if way not in self._held:
            strategy = way.strategy
            sums = profile.key, strategy.optimizer, strategy.policy, way.workload.training
            if sums not in self._sums:
                parameters = self._parameters_of(profile)
                self._sums[sums] = sums_of(parameters, strategy, training=way.workload.training)
            self._held[way] = held_by(way, self._sums[sums])
        return self._held[way]

    def _parameters_of(self, profile: Profile) -> list[Parameter]:
        if profile.key not in self._parameters:
            self._parameters[profile.key] = parameters_of(profile)
        return self._parameters[profile.key]

    def _passes_of(self, profile: Profile, point: Mapping[str, int]) -> Passes | None:
        """None of generation, which is many passes."""
        body = profile.body_at(point)
        if body is None or profile.key.cache:
            return None
        key = profile.key, id(body)
        if key not in self._passes:
            self._passes[key] = Passes(profile, body, self._parameters_of(profile))
        return self._passes[key]

    # -- replays ----------------------------------------------------------------------------

    def confirm(self, candidate: Candidate, *, exactly: bool = False) -> Confirmation:
        """Whether it fits; `exactly` with an Estimate of its own, if a fact says that it does."""
        way, cluster = candidate.way, candidate.place.cluster
        batch = candidate.micro_batch, candidate.accumulation
        shape = cluster.per_node, cluster.nodes, cluster.host_memory_bytes
        own = (way, cluster.accelerator, *shape, *batch)
        known = self._confirmed.get(own)
        if known is not None and (known.replayed or not exactly):
            return known
        found = None if exactly else self._by_facts(candidate)
        if found is None:
            found = self._replayed(candidate)
        self._confirmed[own] = found
        return found

    def ruled_out(self, candidate: Candidate) -> bool:
        """Whether a replay of no more texts on no fewer shards ran out of no less room."""
        facts, shard, room = self._facts_of(candidate)
        return facts.fails(shard, candidate.micro_batch, room)

    def _facts_of(self, candidate: Candidate) -> tuple[_Facts, int, int]:
        """The facts, the shards and the room of a candidate."""
        way, cluster, mesh = candidate.way, candidate.place.cluster, candidate.mesh
        kernels = environment_of(cluster.accelerator, way.strategy)
        key = (way, kernels, candidate.accumulation > 1, mesh.replicas > 1, mesh.shard > 1)
        room = card_room_bytes(mesh, cluster.accelerator)
        return self._facts.setdefault(key, _Facts()), mesh.shard, room

    def _by_facts(self, candidate: Candidate) -> Confirmation | None:
        facts, shard, room = self._facts_of(candidate)
        if self.ruled_out(candidate):
            return Confirmation(fits=False, replayed=False)
        if candidate.way.strategy.offload != "none":
            return None
        enough = facts.enough(shard, candidate.micro_batch, room)
        if enough is None:
            return None
        # What this card has outside the allocator at most, on top.
        capacity = candidate.place.cluster.accelerator.capacity_bytes or 0
        return self._with_host(candidate, enough + capacity - room)

    def _with_host(self, candidate: Candidate, at_most_bytes: int) -> Confirmation:
        """Of a candidate that fits its card by a fact: whether it fits the host, too."""
        over = self.host_over_bytes(candidate)
        fits = over <= 0
        return Confirmation(
            fits=fits,
            replayed=False,
            over_bytes=over,
            host=not fits,
            at_most_bytes=at_most_bytes,
        )

    def _host(self, candidate: Candidate) -> HostEstimate:
        """The node's memory, less what a Program would save on it; no card matters to it."""
        way, cluster = candidate.way, candidate.place.cluster
        profile = self.traces.profile(way, cluster.accelerator)
        assert profile is not None, way
        key = (way, profile.key, cluster.per_node, cluster.nodes, candidate.micro_batch)
        if key not in self._hosts:
            point, mesh = candidate.point, candidate.mesh
            run = (self.source, profile, point, way.workload, candidate.strategy, mesh)
            found = host_memory(run_of(*run, saved={}, paged_bytes=0, tensors_bytes=None))
            self._hosts[key] = found
        return self._hosts[key]

    def host_over_bytes(self, candidate: Candidate) -> int:
        """By how much the node's memory is too little; of one text a device first, for all."""
        capacity = candidate.place.cluster.host_memory_bytes
        if capacity is None:
            return 0
        least = self._host(replace(candidate, micro_batch=1, accumulation=1)).high_bytes
        high = least if least > capacity else self._host(candidate).high_bytes
        return max(0, high - capacity)

    def _ask_smallest(self, candidate: Candidate) -> None:
        """A second batch failed: if one text does too, it speaks for all the others."""
        way, card = candidate.way, candidate.place.cluster.accelerator
        least = self.traces.least_batch(way, card)
        if candidate.micro_batch > least and candidate.accumulation > 1:
            self.confirm(replace(candidate, micro_batch=least))

    def _replayed(self, candidate: Candidate) -> Confirmation:
        way, cluster = candidate.way, candidate.place.cluster
        capacity = cluster.host_memory_bytes
        over = self.host_over_bytes(candidate)
        if over:
            return Confirmation(fits=False, replayed=False, over_bytes=over, host=True)
        profile = self.traces.profile(way, cluster.accelerator)
        assert profile is not None, way
        self.replays += 1
        run = (self.source, way.workload, candidate.strategy, cluster)
        answer = estimate_where_it_fits(*run, profile)
        facts, shard, room = self._facts_of(candidate)
        if answer is None:
            known = facts.fails_some(room)
            facts.failing.append(_Fact(shard, candidate.micro_batch, room))
            if known:
                self._ask_smallest(candidate)
            return Confirmation(fits=False, replayed=True)
        played = answer.replay
        need = room if played.num_alloc_retries else played.reserved_peak_bytes
        facts.fitting.append(_Fact(shard, candidate.micro_batch, need))
        over = 0 if capacity is None else answer.host.high_bytes - capacity
        return Confirmation(
            fits=over <= 0,
            replayed=True,
            over_bytes=max(0, over),
            host=over > 0,
            estimate=answer,
        )
