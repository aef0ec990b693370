"""What a way does at a place beside its kernels: floors of what travels, is copied and updated.

Each at the price that `step_time` has for it; what one stream waits for another comes on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rigsize.errors import SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.records import Place, Way
from rigsize.plan.works import Works
from rigsize.program.ddp import BUCKET_BYTES
from rigsize.program.work import Work
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.spec.strategy import FSDPS, SHARDS_WEIGHTS
from rigsize.steptime.collectives import Collective, collective
from rigsize.steptime.links import Links
from rigsize.steptime.prices import Pricer
from rigsize.steptime.update import gradient_bytes, update_rows
from rigsize.trace.profile import TraceKey

__all__ = ["TYPICAL", "Beside", "Besides"]

TYPICAL = 8
"""Texts of the micro-batch whose work tells what does not depend on it."""
_FP32_BYTES = 4
_Exchanged = tuple[tuple[Collective, int], ...]
"""(collective, bytes) one after the other."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a way does at a place beside its kernels, in seconds."""

    links_s: float
    """Between the ranks, in a micro-step."""
    copies_s: float
    """Over PCIe to the device, in a micro-step."""
    once_s: float
    """Between the ranks, once a step."""
    update_s: float
    """The update itself, behind the micro-steps, with what ZeRO-1 and 2 send around it."""
    overlap_cost: float
    """Share of the kernels that hidden collectives take."""
    waited_s: float = 0.0
    """Behind each micro-step, before the next: ZeRO-2's reductions."""
    stores_s: float = 0.0
    """Over PCIe to the host, in a micro-step."""
    again_s: float = 0.0
    """The same, of what comes back to be added to, in each micro-step of a step but its first."""
    sums_s: float = 0.0
    """Of the host, which adds, in the same."""
    waited_again_s: float = 0.0
    """Behind each of the same: ZeRO-2's gradients from the host and back."""

    def added_to(self, kernels_s: float, micros: float, steps: float, host_s: float = 0.0) -> float:
        """Kernels are slowed by the collectives that they hide, and wait for those they do not.

        `host_s` is what the host takes to launch them.
        """
        links = micros * self.links_s + steps * self.once_s
        slowed = kernels_s + self.overlap_cost * min(links, kernels_s)
        waited = micros * self.waited_s + steps * self.update_s
        waited += (micros - steps) * self.waited_again_s
        stores = micros * self.stores_s + (micros - steps) * self.again_s
        host = host_s + (micros - steps) * self.sums_s
        return max(slowed, links, micros * self.copies_s, stores, host) + waited


