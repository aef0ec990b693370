"""ZeRO-1 and 2 of DeepSpeed: a flat vector of weights, of which each rank steps on its part.

Mirrors deepspeed 0.19.8, runtime/zero/stage_1_and_2.py (`DeepSpeedZeroOptimizer`), with the bucket
sizes of its config.py. The model comes in the weights' dtype (the bf16 or fp16 engine; fp32 without
either); fp32 masters and their states are partitioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rigsize.program.foreach import FP32_BYTES, place
from rigsize.program.mesh import check_shards
from rigsize.program.micro_step import MicroStep
from rigsize.program.parallel import OptimizerCall, Ranks
from rigsize.program.timeline import Parameter, Place, Timeline
from rigsize.program.zero_layout import copied_groups, layout_of

__all__ = ["REDUCE_BUCKET", "Zero", "norm_events"]

REDUCE_BUCKET = 500_000_000
"""Elements of `reduce_bucket_size` (runtime/zero/config.py)."""
FP64_BYTES = 8
MASTERS = place("master_copy", "zero.fp32_partition", "load")
FLAT = place("weights.flat", "zero.flatten", "load")
BUCKET = place("communication.buffers", "zero.ipg_bucket", "backward")
REDUCED = place("communication.buffers", "zero.flatten", "backward")
PARTITION = place("gradients", "zero.grads_in_partition", "backward")


class Device(Protocol):
    """Where allocations go: the timeline, or a micro-step."""

    def alloc(self, num_bytes: int, place: Place) -> int: ...

    def free(self, storage: int) -> None: ...


class Closing:
    """What only a step's last micro-step allocates and frees."""

    def __init__(self, step: MicroStep) -> None:
        self.step = step

    def alloc(self, num_bytes: int, place: Place) -> int:
        """A storage of the last micro-step."""
        storage = self.step.timeline.storage(num_bytes, place)
        self.step.close(storage)
        return storage

    def free(self, storage: int) -> None:
        """Dies in the last micro-step."""
        self.step.close(~storage)


