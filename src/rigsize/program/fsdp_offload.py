"""FSDP2's `CPUOffloadPolicy`: shards, their gradients and the optimizer are in host memory.

Mirrors the branches on `offload_to_cpu` in torch/distributed/fsdp/_fully_shard/_fsdp_param.py
(`all_gather_inputs`) and _fsdp_collectives.py (`_get_param_all_gather_inputs`, `foreach_reduce`),
torch 2.13. What the host holds is in `memory.host_items`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.fsdp import BUFFERS, FullySharded
from rigsize.program.fsdp_group import Buffer, Group, Sharded
from rigsize.program.micro_step import MicroStep
from rigsize.program.parallel import OptimizerCall
from rigsize.program.timeline import COPY_IN, Parameter, Place, Timeline

__all__ = ["OffloadedShards"]


class OffloadedShards(FullySharded):
    """One rank of `fully_shard` whose shards come to the device to be gathered."""

    def load(self, timeline: Timeline, parameter: Parameter, place: Place) -> int:
        """A shard has a number and no bytes of the device."""
        before = len(timeline.operations)
        storage = super().load(timeline, parameter, place)
        del timeline.operations[before:]
        return storage

    def gather_inputs(self, step: MicroStep, group: Group, *, once: bool) -> list[Buffer]:
        """Each shard is copied in and cast alone: no flat tensor (`use_foreach_copy`)."""
        inputs = [self.gather_input(step, p, once=once, stream=COPY_IN) for p in group.parameters]
        return [buffer for buffer in inputs if buffer is not None]

    def gather_input(
        self, step: MicroStep, p: Sharded, *, once: bool, stream: int
    ) -> Buffer | None:
        """`self._sharded_param_data.to(self.device)`, and its cast while the copy is there."""
        size = p.shard.num_bytes
        shard = self.alloc(step, size, BUFFERS, "copy_in", once=once, stream=stream)
        cast = super().gather_input(step, p, once=once, stream=stream)
        if cast is None:
            return shard
        self.free(step, shard)
        return cast

    def take(self, step: MicroStep, group: Group, output: int, _reduced: Sequence[Sharded]) -> None:
        """Gradients are copied to the host; what was reduced dies with the function.

        HSDP holds it to the end of backward, then lets it go.
        """
        step.timeline.recategorise(output, BUFFERS)
        if group.all_reduce_input != output:
            step.free(output)

    def optimize(
        self, timeline: Timeline, _stepped: Sequence[Parameter], _call: OptimizerCall
    ) -> None:
        """Clipping, states and the step are the host's."""
        timeline.mark("optimizer")
