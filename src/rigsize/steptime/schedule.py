"""One rank's step as rows of work: micro-steps and the optimizer step, before any clock runs.

What travels when mirrors `rigsize.program`: DDP reduces buckets of 1 and 25 MiB in a step's last
micro-step, in reverse order; FSDP2 gathers each layer, the next one while this one computes, and
reduces its gradients in every micro-step; ZeRO-1 reduces at the end of a step, ZeRO-2 of a
micro-step, and both gather the weights they stepped on. Layer 0 (embeddings and head) is the root:
gathered before all, its gradients there at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rigsize.errors import UnsupportedCombination
from rigsize.program.ddp import BUCKET_BYTES, FIRST_BUCKET_BYTES
from rigsize.program.work import Work
from rigsize.spec import Strategy
from rigsize.spec.strategy import FSDPS, SHARDS_WEIGHTS
from rigsize.steptime.hooks import add_hooks
from rigsize.steptime.links import Links
from rigsize.steptime.memory_bound import memory_bound
from rigsize.steptime.prices import Priced, Pricer
from rigsize.steptime.rows import Row
from rigsize.steptime.update import gradient_bytes, update_rows

__all__ = ["Schedule", "schedule"]

PCIE = "copies over PCIe"
ADDING = "gradient accumulation"
_MAX_CHUNKS = 4
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The rows of a step; a step of one micro-batch has only `last`."""

    first: tuple[Row, ...]
    middle: tuple[Row, ...]
    """Of each micro-step between the first and the last."""
    last: tuple[Row, ...]
    update: tuple[Row, ...]
    micro_steps: int


def schedule(
    work: Work, strategy: Strategy, pricer: Pricer, links: Links, saved_bytes: int | None
) -> Schedule:
    """The rows of one optimizer step (training) or of one pass."""
    priced = pricer.work(work)
    if not work.training:
        rows, places = _rows(priced), _places(work)
        if strategy.parallel in SHARDS_WEIGHTS:
            _gathers(rows, work, strategy, links, places)
        add_hooks(rows, work, strategy, links.mesh.shard, places, closes=True)
        return Schedule(first=(), middle=(), last=tuple(rows), update=(), micro_steps=1)
    steps = strategy.accumulation
    made = _MicroSteps(work, strategy, pricer, links, priced, saved_bytes)
    return Schedule(
        first=made.rows(adds=False, closes=False) if steps > 1 else (),
        middle=made.rows(adds=True, closes=False) if steps > 2 else (),
        last=made.rows(adds=steps > 1, closes=True),
        update=tuple(update_rows(work, strategy, pricer, links)),
        micro_steps=steps,
    )


def _rows(priced: Sequence[Priced]) -> list[Row]:
    return [
        Row(busy_s=dict(p.busy_s), launches=p.launches, dispatches=p.dispatches) for p in priced
    ]


_Places = tuple[dict[int, int], dict[int, int], dict[int, int]]


def _places(work: Work) -> _Places:
    """By layer: its first forward, first backward and last backward segment."""
    forward: dict[int, int] = {}
    backward: dict[int, int] = {}
    ends: dict[int, int] = {}
    for index, segment in enumerate(work.segments):
        if segment.phase == "backward":
            backward.setdefault(segment.layer, index)
            ends[segment.layer] = index
        else:
            forward.setdefault(segment.layer, index)
    if ends:
        ends[0] = len(work.segments) - 1
    return forward, backward, ends


