"""Bounds of a rank's memory from below, without a Program and without a replay.

What a replay can never do without: the weights, states and gradients that stay on the card, beside
them what a pass has alive at its peak (`plan.passes`), and before them what loading takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rigsize.hardware.accelerators import Accelerator
from rigsize.memory.outside import outside
from rigsize.plan.passes import Passes, Spread
from rigsize.plan.records import Candidate, Way
from rigsize.program.bound import trained_and_states
from rigsize.program.categories import backbone_of, weight_category
from rigsize.program.foreach import FP32_BYTES
from rigsize.program.fsdp_group import policy_of
from rigsize.program.lower import HALF_BYTES
from rigsize.program.mesh import Mesh
from rigsize.program.timeline import Parameter
from rigsize.program.zero import REDUCE_BUCKET
from rigsize.program.zero3 import SUB_GROUP
from rigsize.spec.strategy import FSDPS, SHARDS_WEIGHTS, Strategy
from rigsize.spec.zero import ZEROS
from rigsize.trace.profile import Profile

__all__ = [
    "Held",
    "Sums",
    "card_room_bytes",
    "held_by",
    "least_bytes",
    "parameters_of",
    "sums_of",
]

_SHARDS_GRADIENTS = (*SHARDS_WEIGHTS, "zero2")
_SHARDS_STATES = (*_SHARDS_GRADIENTS, "zero1")
_WEIGHTS_ON_HOST = ("cpu", "cpu-params")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one copy of a way's model takes on the cards, in bytes, before it is spread."""

    weights: int
    gradients: int
    states: int
    """Master copies with them."""
    always: int
    """Of every rank, from loading on: DDP's buckets, DeepSpeed's."""
    loading: int
    """Of every rank before anything is spread: DeepSpeed is given the whole model."""
    bucket: int
    """Of every rank, from a pass's first gradient to its end."""
    of: Strategy

    def at_step_end(self, shard: int) -> int:
        """Bytes of one rank at the optimizer step: all of it, or what the host leaves."""
        kept = self._kept(shard)
        if self.of.parallel == "zero1":
            kept //= shard  # reduced when backward ends, of which each rank has its part
        return self._weights(shard) + self._states(shard) + self.always + kept + self._cast(shard)

    def beside_pass(self, shard: int, accumulation: int) -> int:
        """Bytes of one rank beside a pass: gradients only of an earlier micro-step."""
        kept = self._kept(shard) if accumulation > 1 else self._flat(shard)
        if self.of.parallel == "zero1" and accumulation > 1:
            kept += self.bucket  # that of a step's first micro-step stays to its last
        return self._weights(shard) + self._states(shard) + self.always + kept

    def spread(self, shard: int, accumulation: int) -> Spread:
        """How what a pass makes is shared; what is added to earlier gradients dies at once."""
        kept = 0.0
        if accumulation == 1 and self.gradients and not self._flat(shard):
            kept = self._kept(shard) / self.gradients
        if self.of.parallel not in FSDPS:
            there = self.of.parallel == "zero1" and accumulation > 1
            return Spread(kept_share=kept, bucket_bytes=0 if there else self.bucket)
        policy = policy_of(self.of)
        ratio = 1 if policy.reduce_bytes is None else policy.reduce_bytes // HALF_BYTES
        return Spread(kept_share=kept, gathers=True, reduced_ratio=ratio)

    def _weights(self, shard: int) -> int:
        if self.of.offload in _WEIGHTS_ON_HOST:
            return 0
        return self.weights // (shard if self.of.parallel in SHARDS_WEIGHTS else 1)

    def _kept(self, shard: int) -> int:
        """Gradients that wait for the step; none where they leave the card as they come."""
        parallel = self.of.parallel
        if self.of.optimizer_in_backward or (parallel == "ddp" and self.of.bucket_view):
            return 0
        if self.of.gradients_leave:
            return 0
        return self.gradients // (shard if parallel in _SHARDS_GRADIENTS else 1)

    def _cast(self, shard: int) -> int:
        """ZeRO steps on an fp32 copy of its 16-bit gradients, stage 3 on a sub-group's at a time.

        Source: `Zero._fp32_gradient`, `Zero3.optimize` of `rigsize.program`.
        """
        parallel, policy = self.of.parallel, self.of.policy
        if parallel not in ZEROS or policy.half_dtype == "float32" or not self.gradients:
            return 0
        if self.of.steps_on_host:
            return 0
        numel = self.gradients // policy.gradient_bytes // shard
        return FP32_BYTES * (min(numel, SUB_GROUP) if parallel == "zero3" else numel)

    def _flat(self, shard: int) -> int:
        """ZeRO-3's gradients, which have their place from loading on."""
        return self._kept(shard) if self.of.parallel == "zero3" else 0

    def _states(self, shard: int) -> int:
        if self.of.steps_on_host:
            return 0
        return self.states // (shard if self.of.parallel in _SHARDS_STATES else 1)


