"""AdaLoRA's step behind the optimizer's: every weight's importance, then which ranks stay.

Mirrors `RankAllocator.update_ipt` and `mask_to_budget` of peft 0.21, tuners/adalora/layer.py, which
`run.rank_allocation` calls for real while all gradients are alive. r is a module's rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rigsize.program.foreach import FP32_BYTES, place
from rigsize.program.timeline import Parameter, Timeline

__all__ = ["RankAllocator"]

_KEPT = place("optimizer_states", "adalora.RankAllocator")
_SHORT = place("temporaries", "adalora.RankAllocator")


@dataclass(slots=True)
class RankAllocator:
    """What it keeps from step to step, as storage ids."""

    kept: dict[str, list[int]] = field(default_factory=dict)
    """By parameter name: importance, its running mean, its running uncertainty."""

    def update(self, timeline: Timeline, parameters: Sequence[Parameter]) -> None:
        """One call of `update_and_allocate`, of a step that masks ranks as nearly all do."""
        ranked = [p for p in parameters if p.trainable and ".lora_" in p.name]
        for parameter in ranked:
            self._importance(timeline, parameter)
        _mask(timeline, ranked)

    def _importance(self, timeline: Timeline, parameter: Parameter) -> None:
        size = parameter.num_bytes
        if parameter.name not in self.kept:
            self.kept[parameter.name] = [timeline.alloc(size, _KEPT) for _ in range(3)]

        def new(*used_up: int) -> int:
            """The result of an operator, after which its operands go."""
            storage = timeline.alloc(size, _SHORT)
            for operand in used_up:
                timeline.free(operand)
            return storage

        # Each figure takes the place of the one before, of the same size: the storage that lives
        # on is told by the old one's id, so that a step ends as it began and can be repeated.
        timeline.free(new(new()))  # (p * p.grad).abs()
        old, share = new(), new()  # beta1 * mean, (1 - beta1) * importance
        timeline.free(new(old, share))
        old = new()  # beta2 * uncertainty
        share = new(new(new()))  # (1 - beta2) * (importance - mean).abs()
        timeline.free(new(old, share))


def _mask(timeline: Timeline, ranked: Sequence[Parameter]) -> None:
    """`mask_to_budget`: scores of all ranks, the least that stays, zeros in the others."""
    held: list[int] = []
    last = -1
    for parameter in ranked:
        entry = timeline.alloc(parameter.num_bytes, _SHORT)
        if last >= 0:
            timeline.free(last)
        last = entry
        if ".lora_E." in parameter.name:
            held.append(entry)  # kept by name
            last = -1
        else:
            held.append(timeline.alloc(_rank(parameter) * FP32_BYTES, _SHORT))  # the mean
    values = [p for p in ranked if ".lora_E." in p.name]
    for parameter in values:
        vector = _rank(parameter) * FP32_BYTES
        both = timeline.alloc(2 * vector, _SHORT)
        summed = timeline.alloc(vector, _SHORT)
        held.append(timeline.alloc(vector, _SHORT))
        timeline.free(summed)
        timeline.free(both)
    timeline.scratch(sum(_rank(p) for p in values) * FP32_BYTES, _SHORT)
    for parameter in values:
        timeline.scratch(_rank(parameter), _SHORT)
    for storage in [*held, *([last] if last >= 0 else [])]:
        timeline.free(storage)


def _rank(parameter: Parameter) -> int:
    """`lora_A` is [r, in], `lora_E` [r, 1], `lora_B` [out, r]."""
    return parameter.shape[1] if ".lora_B." in parameter.name else parameter.shape[0]
