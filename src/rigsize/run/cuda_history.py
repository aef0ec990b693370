"""Who held the bytes at a card's allocated peak, from the caching allocator's own history."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rigsize.run.cuda_meter import CudaMeter
from rigsize.run.meters import NAMED_AT, PHASES, Names
from rigsize.run.record import Memory
from rigsize.run.tally import Tally

__all__ = ["CudaHistory", "replayed", "start_history"]

MOST_EVENTS = 5_000_000
"""The allocator then forgets the oldest: some 100 bytes each without stacks."""
Mark = tuple[int, int, str, Mapping[int, str]]
"""(microseconds since 1970, step, phase, categories by address)."""


def start_history(*, stacks: bool) -> None:
    """Before the first allocation; with the Python frames of each where a snapshot shows them."""
    torch.cuda.memory._record_memory_history(
        enabled="all", context="all" if stacks else None, stacks="python", max_entries=MOST_EVENTS
    )


class CudaHistory:
    """A CudaMeter that also keeps the marks between which the allocator's events lie."""

    def __init__(self, meter: CudaMeter, names: Names) -> None:
        self._meter, self._names = meter, names
        self._marks: list[Mark] = []
        self._step = 0
        self.phase_peaks, self.step_peaks = meter.phase_peaks, meter.step_peaks
        self.step_times = meter.step_times

    def mark(self, phase: str) -> None:
        """A phase begins."""
        self._meter.mark(phase)
        self._keep(PHASES[phase], self._names() if phase in NAMED_AT else {})

    def begin_step(self) -> None:
        """A step begins."""
        self._step += 1
        self._meter.begin_step()

    def end_step(self) -> None:
        """It ended: states that it made have names now."""
        self._meter.end_step()
        self._keep("optimizer", self._names())

    def abandon(self) -> None:
        """The history holds up to the failing request."""
        self._meter.abandon()

    def memory(self, host_peak_bytes: int) -> Memory:
        """The peaks of all steps."""
        return self._meter.memory(host_peak_bytes)

    def notes(self) -> list[str]:
        """What qualifies the figures."""
        return self._meter.notes()

    @property
    def tally(self) -> Tally:
        """The events so far, replayed."""
        entries = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        return replayed(entries, self._marks)

    def dump(self, file: Path) -> None:
        """The whole history in torch's format."""
        torch.cuda.memory._dump_snapshot(str(file))

    def _keep(self, phase: str, names: Mapping[int, str]) -> None:
        self._marks.append((time.time_ns() // 1000, self._step, phase, names))


def replayed(entries: Iterable[Mapping[str, Any]], marks: Iterable[Mark]) -> Tally:
    """The tally of an allocator's trace (`torch.cuda.memory._snapshot()["device_traces"]`).

    Blocks count until `free_completed`, as in `memory_allocated`; sizes are those of the blocks,
    rounded by the allocator.
    """
    tally = Tally({}, keeps_peak=True)
    waiting = list(marks)
    for entry in entries:
        while waiting and waiting[0][0] <= entry["time_us"]:
            _pass(tally, waiting.pop(0))
        if entry["action"] == "alloc":
            tally.add(entry["addr"], entry["size"], _frame(entry))
        elif entry["action"] == "free_completed":
            tally.remove(entry["addr"])
    for mark in waiting:
        _pass(tally, mark)
    tally.close_window()
    return tally


def _pass(tally: Tally, mark: Mark) -> None:
    _, tally.step, tally.phase, names = mark
    tally.name(names)


def _frame(entry: Mapping[str, Any]) -> str:
    """The innermost Python frames, outermost first."""
    shown = [
        f"{frame['name']} ({Path(frame['filename']).name}:{frame['line']})"
        for frame in entry.get("frames", ())[:3]
    ]
    return " > ".join(reversed(shown))
