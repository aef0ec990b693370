"""One micro-step's operations, and how its first and its later runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter

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
    opening: list[tuple[int, int]] = field(default_factory=list)
    """The same of what only a step's first micro-step does; its storages outlive it."""
    closing: list[tuple[int, int]] = field(default_factory=list)
    """The same of what only a step's last micro-step does: where gradients travel."""
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

    def open(self, operation: int) -> None:
        """Happens here in a step's first micro-step alone."""
        self.opening.append((len(self.operations), operation))

    def close(self, operation: int) -> None:
        """Happens here in a step's last micro-step alone, on storages that are not its own."""
        self.closing.append((len(self.operations), operation))

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

    def first(self, *, alone: bool) -> list[int]:
        """The first micro-step ever, which also makes the workspaces; `alone` in its step."""
        return _woven(self.operations, self.once, self.opening, self.closing if alone else ())

    def micro(self, *, alone: bool) -> list[int]:
        """A step's first micro-step; `alone` it is the last one, too."""
        return _woven(self.operations, self.opening, self.closing if alone else ())

    def accumulating(self, shift: int, *, last: bool = False) -> list[int]:
        """A later micro-step, on storages `shift` further: each new gradient is added and dies.

        What was there before the micro-step keeps its number.

        `grad += new` works in place: torch/csrc/autograd/functions/accumulate_grad.h, the branch
        for a defined `variable_grad`.
        """
        base = self.base
        moved = [
            o if ~base < o < base else o + shift if o >= 0 else o - shift for o in self.operations
        ]
        died = [(index, ~(storage + shift)) for index, storage in self.gradients]
        return _woven(moved, died, self.closing if last else ())

    def phase_starts(self, *, alone: bool) -> dict[str, list[tuple[int, str]]]:
        """Where the phases begin in each of the forms of the micro-step."""
        # A workspace put in where a phase begins is made in it; a gradient was born before it.
        once, opened = ([index + 1 for index, _ in made] for made in (self.once, self.opening))
        died = [index for index, _ in self.gradients]
        closed = [index for index, _ in self.closing]
        at_once = closed if alone else []
        return {
            "first": _moved(self.phases, once + opened + at_once),
            "micro": _moved(self.phases, opened + at_once),
            "accumulate": _moved(self.phases, died),
            "last": _moved(self.phases, died + closed),
        }


def _woven(operations: list[int], *extras: Sequence[tuple[int, int]]) -> list[int]:
    """The operations with each (index, operation) put in before that index.

    Of several at one place the earlier list goes first.
    """
    woven: list[int] = []
    start = 0
    for index, operation in sorted(chain(*extras), key=itemgetter(0)):
        woven += operations[start:index]
        woven.append(operation)
        start = index
    return woven + operations[start:]


def _moved(phases: Sequence[tuple[int, str]], counted: list[int]) -> list[tuple[int, str]]:
    """The starts, each further by how many of `counted` are not past it."""
    return [(start + sum(place <= start for place in counted), phase) for start, phase in phases]
