"""One rank's timeline: allocations and frees in order, each with its place and its reason.

This is the Program. It is kept in columns because a replay passes over tens of thousands of
events; `Timeline.events` shows them as records. An operation is a storage id >= 0 for an
allocation and its complement (~id) for a free. Streams: 0 is the compute stream, the only one
of a single device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Action = Literal["alloc", "free"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes come from: shared by all storages of one origin."""

    category: str
    """The ledger row, dotted: `weights.blocks`, `activations.attention`, `logits`, ..."""
    phase: str
    """load, forward, backward, optimizer, zero_grad."""
    module: str = ""
    """Module path with `*` for the layer's number."""
    op: str = ""
    """Operator or rule that allocates."""
    basis: str = "traced"
    """traced, derived (a rule read in the source of torch) or assumed."""


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """One event as a record."""

    order: int
    action: Action
    storage: int
    num_bytes: int
    stream: int
    place: Place


class Timeline:
    """Allocations and frees in order; append-only."""

    __slots__ = ("marks", "operations", "places", "sizes")

    def __init__(self) -> None:
        self.operations: list[int] = []
        self.sizes: list[int] = []
        """Requested bytes by storage id."""
        self.places: list[Place] = []
        """By storage id."""
        self.marks: list[tuple[int, str]] = []
        """(index into operations, what begins there), for naming the moment of the peak."""

    def alloc(self, num_bytes: int, place: Place) -> int:
        """A new storage; returns its id."""
        storage = len(self.sizes)
        self.sizes.append(num_bytes)
        self.places.append(place)
        self.operations.append(storage)
        return storage

    def free(self, storage: int) -> None:
        """Ends a storage's life."""
        self.operations.append(~storage)

    def scratch(self, num_bytes: int, place: Place) -> None:
        """Allocated and freed inside one kernel wrapper."""
        if num_bytes > 0:
            self.free(self.alloc(num_bytes, place))

    def mark(self, label: str) -> None:
        """Names what begins here."""
        self.marks.append((len(self.operations), label))

    def events(self, start: int = 0) -> Iterator[TimelineEvent]:
        """The operations from `start` on, as records."""
        for order in range(start, len(self.operations)):
            operation = self.operations[order]
            storage = operation if operation >= 0 else ~operation
            yield TimelineEvent(
                order,
                "alloc" if operation >= 0 else "free",
                storage,
                self.sizes[storage],
                0,
                self.places[storage],
            )


@dataclass(slots=True)
class Parameter:
    """A parameter of the Program: what the optimizer steps see of it."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    """Bytes an element of the weight."""
    trainable: bool
    storage: int
    """The weight's storage id."""
    gradient: int = -1
    """The storage id of `.grad`, -1 when there is none."""

    @property
    def numel(self) -> int:
        """Elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def num_bytes(self) -> int:
        """Of the weight."""
        return self.numel * self.itemsize


def trainable(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Those with a gradient to step on."""
    return [p for p in parameters if p.trainable and p.gradient >= 0]
