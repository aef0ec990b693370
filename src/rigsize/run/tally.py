"""Live allocations event by event, their peak, and who held the bytes then.

An address is used again as soon as it is free, so a category belongs to the allocation that was
alive at an address when the address was named, not to the address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["CATEGORIES", "REST", "Allocation", "Peak", "Tally"]

REST = "rest"
CATEGORIES = ("weights", "gradients", "optimizer_states", "inputs", REST)


@dataclass(slots=True)
class Allocation:
    """One block of memory while it lives."""

    num_bytes: int
    op: str = ""
    """The operator that asked for it, outermost first; empty for what was there before."""
    phase: str = ""
    step: int = 0
    category: str = REST
    """Known once its address is named; until then it is of the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The moment of the most bytes."""

    step: int
    """From 1; 0 while the model is loaded."""
    phase: str
    live: tuple[Allocation, ...]

    @property
    def total_bytes(self) -> int:
        """All that was alive."""
        return sum(one.num_bytes for one in self.live)

    def by_category(self) -> dict[str, int]:
        """Bytes of each of CATEGORIES."""
        totals = dict.fromkeys(CATEGORIES, 0)
        for one in self.live:
            totals[one.category] += one.num_bytes
        return totals


class Tally:
    """Counts bytes; with `keeps_peak` it also remembers what was alive at the peak."""

    def __init__(self, kept: Mapping[int, int], *, keeps_peak: bool = False) -> None:
        self._live = {address: Allocation(size) for address, size in kept.items()}
        self._keeps_peak = keeps_peak
        self._base = dict(self._live)
        self._log: list[tuple[int, Allocation | None]] = []
        self._height = 0
        """Of the log, at the peak of this window; 0 where the peak was before."""
        self.bytes = self.peak_bytes = sum(kept.values())
        self.phase, self.step = "load", 0
        self.peak = Peak(step=0, phase="load", live=tuple(self._live.values()))

    def add(self, address: int, num_bytes: int, op: str = "") -> None:
        """An allocation is born."""
        made = Allocation(num_bytes, op, self.phase, self.step)
        self._live[address] = made
        self.bytes += num_bytes
        self._note(address, made)
        if self.bytes > self.peak_bytes:
            self.peak_bytes, self._height = self.bytes, len(self._log)
            self._moment = (self.step, self.phase)

    def remove(self, address: int) -> None:
        """It dies; what was not counted when it was born is not counted when it dies."""
        gone = self._live.pop(address, None)
        if gone is not None:
            self.bytes -= gone.num_bytes
            self._note(address, None)

    def name(self, categories: Mapping[int, str]) -> None:
        """What lives at these addresses now is of these categories."""
        for address, category in categories.items():
            if address in self._live:
                self._live[address].category = category

    def close_window(self) -> None:
        """Forgets the events so far, once the peak among them is rebuilt."""
        if not self._keeps_peak:
            return
        if self._height:
            self.peak = self._rebuilt()
        self._base, self._log, self._height = dict(self._live), [], 0

    def _note(self, address: int, made: Allocation | None) -> None:
        if self._keeps_peak:
            self._log.append((address, made))

    def _rebuilt(self) -> Peak:
        live = dict(self._base)
        for address, made in self._log[: self._height]:
            if made is None:
                live.pop(address, None)
            else:
                live[address] = made
        step, phase = self._moment
        return Peak(step=step, phase=phase, live=tuple(live.values()))


def named(groups: Iterable[tuple[str, Iterable[int]]]) -> dict[int, str]:
    """Addresses by category; the first that claims an address has it."""
    found: dict[int, str] = {}
    for category, addresses in groups:
        for address in addresses:
            found.setdefault(address, category)
    return found