def _gathers(
    rows: list[Row], work: Work, strategy: Strategy, links: Links, places: _Places
) -> None:
    """Each layer before its forward pass, and before its backward pass where it was let go.

    DeepSpeed copies each parameter out of what arrived (`AllGatherCoalescedHandle.wait`), on the
    stream of the gather.
    """
    copies = strategy.parallel == "zero3" and links.mesh.shard > 1
    forward, backward, _ = places
    fetches = strategy.offload in ("cpu", "cpu-params")
    wide = strategy.policy.compute == "amp"
    for layer, num_bytes in enumerate(work.weight_bytes):
        again = strategy.reshard_after_forward and layer > 0
        seconds = links.within_copy("all_gather", num_bytes)
        if copies:
            seconds += memory_bound(links.cluster.accelerator, 2 * num_bytes, "copy").seconds
        # FSDP2's mixed precision keeps the shards in fp32.
        stored = _FP32_BYTES * work.parameters[layer] if wide else num_bytes
        shard_bytes = stored / links.mesh.shard
        fetch = links.to_device(shard_bytes) if fetches else 0.0
        # The root's come first of all, whatever segment is the first of them.
        first = 0 if layer == 0 else forward.get(layer)
        for index in (first, backward.get(layer) if again else None):
            if index is not None:
                rows[index].gather_s += seconds
                rows[index].fetch_s += fetch