class Zero(Ranks):
    """Stage 1 keeps whole gradients to the step's end; stage 2 reduces each bucket when it is full.

    Both send through a bucket (`ipg`) made at a step's (stage 2: a micro-step's) first gradient.
    """

    def loaded(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """The weights become views of one flat copy; the fp32 partition is cut from it.

        The peak of construction: the weights twice, or the master partition beside its zeroed
        gradient (`initialize_optimizer_states`).
        """
        self.stage = int(self.strategy.parallel[-1])
        self.trained = [p for p in parameters if p.trainable]
        vector = sum(p.numel for p in self.trained)
        check_shards(self.mesh.ranks, vector, "the flat vector of all that is trained")
        self.itemsize = self.trained[0].itemsize
        self.layout = layout_of([p.numel for p in self.trained], self.mesh.ranks)
        self._flatten(timeline)
        self.on_host = self.strategy.offload == "optimizer"
        self.partition = self._masters(timeline)
        self.kept: list[int] = []

    def _flatten(self, timeline: Timeline) -> None:
        layout, itemsize = self.layout, self.itemsize
        padding = timeline.alloc(layout.padding * itemsize, FLAT) if layout.padding else -1
        flat = timeline.alloc(layout.flat * itemsize, FLAT)
        if padding >= 0:
            timeline.free(padding)
        for parameter in self.trained:
            timeline.free(parameter.storage)
            parameter.storage = flat

    def _masters(self, timeline: Timeline) -> Parameter:
        """Offloaded, they leave a buffer for the largest gradient on the device."""
        numel, itemsize = self.layout.partition, self.itemsize
        if self.on_host:
            timeline.scratch(numel * itemsize, MASTERS)
            where = place("communication.buffers", "zero.temp_grad_buffer_for_gpu_offload", "load")
            timeline.alloc(max(self.layout.numels) * itemsize, where)
            return Parameter("zero.partition", (numel,), FP32_BYTES, True, -1)
        masters = cut = timeline.alloc(numel * itemsize, MASTERS)
        if itemsize != FP32_BYTES:
            masters = timeline.alloc(numel * FP32_BYTES, MASTERS)
            timeline.free(cut)
        where = place("gradients", "zero.initialize_optimizer_states", "load")
        timeline.scratch(numel * FP32_BYTES, where)
        return Parameter("zero.partition", (numel,), FP32_BYTES, True, masters)

    # -- micro-step -------------------------------------------------------------------------

    def begin(self, _step: MicroStep, phase: str) -> None:
        """A new micro-step."""
        if phase == "forward":
            self.bucket: list[tuple[int, int]] = []
            self.filled, self.ipg, self.held = 0, -1, -1
            self.kept = []
            self.index = {p.name: n for n, p in enumerate(self.trained)}
            self.pieces, self.own = self.layout.pieces(), self.layout.own()

    def gradient(self, step: MicroStep, parameter: Parameter, storage: int) -> None:
        """`process_gradients`, a hook after the gradient is accumulated."""
        step.timeline.recategorise(storage, "gradients")
        parameter.gradient = storage
        if self.ipg < 0:
            self.ipg = self._make_bucket(step)
        if self.stage == 1:
            step.keep(storage)
        else:
            self._into_bucket(step, step, self.index[parameter.name], storage)

    def _make_bucket(self, step: MicroStep) -> int:
        num_bytes = REDUCE_BUCKET * self.itemsize
        if self.stage == 2:
            return step.alloc(num_bytes, BUCKET)
        storage = step.timeline.storage(num_bytes, BUCKET)
        step.open(storage)
        return storage

    def _into_bucket(self, step: MicroStep, device: Device, index: int, storage: int) -> None:
        """A gradient larger than the bucket is reduced by itself, where it is.

        With offload it is cloned first, so that its storage is its own.
        """
        numel = self.layout.numels[index]
        if self.filled + numel > REDUCE_BUCKET:
            self._reduce(step, device)
        fits = numel <= REDUCE_BUCKET
        if self.on_host and not fits:
            clone = device.alloc(numel * self.itemsize, PARTITION)
            device.free(storage)
            storage = clone
        if fits:
            device.free(storage)
        self.bucket.append((index, -1 if fits else storage))
        self.filled += numel

    def _reduce(self, step: MicroStep, device: Device) -> None:
        """Averages what is in the bucket; what this rank owns a piece of is copied out, whole."""
        pieces = [piece for index, _ in self.bucket for piece in self.pieces[index]]
        for numel in copied_groups(pieces, REDUCE_BUCKET):
            device.free(device.alloc(numel * self.itemsize, REDUCED))
        for index, storage in self.bucket:
            if self.on_host:
                self._to_host(step, self.own[index])
            elif self.own[index] and self.held < 0:
                numels = zip(self.layout.numels, self.own, strict=True)
                total = sum(numel for numel, own in numels if own)
                self.held = device.alloc(total * self.itemsize, PARTITION)
            if storage >= 0:
                device.free(storage)
        self.bucket, self.filled = [], 0

    def _to_host(self, step: MicroStep, numel: int) -> None:
        """A piece's norm in fp64, then its copy in the masters' dtype on its way to the host.

        Both only in a step's last micro-step. Source: `copy_grads_in_partition`.
        """
        device = Closing(step)
        sizes = (FP64_BYTES, 0 if self.itemsize == FP32_BYTES else FP32_BYTES)
        for size in (numel * size for size in sizes):
            if size:
                device.free(device.alloc(size, REDUCED))

    def end(self, step: MicroStep, phase: str) -> None:
        """The epilogue of backward; stage 1 reduces only in a step's last micro-step.

        Source: `independent_gradient_partition_epilogue`, `DeepSpeedEngine.allreduce_gradients`.
        """
        if phase != "backward":
            return
        device: Device = step if self.stage == 2 else Closing(step)
        if self.stage == 1:
            for index, parameter in enumerate(self.trained):
                if parameter.gradient >= 0:
                    self._into_bucket(step, device, index, parameter.gradient)
        self._reduce(step, device)
        zeros = [] if self.on_host else self._zeros(device)
        self.kept = [s for s in (self.held, *zeros) if s >= 0]
        device.free(self.ipg)
        if self.stage == 2:
            for storage in self.kept:
                step.keep(storage)

    def _zeros(self, device: Device) -> list[int]:
        """What was not used counts as zero; the last rank's part is filled up."""
        unused = [
            numel
            for numel, own, p in zip(self.layout.numels, self.own, self.trained, strict=True)
            if own and p.gradient < 0
        ]
        fill = self.layout.partition - sum(self.own)
        return [device.alloc(n * self.itemsize, PARTITION) for n in (*unused, fill) if n]

    # -- optimizer --------------------------------------------------------------------------

    def stepped(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """One flat fp32 parameter."""
        for parameter in parameters:
            parameter.gradient = -1
        return [self.partition]

    def optimize(
        self, timeline: Timeline, _stepped: Sequence[Parameter], call: OptimizerCall
    ) -> None:
        """`step`: the norm, an fp32 copy of the gradients, the optimizer on the partition.

        The gathered weights are written where they are (`all_gather_dp_groups`).
        """
        timeline.mark("optimizer")
        if self.on_host:
            return
        pieces = [n for n in (*self.own, self.layout.partition - sum(self.own)) if n]
        norm_events(timeline, pieces)
        gradient = self._fp32_gradient(timeline, len(pieces))
        for storage in self.kept:
            if storage != gradient:
                timeline.free(storage)
        self.partition.gradient = gradient
        call.optimizer.step(timeline, [self.partition], device=call.device)
        timeline.mark("zero_grad")
        timeline.free(gradient)

    def _fp32_gradient(self, timeline: Timeline, num_pieces: int) -> int:
        """Flattening copies more than one piece, and `to` nothing that is fp32."""
        where = place("temporaries", "zero.flatten", "optimizer")
        numel = self.layout.partition
        flat = timeline.alloc(numel * self.itemsize, where) if num_pieces > 1 else -1
        if self.itemsize == FP32_BYTES:
            return flat if flat >= 0 else self.kept[0]
        gradient = timeline.alloc(numel * FP32_BYTES, where)
        if flat >= 0:
            timeline.free(flat)
        return gradient


def norm_events(timeline: Timeline, numels: Sequence[int]) -> None:
    """`get_grad_norm_direct`: each gradient is copied to fp64 to take its norm.

    Source: `get_norm_dtype` (runtime/zero/utils.py).
    """
    where = place("temporaries", "zero.get_grad_norm_direct", "optimizer")
    for numel in numels:
        timeline.scratch(numel * FP64_BYTES, where)
