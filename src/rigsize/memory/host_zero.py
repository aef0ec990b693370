"""What DeepSpeed's ZeRO-Offload keeps on the host, one rank.

Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py, at the defaults of
runtime/zero/offload_config.py (`pin_memory` True) and the torch backend for pinning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rigsize.memory.host_items import step_on_host
from rigsize.memory.host_records import HostItem, Weight
from rigsize.program.foreach import FP32_BYTES, HALF_BYTES
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy

__all__ = ["zero_items"]

SUB_GROUP = 10**9
"""Elements of a rank's partition that are stepped on together (`sub_group_size`, stage 3)."""
_OPTIMIZER = ("optimizer", "cpu")
_PARAMETERS = ("cpu-params", "cpu")


def zero_items(weights: Sequence[Weight], strategy: Strategy, mesh: Mesh) -> Iterator[HostItem]:
    """Master copies, their 16-bit mirror, gradients, states and parameters, as the stage has it."""
    trained = sum(weight.numel for weight in weights if weight.trainable)
    part = -(-trained // mesh.shard)
    compute = FP32_BYTES if strategy.policy.half_dtype == "float32" else HALF_BYTES
    if strategy.offload in _OPTIMIZER and trained:
        flat = Weight(name="flat", shape=(part,), itemsize=FP32_BYTES, trainable=True)
        states = step_on_host([flat], strategy).states_bytes
        yield HostItem(row="offload.optimizer_states", num_bytes=states)
        if strategy.parallel == "zero3":
            yield from _stage_3(part, compute)
        else:
            yield from _stage_2(part, compute, weights, strategy)
    if strategy.offload in _PARAMETERS and strategy.parallel == "zero3":
        total = -(-sum(weight.numel for weight in weights) // mesh.shard)
        yield HostItem(row="offload.parameters", num_bytes=total * compute, pinned=True)


def _stage_2(
    part: int, compute: int, weights: Sequence[Weight], strategy: Strategy
) -> Iterator[HostItem]:
    """Stages 1 and 2: fp32 partition, its gradient, the 16-bit mirror, one tensor's gradient.

    `single_partition_of_fp32_groups`, `param_buffer_of_bit16_for_cpu_offload_groups`,
    `temp_grad_buffer_for_cpu_offload`; while accumulating `accumulated_grads_in_cpu`.
    """
    largest = max(weight.numel for weight in weights if weight.trainable)
    yield HostItem(row="offload.master_copy", num_bytes=part * FP32_BYTES, pinned=True)
    yield HostItem(row="offload.parameters", num_bytes=part * compute, pinned=True)
    yield HostItem(row="offload.gradients", num_bytes=part * FP32_BYTES, pinned=True)
    yield HostItem(row="offload.gradients", num_bytes=largest * compute, pinned=True)
    if strategy.accumulation > 1:
        numels = [weight.numel for weight in weights if weight.trainable]
        trained = max(1, sum(numels))
        for numel in numels:  # each tensor in one rank's partition, on the average
            share = -(-numel * part // trained)
            yield HostItem(row="offload.gradients", num_bytes=share * compute, pinned=True)


def _stage_3(part: int, compute: int) -> Iterator[HostItem]:
    """Stage 3: fp32 sub-groups, the flat gradients, and the fp32 gradient of one sub-group.

    `fp32_partitioned_groups_flat`, `grad_partitions_flat_buffer`, `subgroup_gradient_buffer`: the
    step casts one sub-group after another.
    """
    for size in _sub_groups(part):
        yield HostItem(row="offload.master_copy", num_bytes=size * FP32_BYTES)
    yield HostItem(row="offload.gradients", num_bytes=part * compute, pinned=True)
    largest = min(part, SUB_GROUP)
    yield HostItem(row="offload.gradients", num_bytes=largest * FP32_BYTES, pinned=True)


def _sub_groups(part: int) -> list[int]:
    whole, rest = divmod(part, SUB_GROUP)
    return [SUB_GROUP] * whole + ([rest] if rest else [])