def parameters_of(profile: Profile) -> list[Parameter]:
    """The whole model's, as a Program has them."""
    backbone, adapted = backbone_of(profile), bool(profile.key.adapter)
    found = []
    for name, tensor, group in profile.full_tensors():
        category = weight_category(name, group, backbone, adapted=adapted)
        if category.startswith("weights") and not name.startswith("scale:"):
            one = Parameter(name, tensor.shape, tensor.itemsize, tensor.trainable, -1)
            one.layer = group
            found.append(one)
    return found


class Sums(NamedTuple):
    """Of a model's parameters under one optimizer and one precision."""

    numel: int
    trained: int
    largest: int
    """Elements of the largest that is trained."""
    states: int
    """Bytes of the optimizer's."""


def sums_of(parameters: Sequence[Parameter], strategy: Strategy, *, training: bool) -> Sums:
    """What `held_by` asks of them; nothing is trained in inference."""
    numel = sum(p.numel for p in parameters)
    if not training:
        return Sums(numel, 0, 0, 0)
    trained, states = trained_and_states(parameters, strategy)
    largest = max((p.numel for p in parameters if p.trainable), default=0)
    return Sums(numel, trained, largest, states)


def held_by(way: Way, sums: Sums) -> Held:
    """What the way's model takes; quantised weights and 16-bit copies count as nothing."""
    strategy, policy = way.strategy, way.strategy.policy
    stored = 0 if strategy.stored_as != "none" else policy.weight_bytes
    weights, gradients = stored * sums.numel, policy.gradient_bytes * sums.trained
    parallel, always, loading, bucket = strategy.parallel, 0, 0, 0
    if parallel == "ddp":
        always = gradients
    elif parallel in ZEROS and way.workload.training:
        loading = weights if parallel == "zero3" else weights + stored * sums.trained
        if parallel == "zero3":
            always = REDUCE_BUCKET * stored
        elif strategy.offload == "optimizer":
            always = stored * sums.largest
        bucket = REDUCE_BUCKET * stored if parallel in ("zero1", "zero2") else 0
    return Held(
        weights=weights,
        gradients=gradients,
        states=policy.master_bytes * sums.trained + sums.states,
        always=always,
        loading=loading,
        bucket=bucket,
        of=strategy,
    )


def least_bytes(held: Held, passes: Passes | None, candidate: Candidate) -> int:
    """Bytes of the allocator that a rank of the candidate cannot do without."""
    shard, accumulation = candidate.mesh.shard, candidate.accumulation
    in_pass = held.beside_pass(shard, accumulation)
    if passes is not None:
        in_pass += passes.peak_bytes(candidate.point, held.spread(shard, accumulation))
    return max(held.loading, in_pass, held.at_step_end(shard))


def card_room_bytes(mesh: Mesh, accelerator: Accelerator) -> int:
    """What a card has for the allocator when context and communicators are at their largest."""
    return (accelerator.capacity_bytes or 0) - outside(mesh, accelerator).high