class _MicroSteps:
    """Makes the rows of a micro-step: whether it adds to gradients, whether it is the last."""

    def __init__(
        self,
        work: Work,
        strategy: Strategy,
        pricer: Pricer,
        links: Links,
        priced: Sequence[Priced],
        saved_bytes: int | None,
    ) -> None:
        self.work, self.strategy, self.pricer, self.links = work, strategy, pricer, links
        self.priced = priced
        self.saved_bytes = saved_bytes
        self.places = _places(work)
        self.ends = self.places[2]
        self.gradient = gradient_bytes(strategy)

    def rows(self, *, adds: bool, closes: bool) -> tuple[Row, ...]:
        """One micro-step."""
        rows = _rows(self.priced)
        parallel = self.strategy.parallel
        if adds and not self._adds_on_host:
            self._accumulate(rows)
        if self.strategy.offload == "activations":
            self._save(rows)
        if parallel in SHARDS_WEIGHTS:
            _gathers(rows, self.work, self.strategy, self.links, self.places)
            self._reduce_layers(rows, adds=adds)
        elif parallel == "ddp" and closes:
            self._reduce_buckets(rows)
        elif parallel == "zero2" or (parallel == "zero1" and closes):
            self._reduce_at_end(rows, adds=adds, closes=closes)
        shard = self.links.mesh.shard
        add_hooks(rows, self.work, self.strategy, shard, self.places, closes=closes)
        return tuple(rows)

    @property
    def _adds_on_host(self) -> bool:
        return self.strategy.offload == "cpu" and self.strategy.parallel in FSDPS

    def _accumulate(self, rows: list[Row]) -> None:
        """`AccumulateGrad` adds in place: two reads and a write; sharded, behind the reduction."""
        sharded = self.strategy.parallel in (*SHARDS_WEIGHTS, "zero2")
        shard = self.links.mesh.shard if sharded else 1
        tensors = self.work.tensors / max(1, sum(1 for n in self.work.trainable if n))
        for layer, numel in enumerate(self.work.trainable):
            if numel and layer in self.ends:
                row = rows[self.ends[layer]]
                moved = 3 * self.gradient * numel / shard
                row.busy_s[ADDING] = self.pricer.moved(ADDING, moved, "optimizer", round(tensors))
                row.launches += tensors

    def _save(self, rows: list[Row]) -> None:
        """`save_on_cpu` copies on the stream that computes: out in forward, back in backward."""
        if self.saved_bytes is None:
            raise UnsupportedCombination(
                "offload", "activations", "the saved bytes were not given, so no time"
            )
        for phase, seconds in (
            ("forward", self.links.to_host(self.saved_bytes)),
            ("backward", self.links.to_device(self.saved_bytes)),
        ):
            where = [n for n, s in enumerate(self.work.segments) if s.phase == phase]
            total = sum(sum(rows[n].busy_s.values()) for n in where) or 1.0
            for n in where:
                share = sum(rows[n].busy_s.values()) / total
                rows[n].busy_s[PCIE] = seconds * share

    def _reduce_layers(self, rows: list[Row], *, adds: bool) -> None:
        links, strategy = self.links, self.strategy
        shard = links.mesh.shard
        wide = _FP32_BYTES if strategy.policy.compute == "amp" else self.gradient
        for layer, numel in enumerate(self.work.trainable):
            if not numel or layer not in self.ends:
                continue
            row = rows[self.ends[layer]]
            seconds = links.within_copy("reduce_scatter", numel * wide)
            if links.mesh.replicas > 1:
                seconds += links.between_copies(numel * wide // shard)
            if seconds:
                row.reductions += ((1.0, seconds),)
            if self.strategy.gradients_leave:
                part_bytes = numel * wide / shard
                row.store_s += links.to_host(part_bytes)
                if adds and self._adds_on_host:
                    row.host_step_s += links.host_sum(part_bytes)
                elif adds:
                    # DeepSpeed brings back what is there, adds on the device and stores it again.
                    row.store_s += links.to_device(part_bytes)

    def _reduce_buckets(self, rows: list[Row]) -> None:
        """Buckets fill evenly while a layer's backward pass runs."""
        last_layers = sorted(
            (layer for layer, numel in enumerate(self.work.trainable) if numel),
            key=lambda layer: self.ends.get(layer, len(rows) - 1),
        )
        limit, filled = FIRST_BUCKET_BYTES, 0
        for layer in last_layers:
            size = self.work.trainable[layer] * self.gradient
            if layer == 0:
                # The embedding is one tensor: it closes the bucket that it falls into.
                sizes, filled = [(1.0, filled + size)], 0
            else:
                sizes, filled, limit = _closed(size, filled, limit)
            self._send(rows[self.ends.get(layer, len(rows) - 1)], sizes)
        if filled:
            self._send(rows[-1], [(1.0, filled)])

    def _send(self, row: Row, sizes: Sequence[tuple[float, int]]) -> None:
        sent = [(share, self.links.between_copies(size)) for share, size in sizes]
        row.reductions += tuple(_chunked([pair for pair in sent if pair[1]]))

    def _reduce_at_end(self, rows: list[Row], *, adds: bool, closes: bool) -> None:
        """DeepSpeed's `overlap_comm` is off for these stages: the reduction is waited for.

        So are copies to the host, which stand in the stream that computes. ZeRO-2 keeps what it
        accumulates there: back to the device to be added to, and out again, in every micro-step
        (deepspeed 0.19.8, `async_accumulate_grad_in_cpu_via_gpu` of stage_1_and_2.py).
        """
        numel, shard = sum(self.work.trainable), self.links.mesh.shard
        seconds = self.links.within_copy("reduce_scatter", numel * self.gradient)
        store = 0.0
        if self.strategy.offload == "optimizer":
            if self.strategy.gradients_leave and self.strategy.accumulation > 1:
                part_bytes = numel * self.gradient / shard
                store += self.links.to_host(part_bytes)
                store += self.links.to_device(part_bytes) if adds else 0.0
            if closes:
                store += self.links.to_host(numel * _FP32_BYTES / shard)
        reductions = ((1.0, seconds),) if seconds else ()
        rows.append(Row(reductions=reductions, store_s=store))
        rows.append(Row(waits=True))


def _closed(size: int, filled: int, limit: int) -> tuple[list[tuple[float, int]], int, int]:
    """The buckets that a layer's gradients close: (share of the layer, bytes), and what is left."""
    found = []
    position = 0
    while filled + size - position >= limit:
        position += limit - filled
        found.append((position / size, limit))
        filled, limit = 0, BUCKET_BYTES
    return found, filled + size - position, limit


def _chunked(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Many small reductions of one layer as a few, each when the last of its buckets is there."""
    size = max(1, -(-len(pairs) // _MAX_CHUNKS))
    parts = [pairs[n : n + size] for n in range(0, len(pairs), size)]
    return [(part[-1][0], sum(seconds for _, seconds in part)) for part in parts]
