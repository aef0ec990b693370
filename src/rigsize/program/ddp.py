"""DDP: gradients in flat buckets, as copies or as views of them.

Mirrors torch 2.13: `DistributedDataParallel` (torch/nn/parallel/distributed.py) and its `Reducer`
(torch/csrc/distributed/c10d/reducer.cpp). A rank holds the same however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rigsize.program.foreach import place
from rigsize.program.micro_step import MicroStep
from rigsize.program.parallel import OptimizerCall, Ranks
from rigsize.program.timeline import Parameter, Timeline

__all__ = ["Ddp", "assign_buckets"]

MIB = 1 << 20
FIRST_BUCKET_BYTES = MIB
"""`dist._DEFAULT_FIRST_BUCKET_BYTES`."""
BUCKET_BYTES = 25 * MIB
"""`_DEFAULT_BUCKET_CAP_MB`."""
BROADCAST_BYTES = 250 * MIB
"""`broadcast_bucket_size`."""
IN_FLIGHT = 2
"""Broadcasts that `broadcast_coalesced` (torch/csrc/distributed/c10d/comm.cpp) has under way."""
INT32_BYTES = 4


class Ddp(Ranks):
    """The buckets live from construction on; the gradients are copied into them, or are in them.

    With parameters that get no gradient (`find_unused_parameters`) the buckets of construction
    stay, else one bucket of everything gives way to smaller ones, in the order in which gradients
    came, before the second step. `no_sync` in all but a step's last micro-step.
    """

    arrived: list[Parameter]
    """In the order in which gradients came in the micro-step."""
    clones: list[int]
    """Copies of the outputs, between forward and backward."""

    def loaded(self, _timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """What the micro-step must know of the parameters."""
        shapes = {p.name: p for p in parameters}
        self.pooler = shapes.get("pooler.dense.weight")

    def begin(self, step: MicroStep, phase: str) -> None:
        """A new micro-step."""
        if phase == "forward":
            self.arrived = []
        if phase == "backward":
            for storage in self.clones:
                step.free(storage)
        self.clones = []

    def end(self, step: MicroStep, phase: str) -> None:
        """With unused parameters the outputs pass through `_DDPSink`, which clones them.

        A bare backbone returns hidden states and pooled ones. Their originals die early in backward
        (here: at its start), where the pooler's nodes run without a gradient.
        """
        if phase != "forward" or not self.has_unused or self.pooler is None:
            return
        where = place("communication.buffers", "_DDPSink.clone", "forward")
        point, width = self.point, self.pooler.shape[0] * self.pooler.itemsize
        tokens = point.get("N") or point["B"] * point["S"]
        self.clones = [step.alloc(rows * width, where) for rows in (tokens, point["B"])]

    def gradient(self, step: MicroStep, parameter: Parameter, storage: int) -> None:
        """The reducer's hook runs after `AccumulateGrad`: a view takes the gradient's place.

        Source: `Reducer::mark_variable_ready_dense`.
        """
        super().gradient(step, parameter, storage)
        self.arrived.append(parameter)
        if self.strategy.bucket_view:
            step.close(~storage)

    def constructed(
        self, timeline: Timeline, parameters: Sequence[Parameter], buffers: Sequence[Parameter]
    ) -> None:
        """The first rank's weights and buffers are broadcast, then the buckets made."""
        _broadcast(timeline, [*parameters, *buffers])
        wanted = [p for p in parameters if p.trainable]
        if self.has_unused:
            limits = (FIRST_BUCKET_BYTES, BUCKET_BYTES)
            found = assign_buckets(wanted, limits)[::-1]
        else:
            found = assign_buckets(wanted, ())
        self.buckets = [self._bucket(timeline, bucket) for bucket in found]
        if self.has_unused:
            self._used_map(timeline, len(wanted))

    def second(self, timeline: Timeline) -> None:
        """Buckets in the order of arrival; the old ones go first (`Reducer::rebuild_buckets`)."""
        if self.has_unused:
            return
        for storage in self.buckets:
            timeline.free(storage)
        limits = (FIRST_BUCKET_BYTES, BUCKET_BYTES)
        found = assign_buckets(self.arrived, limits)
        self.buckets = [self._bucket(timeline, bucket) for bucket in found]

    def _bucket(self, timeline: Timeline, members: Sequence[Parameter]) -> int:
        category = "gradients" if self.strategy.bucket_view else "communication.buffers"
        where = place(category, "Reducer.initialize_buckets", "load")
        return timeline.alloc(sum(p.num_bytes for p in members), where)

    def _used_map(self, timeline: Timeline, count: int) -> None:
        """Which parameters were used, on the device and on the host (`local_used_map_`)."""
        where = place("communication.buffers", "Reducer.local_used_map", "load")
        for _ in range(2 if self.device == "cpu" else 1):
            timeline.alloc(count * INT32_BYTES, where)

    def optimize(
        self, timeline: Timeline, stepped: Sequence[Parameter], call: OptimizerCall
    ) -> None:
        """As on one device; gradients that are views of buckets leave nothing to free."""
        if self.strategy.bucket_view:
            stepped = [replace(p, gradient_stays=True) if p.gradient >= 0 else p for p in stepped]
        super().optimize(timeline, stepped, call)


def assign_buckets(
    parameters: Sequence[Parameter], limits_bytes: Sequence[int]
) -> list[list[Parameter]]:
    """Buckets of one dtype each, closed by the parameter with which they reach their limit.

    The n-th closed bucket of a dtype has the n-th limit, later ones the last; without limits a
    dtype is one bucket. Source: `compute_bucket_assignment_by_size` (reducer.cpp). The element
    size stands for the dtype.
    """
    closed: list[list[Parameter]] = []
    current: dict[int, list[Parameter]] = {}
    filled: dict[int, int] = {}
    number: dict[int, int] = {}
    for parameter in parameters:
        dtype = parameter.itemsize
        current.setdefault(dtype, []).append(parameter)
        filled[dtype] = filled.get(dtype, 0) + parameter.num_bytes
        index = min(number.get(dtype, 0), len(limits_bytes) - 1)
        if limits_bytes and filled[dtype] >= limits_bytes[index]:
            closed.append(current.pop(dtype))
            filled[dtype] = 0
            number[dtype] = index + 1
    return [*closed, *current.values()]


def _broadcast(timeline: Timeline, tensors: Sequence[Parameter]) -> None:
    """Flat copies of up to 250 MiB and the tensor that fills them, two at a time.

    A tensor alone needs none. Source: `_sync_module_states` (torch/distributed/utils.py),
    `broadcast_coalesced` (comm.cpp).
    """
    where = place("communication.buffers", "broadcast_coalesced", "load")
    in_flight: list[int] = []
    for chunk in assign_buckets(tensors, (BROADCAST_BYTES,)):
        if len(in_flight) >= IN_FLIGHT:
            _finish(timeline, in_flight.pop(0))
        flat = len(chunk) > 1
        size = sum(tensor.num_bytes for tensor in chunk)
        in_flight.append(timeline.alloc(size, where) if flat else -1)
    for storage in in_flight:
        _finish(timeline, storage)


def _finish(timeline: Timeline, storage: int) -> None:
    if storage >= 0:
        timeline.free(storage)