_NOTHING = Beside(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnCard:
    """What all ways that are alike share on one card, however many of them there are."""

    work: Work
    pricer: Pricer
    sent: Sequence[tuple[Collective, int, int]]
    gradient_bytes: int
    """Of all that is trained, as the backward pass leaves it."""
    sent_gradient_bytes: int
    """The same of layers that a backward pass goes through."""


class Besides:
    """`Beside` by way and place; equal for ways that shard, send and update alike."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self._alike: dict[Way, int] = {}
        self._names: dict[tuple[Strategy, Workload, str], int] = {}
        self._works: dict[tuple[int, TraceKey], Work] = {}
        self._exchanged: dict[tuple[Accelerator, Way, int], set[_Exchanged]] = {}
        self._prepared: dict[tuple[int, Accelerator], _OnCard] = {}
        self._besides: dict[tuple[object, ...], Beside] = {}

    def alike(self, way: Way) -> int:
        """Equal for ways that do the same beside their kernels."""
        if way not in self._alike:
            plain = replace(way.strategy, recompute="none", loss="all", hold_output=True)
            key = plain, way.workload, way.recipe if way.label else ""
            self._alike[way] = self._names.setdefault(key, len(self._names))
        return self._alike[way]

    def network_s(self, ways: Sequence[Way], cluster: Cluster) -> float:
        """Seconds that one of these ways sends between the nodes in a step at least.

        However weights and states are spread, every node learns of what all others trained: of
        gradients, or of its part of them and then of the weights.
        """
        card = cluster.accelerator
        key = self.works.traces.like(card), ways[0], len(ways)
        if key not in self._exchanged:
            self._exchanged[key] = {self._least_exchanged(way, card) for way in ways}
        nodes, rate = cluster.nodes, cluster.network_bytes_per_s
        return min(
            sum(
                collective(card, op, size, nodes, nodes=nodes, network_bytes_per_s=rate).seconds
                for op, size in exchanged
            )
            for exchanged in self._exchanged[key]
        )

    def _least_exchanged(self, way: Way, card: Accelerator) -> _Exchanged:
        work, strategy = self.work(way, card), way.strategy
        if work is None or not work.training or strategy.shard_size:
            return ()
        reduced = sum(work.trainable) * gradient_bytes(strategy)
        if strategy.parallel not in ("fsdp", "zero3"):
            return (("all_reduce", reduced),)
        return ("reduce_scatter", reduced), ("all_gather", sum(work.weight_bytes))

    def work(self, way: Way, card: Accelerator) -> Work | None:
        """Some work with the way's parameters, whatever the card; None where there is none."""
        try:
            key = self.alike(way), self.works.traces.key(way, card)
            if key not in self._works:
                self._works[key] = self.works.of(way, card, TYPICAL)
            return self._works[key]
        except SizingError:
            return None

    def of(self, place: Place, way: Way) -> Beside:
        """What a way does there."""
        cluster = place.cluster
        shape = cluster.per_node, cluster.nodes, cluster.network_bytes_per_s
        key = self.alike(way), cluster.accelerator, *shape
        if key not in self._besides:
            try:
                self._besides[key] = self._new(place, way)
            except SizingError:
                self._besides[key] = _NOTHING
        return self._besides[key]

    def _new(self, place: Place, way: Way) -> Beside:
        cluster, strategy = place.cluster, way.strategy
        known = self._on_card(way, cluster.accelerator)
        work, pricer = known.work, known.pricer
        links = Links.of(work, strategy, cluster, None)
        travels = _travels_s(known.sent, links)
        if not work.training:
            return Beside(travels, 0.0, 0.0, 0.0, links.overlap_cost)
        once = 0.0
        if strategy.parallel == "ddp":
            once = _least_s(known.gradient_bytes, links)
        rows = update_rows(work, strategy, pricer, links)
        update = max(
            sum(row.host_step_s for row in rows), sum(sum(row.busy_s.values()) for row in rows)
        )
        waited = 0.0
        if strategy.parallel in ("zero1", "zero2"):
            reduced = links.within_copy("reduce_scatter", known.gradient_bytes)
            update += links.within_copy("all_gather", known.gradient_bytes)
            update += reduced if strategy.parallel == "zero1" else 0.0
            waited = reduced if strategy.parallel == "zero2" else 0.0
        fetched = _fetches_s(work, strategy, links)
        stored = again = sums = waited_again = 0.0
        if strategy.gradients_leave:
            part_bytes = known.sent_gradient_bytes / links.mesh.shard
            if strategy.parallel == "zero2":  # waited for, and only where it accumulates
                waited_again = links.to_host(part_bytes) + links.to_device(part_bytes)
            elif strategy.parallel in FSDPS:
                stored, sums = links.to_host(part_bytes), links.host_sum(part_bytes)
            else:
                stored, again = links.to_host(part_bytes), links.to_device(part_bytes)
        beside = (travels, fetched, once, update, links.overlap_cost, waited, stored, again, sums)
        return Beside(*beside, waited_again)

    def _on_card(self, way: Way, card: Accelerator) -> _OnCard:
        key = self.alike(way), card
        if key not in self._prepared:
            work, strategy = self.works.of(way, card, TYPICAL), way.strategy
            self._prepared[key] = _OnCard(
                work=work,
                pricer=Pricer(card, strategy, None),
                sent=_sent(work, strategy),
                gradient_bytes=sum(work.trainable) * gradient_bytes(strategy),
                sent_gradient_bytes=gradient_bytes(strategy)
                * sum(work.trainable[layer] for layer in _reached(work)),
            )
        return self._prepared[key]


def _reached(work: Work) -> set[int]:
    """The root and the layers with a backward pass."""
    return {0, *(s.layer for s in work.segments if s.phase == "backward")}


def _sent(work: Work, strategy: Strategy) -> list[tuple[Collective, int, int]]:
    """(collective, bytes, how often) of a micro-step, layer by layer as `schedule` has them.

    Not in one piece: an L40S node takes longer over a large message than over its parts.
    """
    if strategy.parallel not in SHARDS_WEIGHTS:
        return []
    forward = {0, *(s.layer for s in work.segments if s.phase != "backward")}
    backward = _reached(work)
    again = backward - {0} if work.training and strategy.reshard_after_forward else set()
    gathered = Counter(work.weight_bytes[layer] for layer in (*forward, *again))
    found: list[tuple[Collective, int, int]] = [("all_gather", *one) for one in gathered.items()]
    if work.training:
        element = min(_FP32_BYTES, gradient_bytes(strategy))
        reduced = Counter(work.trainable[layer] * element for layer in backward)
        found += [("reduce_scatter", *one) for one in reduced.items()]
    return found


def _travels_s(sent: Sequence[tuple[Collective, int, int]], links: Links) -> float:
    """Weights gathered and gradients reduced, in a copy and between the copies."""
    seconds = 0.0
    for op, size, count in sent:
        seconds += count * links.within_copy(op, size)
        if op == "reduce_scatter" and links.mesh.replicas > 1:
            seconds += count * links.between_copies(size // links.mesh.shard)
    return seconds


def _least_s(total_bytes: int, links: Links) -> float:
    """All-reduced in buckets of any size between DDP's and the whole, the cheapest a byte."""
    sizes = [total_bytes]
    while sizes[-1] // 2 > BUCKET_BYTES:
        sizes.append(sizes[-1] // 2)
    sizes.append(min(total_bytes, BUCKET_BYTES))
    return min(total_bytes / size * links.between_copies(size) for size in sizes if size)


def _fetches_s(work: Work, strategy: Strategy, links: Links) -> float:
    """The shards of the weights from the host: FSDP2's mixed precision keeps them in fp32."""
    if strategy.offload not in ("cpu", "cpu-params"):
        return 0.0
    sizes = work.weight_bytes
    if strategy.policy.compute == "amp":
        sizes = tuple(_FP32_BYTES * numel for numel in work.parameters)
    layers = sum(sizes[1:])
    again = layers if work.training and strategy.reshard_after_forward else 0
    return links.to_device((sizes[0] + layers + again) / links.mesh.shard)
