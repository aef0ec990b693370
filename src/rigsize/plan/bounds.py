"""Bounds of a rank's memory from below, without a Program and without a replay.

What a replay can never do without: the weights, states and gradients that stay on the card, and
at the end of a forward pass, beside them, everything that its backward pass will read. The second
is counted in the trace itself: storages born in the forward phase and not freed in it. Kernels'
own outputs and scratch, rounding and fragmentation come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rigsize.hardware.accelerators import Accelerator
from rigsize.memory.outside import outside
from rigsize.plan.records import Candidate, Way
from rigsize.program.bound import trained_and_states
from rigsize.program.categories import backbone_of, weight_category
from rigsize.program.lower import SAVES
from rigsize.program.mesh import Mesh
from rigsize.program.timeline import Parameter
from rigsize.spec.strategy import SHARDS_WEIGHTS, Strategy
from rigsize.trace.profile import Body, Profile, Ref
from rigsize.trace.sizes import Expression, evaluate, monomials_at

__all__ = [
    "Held",
    "card_room_bytes",
    "held_by",
    "least_bytes",
    "parameters_of",
    "saved_bytes",
    "sent_bytes",
]

_SHARDS_GRADIENTS = (*SHARDS_WEIGHTS, "zero2")
_SHARDS_STATES = (*_SHARDS_GRADIENTS, "zero1")
_WEIGHTS_ON_HOST = ("cpu", "cpu-params")
_STATES_ON_HOST = ("cpu", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one copy of a way's model takes on the cards, in bytes, before it is spread."""

    weights: int
    gradients: int
    """Of a step's end: DDP's buckets with them."""
    states: int
    """Master copies with them."""
    of: Strategy

    def at_step_end(self, shard: int) -> int:
        """Bytes of one rank before the optimizer step: all three, or what the host leaves."""
        return self._weights(shard) + self._states(shard) + self._gradients(shard)

    def in_forward(self, shard: int, accumulation: int) -> int:
        """Bytes of one rank beside a forward pass: gradients only of an earlier micro-step."""
        kept = self._gradients(shard) if accumulation > 1 else 0
        return self._weights(shard) + self._states(shard) + kept

    def _weights(self, shard: int) -> int:
        if self.of.offload in _WEIGHTS_ON_HOST:
            return 0
        return self.weights // (shard if self.of.parallel in SHARDS_WEIGHTS else 1)

    def _gradients(self, shard: int) -> int:
        """Where the step is the host's, gradients leave the card as they come."""
        if self.of.offload in _STATES_ON_HOST or self.of.optimizer_in_backward:
            return 0
        return self.gradients // (shard if self.of.parallel in _SHARDS_GRADIENTS else 1)

    def _states(self, shard: int) -> int:
        if self.of.offload in _STATES_ON_HOST:
            return 0
        return self.states // (shard if self.of.parallel in _SHARDS_STATES else 1)


def parameters_of(profile: Profile) -> list[Parameter]:
    """The whole model's, as a Program has them."""
    backbone, adapted = backbone_of(profile), bool(profile.key.adapter)
    found = []
    for name, tensor, group in profile.full_tensors():
        category = weight_category(name, group, backbone, adapted=adapted)
        if category.startswith("weights") and not name.startswith("scale:"):
            found.append(Parameter(name, tensor.shape, tensor.itemsize, tensor.trainable, -1))
    return found


def held_by(way: Way, parameters: list[Parameter]) -> Held:
    """What the way's model takes; quantised weights and 16-bit copies count as nothing."""
    strategy, policy = way.strategy, way.strategy.policy
    stored = 0 if strategy.stored_as != "none" else policy.weight_bytes
    weights = stored * sum(p.numel for p in parameters)
    if not way.workload.training:
        return Held(weights=weights, gradients=0, states=0, of=strategy)
    trained, states = trained_and_states(parameters, strategy)
    buckets = strategy.parallel == "ddp" and not strategy.bucket_view
    return Held(
        weights=weights,
        gradients=policy.gradient_bytes * (1 + buckets) * trained,
        states=policy.master_bytes * trained + states,
        of=strategy,
    )


def saved_bytes(profile: Profile, point: Mapping[str, int]) -> int:
    """What is alive at the end of a forward pass of this size, of what the pass itself made."""
    body = profile.body_at(point)
    if body is None or profile.key.use != "training":
        return 0
    values = monomials_at(point)
    kept = {
        group: sum(evaluate(size, values) for size in sizes)
        for group, sizes in _kept(profile, body).items()
    }
    return sum(
        kept.get(group, 0) for group in (0, *(traced for *_, traced in profile.full_layers()))
    )


def sent_bytes(profile: Profile, point: Mapping[str, int]) -> int:
    """What `offload=activations` copies to the host in a micro-step at least.

    The copies that were traced; those of fused attention's own outputs come on top.
    """
    body = profile.body_at(point)
    if body is None:
        return 0
    values = monomials_at(point)
    by_group: dict[int, int] = {}
    for phase, group, number in body.schedule:
        if phase == "forward":
            events = (e for e in body.templates[number] if e.label and e.label[0] in SAVES)
            sent = sum(evaluate(event.numbers[0], values) for event in events)
            by_group[group] = by_group.get(group, 0) + sent
    layers = (traced for *_, traced in profile.full_layers())
    return sum(by_group.get(group, 0) for group in (0, *layers))


def _kept(profile: Profile, body: Body) -> dict[int, list[Expression]]:
    """By traced group: the sizes of its storages that outlive the forward phase.

    A kernel's own outputs (fused attention's, say) are born when it is lowered and do not count.
    """
    alive: dict[tuple[int, int], Expression] = {}
    layers = profile.traced_layers()
    for phase, group, number in body.schedule:
        if phase != "forward":
            continue
        for event in body.templates[number]:
            if event.kind == "alloc" and event.ref is not None:
                alive[_storage(event.ref, group, layers)] = event.size
            elif event.kind == "free" and event.ref is not None:
                alive.pop(_storage(event.ref, group, layers), None)
    kept: dict[int, list[Expression]] = {}
    for (owner, _), size in alive.items():
        kept.setdefault(owner, []).append(size)
    return kept


def _storage(ref: Ref, group: int, layers: list[list[int]]) -> tuple[int, int]:
    """(traced group that bore it, its ordinal there) of a reference from `group`."""
    kind, ordinal = ref[0], ref[-1]
    if kind == "own":
        return group, ordinal
    if kind == "near":
        return group + ref[1], ordinal
    if kind == "end":
        _, stack, end, offset, _ = ref
        return (layers[stack][-1] if end else layers[stack][0]) + offset, ordinal
    return (0 if kind == "global" else -1), ordinal


def least_bytes(held: Held, saved: int, candidate: Candidate) -> int:
    """Bytes of the allocator that a rank of the candidate cannot do without."""
    shard = candidate.mesh.shard
    forward = held.in_forward(shard, candidate.accumulation) + saved
    return max(forward, held.at_step_end(shard))


def card_room_bytes(mesh: Mesh, accelerator: Accelerator) -> int:
    """What a card has for the allocator when context and communicators are at their largest."""
    return (accelerator.capacity_bytes or 0) - outside(mesh, accelerator).high
