"""One micro-step's operations, and how its first and its later runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rigsize.program.timeline import COMPUTE, Place, Timeline


@dataclass(slots=True)
class MicroStep:
    """Forward and backward over one micro-batch, as it runs once all workspaces are there."""

    timeline: Timeline
    """Which numbers the storages."""
    base: int
    """Its first storage; all others follow."""
    operations: list[int] = field(default_factory=list)
    gradients: list[tuple[int, int]] = field(default_factory=list)
    """(index into operations before which it became `.grad` or a part of it, storage): it lives
    on, and in a later micro-step it is added to the one that is there, and dies."""
    once: list[tuple[int, int]] = field(default_factory=list)
    """(index before which it happens, operation) of what only the very first micro-step does."""
    phases: list[tuple[int, str]] = field(default_factory=list)
    """(index, phase) where a phase begins."""

    def alloc(self, num_bytes: int, place: Place, stream: int = COMPUTE) -> int:
        """A new storage, allocated here; returns its id."""
        storage = self.timeline.storage(num_bytes, place, stream)
        self.operations.append(storage)
        return storage

    def free(self, storage: int) -> None:
        """Ends a storage's life here."""
        self.operations.append(~storage)

    def keep(self, storage: int) -> None:
        """From here on a gradient, or a flat tensor of gradients, that outlives the micro-step."""
        self.gradients.append((len(self.operations), storage))

    def alloc_once(self, num_bytes: int, place: Place, stream: int = COMPUTE) -> int:
        """A storage that the very first micro-step makes here, and later ones find."""
        storage = self.timeline.storage(num_bytes, place, stream)
        self.once.append((len(self.operations), storage))
        return storage

    def free_once(self, storage: int) -> None:
        """Frees, in the very first micro-step alone, what `alloc_once` made."""
        self.once.append((len(self.operations), ~storage))

    def begin(self, phase: str) -> None:
        """What follows belongs to this phase."""
        if not self.phases or self.phases[-1][1] != phase:
            self.phases.append((len(self.operations), phase))

    def release_rest(self) -> None:
        """What the step's caller holds to the end (the output, the loss) dies with the step."""
        alive: dict[int, None] = {}
        for operation in self.operations:
            if operation >= 0:
                alive[operation] = None
            else:
                alive.pop(~operation, None)
        kept = {storage for _, storage in self.gradients}
        self.operations.extend(~storage for storage in alive if storage not in kept)

    def with_workspaces(self) -> list[int]:
        """The first micro-step ever: workspaces are made where a thread's first product runs."""
        first = list(self.operations)
        for index, operation in reversed(self.once):
            first.insert(index, operation)
        return first

    def accumulating(self, shift: int) -> list[int]:
        """A later micro-step, on storages `shift` further: each new gradient is added and dies.

        What was there before the micro-step keeps its number.

        `grad += new` works in place: torch/csrc/autograd/functions/accumulate_grad.h, the branch
        for a defined `variable_grad`.
        """
        base = self.base
        moved = [
            o if ~base < o < base else o + shift if o >= 0 else o - shift for o in self.operations
        ]
        operations: list[int] = []
        start = 0
        for index, storage in self.gradients:
            operations += [*moved[start:index], ~(storage + shift)]
            start = index
        return operations + moved[start:]

    def phase_starts(self) -> dict[str, list[tuple[int, str]]]:
        """Where the phases begin in each of the three forms of the micro-step."""
        # A workspace put in where a phase begins is made in it; a gradient was born before it.
        made = [index + 1 for index, _ in self.once]
        died = [index for index, _ in self.gradients]
        return {
            "first": _moved(self.phases, made),
            "micro": list(self.phases),
            "accumulate": _moved(self.phases, died),
        }


def _moved(phases: Sequence[tuple[int, str]], counted: list[int]) -> list[tuple[int, str]]:
    """The starts, each further by how many of `counted` are not past it."""
    return [(start + sum(place <= start for place in counted), phase) for start, phase in phases]
