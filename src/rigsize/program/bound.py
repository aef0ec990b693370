"""What a rank cannot do without: a bound from below, without a Program and without a replay."""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.program.mesh import Mesh
from rigsize.program.optimizer_sizes import state_bytes
from rigsize.program.timeline import Parameter
from rigsize.spec.strategy import Strategy

__all__ = ["least_states_bytes", "trained_and_states"]

_ON_HOST = ("cpu", "cpu-params", "optimizer")


def least_states_bytes(
    parameters: Sequence[Parameter], strategy: Strategy, mesh: Mesh, *, training: bool
) -> int:
    """Weights, in training with gradients, DDP's buckets, master copies and states, in bytes.

    As if all were spread over the shards. What may lie on the host, is stored in fewer bytes
    than the precision says, or dies before the next is born, does not count.
    """
    policy = strategy.policy
    offloaded = strategy.offload in _ON_HOST
    weights = 0
    if not offloaded and strategy.stored_as == "none":
        weights = policy.weight_bytes * sum(p.numel for p in parameters)
    if not training or offloaded:
        return weights // mesh.shard
    buckets = strategy.parallel == "ddp" and not strategy.bucket_view
    gradients = 0 if strategy.optimizer_in_backward else policy.gradient_bytes * (1 + buckets)
    trained, states = trained_and_states(parameters, strategy)
    return (weights + (gradients + policy.master_bytes) * trained + states) // mesh.shard


def trained_and_states(parameters: Sequence[Parameter], strategy: Strategy) -> tuple[int, int]:
    """Elements that are trained, and bytes of the optimizer's states for all of them, whole."""
    policy = strategy.policy
    trained = [p for p in parameters if p.trainable]
    states = state_bytes(
        strategy.optimizer,
        [p.shape for p in trained],
        policy.master_bytes or policy.weight_bytes,
        names=[p.name for p in trained],
    )
    return sum(p.numel for p in trained), states
