"""One rank's timeline: allocations and frees in order, each with its place and its reason.

This is the Program. It is kept in columns because a replay passes over tens of thousands of
events; `Timeline.events` shows them as records. An operation is a storage id >= 0 for an
allocation and its complement (~id) for a free. A storage belongs to the stream on which it was
allocated: 0, the compute stream, unless `Timeline.streams` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

Action = Literal["alloc", "free"]
COMPUTE, COPY_IN, ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE = range(5)
"""The streams of a rank: torch's current one, and those of FSDP2's `FSDPCommContext`."""


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

    __slots__ = ("marks", "operations", "places", "sizes", "streams")

    def __init__(self) -> None:
        self.operations: list[int] = []
        self.sizes: list[int] = []
        """Requested bytes by storage id."""
        self.places: list[Place] = []
        """By storage id."""
        self.streams: dict[int, int] = {}
        """By storage id, of those that are not on the compute stream."""
        self.marks: list[tuple[int, str]] = []
        """(index into operations, what begins there), for naming the moment of the peak."""

    def storage(self, num_bytes: int, place: Place, stream: int = COMPUTE) -> int:
        """A new storage that no operation allocates yet; returns its id."""
        storage = len(self.sizes)
        self.sizes.append(num_bytes)
        self.places.append(place)
        if stream != COMPUTE:
            self.streams[storage] = stream
        return storage

    def alloc(self, num_bytes: int, place: Place, stream: int = COMPUTE) -> int:
        """A new storage, allocated here; returns its id."""
        storage = self.storage(num_bytes, place, stream)
        self.operations.append(storage)
        return storage

    def free(self, storage: int) -> None:
        """Ends a storage's life."""
        self.operations.append(~storage)

    def scratch(self, num_bytes: int, place: Place) -> None:
        """Allocated and freed inside one kernel wrapper."""
        if num_bytes > 0:
            self.free(self.alloc(num_bytes, place))

    def recategorise(self, storage: int, category: str) -> None:
        """Another ledger row for a storage; where it comes from stays."""
        self.places[storage] = _recategorised(self.places[storage], category)

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
                self.streams.get(storage, COMPUTE),
                self.places[storage],
            )


@cache
def _recategorised(place: Place, category: str) -> Place:
    return replace(place, category=category)


@dataclass(slots=True)
class Parameter:
    """A parameter of the Program, or a rank's shard of it: what the optimizer steps see."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    """Bytes an element of the weight."""
    trainable: bool
    storage: int
    """The weight's storage id."""
    gradient: int = -1
    """The storage id of `.grad`, -1 when there is none; several may be views of one storage."""
    gradient_stays: bool = False
    """The gradient is a view of a buffer that outlives the step: `zero_grad` frees nothing."""
    category: str = ""
    """The ledger row of the weight."""
    layer: int = 0
    """The layer it belongs to (from 1), 0 outside all."""
    packed_bytes: int = 0
    """Of a weight that is stored packed (4 bits an element, or padded); 0 of any other."""

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
        return self.packed_bytes or self.numel * self.itemsize


def trainable(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Those with a gradient to step on."""
    return [p for p in parameters if p.trainable and p.gradient >= 0]
