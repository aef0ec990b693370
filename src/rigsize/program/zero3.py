"""ZeRO-3 of DeepSpeed: each parameter cut over the ranks, whole only around its module.

Mirrors deepspeed 0.19.8, runtime/zero/stage3.py (`DeepSpeedZeroOptimizer_Stage3`) and
partition_parameters.py (`Init`), with the sizes of config.py; `program.zero3_fetch` says what is
whole when. Left out: the linear function that stage 3 puts in torch's place.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.foreach import FP32_BYTES, place
from rigsize.program.mesh import check_shards
from rigsize.program.micro_step import MicroStep
from rigsize.program.parallel import OptimizerCall, Ranks
from rigsize.program.timeline import REDUCE_SCATTER, Parameter, Timeline
from rigsize.program.zero import FP64_BYTES, MASTERS, REDUCE_BUCKET, norm_events
from rigsize.program.zero3_fetch import WHOLE, Coordinator, Limits

__all__ = ["SUB_GROUP", "Zero3"]

LIMITS = Limits()
SUB_GROUP = 1_000_000_000
"""Elements of `sub_group_size`."""
PARTS = place("weights.partitioned", "zero3.partition", "load")
BUCKET = place("communication.buffers", "zero3.ipg_bucket", "load")
GRADIENTS = place("gradients", "zero3.grad_partitions_flat_buffer", "load")
REDUCED = place("communication.buffers", "zero3.reduce_scatter_coalesced", "backward")
STEP = place("temporaries", "zero3.flatten", "optimizer")


class Zero3(Ranks):
    """Parts, gradients' parts and the bucket live from construction on."""

    follows_modules = True

    def loaded(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """Parameters are cut one after the other, then parts, masters and buffers made."""
        self.parameters = list(parameters)
        self.trained = [p for p in parameters if p.trainable]
        largest = max(p.numel for p in self.parameters)
        check_shards(self.mesh.ranks, largest, "the largest parameter")
        self.itemsize = self.trained[0].itemsize
        self.steps_on_host = self.strategy.offload in ("optimizer", "cpu")
        self.parts_on_host = self.strategy.offload in ("cpu", "cpu-params")
        self._cut(timeline)
        self.groups = self._sub_groups()
        self.masters = self._masters(timeline)
        timeline.alloc(REDUCE_BUCKET * self.itemsize, BUCKET)
        if not self.steps_on_host:
            timeline.alloc(sum(self.part(p) for p in self.trained) * self.itemsize, GRADIENTS)
        persistent = [p for p in parameters if p.numel <= LIMITS.persistence]
        self.resident = frozenset(p.name for p in persistent)
        self.gathered: list[int] = []
        if self.mesh.ranks > 1 or self.parts_on_host:
            for parameter in self.trained:  # `create_reduce_and_remove_grad_hooks`
                timeline.scratch(self._whole_bytes(parameter), WHOLE)
            self.gathered = [timeline.alloc(self._whole_bytes(p), WHOLE) for p in persistent]

    def part(self, parameter: Parameter) -> int:
        """Elements of a rank's part, padded."""
        return -(-parameter.numel // self.mesh.ranks)

    def _whole_bytes(self, parameter: Parameter) -> int:
        return self.part(parameter) * self.mesh.ranks * parameter.itemsize

    def _cut(self, timeline: Timeline) -> None:
        """`_partition_param`, then `defragment` of what is trained, by way of the host."""
        for parameter in self.parameters:
            whole, num_bytes = parameter.storage, self.part(parameter) * parameter.itemsize
            parameter.storage = -1 if self.parts_on_host else timeline.alloc(num_bytes, PARTS)
            timeline.free(whole)
        if self.parts_on_host:
            return
        for parameter in self.trained:
            timeline.free(parameter.storage)
        timeline.mark("empty_cache")
        flat = timeline.alloc(sum(self.part(p) for p in self.trained) * self.itemsize, PARTS)
        for parameter in self.trained:
            parameter.storage = flat

    def _sub_groups(self) -> list[int]:
        """Elements of each sub-group's part: `_create_fp16_sub_groups`."""
        groups, filled = [], 0
        for parameter in self.trained:
            filled += self.part(parameter)
            if filled >= SUB_GROUP:
                groups.append(filled)
                filled = 0
        return [*groups, filled] if filled else groups

    def _masters(self, timeline: Timeline) -> list[Parameter]:
        """Parts are converted to fp32 and cloned; fp32 parts on the device are cloned alone.

        The branch that would keep the latter compares a device with its name, which never holds.
        """
        found = []
        for number, numel in enumerate(self.groups):
            storage = -1
            if not self.steps_on_host:
                converts = self.itemsize != FP32_BYTES or self.parts_on_host
                converted = timeline.alloc(numel * FP32_BYTES, MASTERS) if converts else -1
                storage = timeline.alloc(numel * FP32_BYTES, MASTERS)
                if converts:
                    timeline.free(converted)
            found.append(Parameter(f"zero.group{number}", (numel,), FP32_BYTES, True, storage))
        if not self.steps_on_host:
            where = place("gradients", "zero3.initialize_optimizer_states", "load")
            timeline.scratch(max(self.groups) * FP32_BYTES, where)
        return found

    # -- micro-step -------------------------------------------------------------------------

    def course(self, modules: Sequence[tuple[str, str]]) -> None:
        """The modules of the micro-step, (phase, name), in their order."""
        own: dict[str, list[Parameter]] = {}
        for parameter in self.parameters:
            own.setdefault(parameter.name.rpartition(".")[0], []).append(parameter)
        self._adopt(own, [name for phase, name in modules if phase == "forward"])
        self._tie(own, modules)
        self.coordinator = Coordinator(
            [(name, own.get(name, ())) for _, name in modules],
            self.mesh.ranks,
            LIMITS,
            self.resident,
            on_host=self.parts_on_host,
        )
        self.coordinator.start()
        self.is_inside = False

    def _adopt(self, own: dict[str, list[Parameter]], forward: Sequence[str]) -> None:
        """Parameters of a module that allocates nothing itself go to the last one inside it."""
        seen = frozenset(forward)
        for owner in [name for name in own if name not in seen]:
            inner = next((n for n in reversed(forward) if n.startswith(f"{owner}.")), None)
            if inner is not None:
                own.setdefault(inner, []).extend(own.pop(owner))

    def _tie(self, own: dict[str, list[Parameter]], modules: Sequence[tuple[str, str]]) -> None:
        """The last module of the forward pass without a weight of its own uses the embedding."""
        last = next((name for phase, name in reversed(modules) if phase == "forward"), "")
        tables = [p for p in self.parameters if p.category == "weights.embeddings"]
        has_weight = any(len(p.shape) > 1 for p in own.get(last, ()))
        if last and tables and not has_weight and last.rpartition(".")[2] in TIED_HEADS:
            own.setdefault(last, []).append(max(tables, key=lambda p: p.numel))

    def module(self, step: MicroStep) -> None:
        """The next module of the course begins, and the one before has ended."""
        if self.is_inside:
            self.coordinator.leave(step)
        self.coordinator.enter(step)
        self.is_inside = True

    def begin(self, _step: MicroStep, phase: str) -> None:
        """A new micro-step."""
        if phase == "forward":
            self.bucket: list[tuple[Parameter, int]] = []
            self.filled = 0

    def gradient(self, step: MicroStep, parameter: Parameter, storage: int) -> None:
        """Into the bucket, or reduced where it is if it is larger than that."""
        step.timeline.recategorise(storage, "gradients")
        if self.bucket and self.filled + parameter.numel > REDUCE_BUCKET:
            self._reduce(step)
        fits = self.filled + parameter.numel <= REDUCE_BUCKET
        if fits:
            step.free(storage)
        self.bucket.append((parameter, -1 if fits else storage))
        self.filled += parameter.numel

    def _reduce(self, step: MicroStep) -> None:
        """Parts of all gradients side by side; one that needs no padding is sent where it is."""
        members = [p for p, _ in self.bucket]
        if len(members) > 1 or any(p.numel % self.mesh.ranks for p in members):
            size = sum(self._whole_bytes(p) for p in members)
            step.free(step.alloc(size, REDUCED, REDUCE_SCATTER))
        for parameter, storage in self.bucket:
            if self.steps_on_host:
                self._to_host(step, self.part(parameter))
            if storage >= 0:
                step.free(storage)
        self.bucket, self.filled = [], 0

    def _to_host(self, step: MicroStep, numel: int) -> None:
        """A part on its way to the host: summed up on the device, its norm, its fp32 copy.

        Source: `partition_grads`, `_offload_grad_partition_at_boundary`. Counted in every
        micro-step, though norm and copy are the last one's alone.
        """
        part = step.alloc(numel * self.itemsize, REDUCED, REDUCE_SCATTER)
        for size in (FP64_BYTES, FP32_BYTES):
            step.free(step.alloc(numel * size, REDUCED, REDUCE_SCATTER))
        step.free(part)

    def end(self, step: MicroStep, phase: str) -> None:
        """The rest is reduced, and nothing stays whole but what is small."""
        if phase != "backward":
            return
        if self.bucket:
            self._reduce(step)
        if self.is_inside:
            self.coordinator.leave(step)
        self.coordinator.finish(step)

    # -- optimizer --------------------------------------------------------------------------

    def stepped(self, _parameters: Sequence[Parameter]) -> list[Parameter]:
        """One flat fp32 parameter a sub-group."""
        return self.masters

    def optimize(
        self, timeline: Timeline, _stepped: Sequence[Parameter], call: OptimizerCall
    ) -> None:
        """Norms, then one sub-group after the other; small parameters are whole again after it."""
        timeline.mark("optimizer")
        for storage in self.gathered:
            timeline.free(storage)
        if not self.steps_on_host:
            norm_events(timeline, [self.part(p) for p in self.trained])
        for group in () if self.steps_on_host else self.masters:
            flat = timeline.alloc(group.numel * self.itemsize, STEP)
            group.gradient = flat
            if self.itemsize != FP32_BYTES:
                group.gradient = timeline.alloc(group.numel * FP32_BYTES, STEP)
                timeline.free(flat)
            call.optimizer.step(timeline, [group], device=call.device)
            timeline.free(group.gradient)
        timeline.mark("zero_grad")
        for storage in self.gathered:
            timeline.operations.append(storage)


TIED_HEADS = ("decoder", "lm_head", "predictions", "output", "embed_out")
"""Names of output projections that share the embedding's weight."""
