"""What a run does on the device between its steps: evaluation and export, as slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rigsize.program.timeline import Place

if TYPE_CHECKING:
    from rigsize.program.build import Program

__all__ = ["add_moments", "logits_bytes"]

_PREVIOUS = Place("logits", "evaluation", op="previous_output", basis="derived")
_WHOLE = Place("weights.gathered", "export", op="full_tensor", basis="derived")


def add_moments(program: Program) -> None:
    """Adds the slices `evaluation` and, where ranks hold shards, `export` to a training Program."""
    if not program.training:
        return
    forward = _forward(program)
    if forward:
        program.slices["evaluation"] = _evaluation(program, forward)
    largest = max((p.num_bytes for p in program.parameters), default=0)
    if program.mesh.shard > 1 and largest:
        storage = program.timeline.storage(largest, _WHOLE)
        program.slices["export"] = [storage, ~storage]


def _forward(program: Program) -> list[int]:
    """A micro-step's operations before backward; empty where they end what began elsewhere."""
    starts = program.phase_starts.get("micro", [])
    end = next((index for index, phase in starts if phase == "backward"), 0)
    operations = program.slices["micro"][:end]
    born = {operation for operation in operations if operation >= 0}
    return operations if all(~o in born for o in operations if o < 0) else []


def _evaluation(program: Program, forward: list[int]) -> list[int]:
    """A forward pass beside the output of the one before, as `train/evaluate.py` leaves it.

    From above: without gradients most of what is kept here for backward would die at once.
    """
    alive: dict[int, None] = {}
    for operation in forward:
        if operation >= 0:
            alive[operation] = None
        else:
            del alive[~operation]
    ended = [*forward, *(~storage for storage in reversed(alive))]
    size = logits_bytes(program)
    if not size:
        return ended
    previous = program.timeline.storage(size, _PREVIOUS)
    return [previous, *ended, ~previous]


def logits_bytes(program: Program) -> int:
    """The largest tensor of logits of one micro-batch, 0 without any."""
    places, sizes = program.timeline.places, program.timeline.sizes
    of_step = (o for o in program.slices["micro"] if o >= 0 and places[o].category == "logits")
    return max((sizes[o] for o in of_step), default=0)
