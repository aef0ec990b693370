"""The memory replay: a Program passed through the allocator until reserved memory repeats.

`fits` means this replay ends without an out-of-memory error at the card's real capacity less its
context: partly used segments cannot be given back, so no sum of bytes answers the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from rigsize.memory.allocator import AllocatorConfig, Block, CachingAllocator, OutOfMemory

if TYPE_CHECKING:
    from rigsize.program.build import Program

BESIDE_STEPS = ("evaluation", "export")
"""Slices of `program.beside_steps`."""
MAX_STEPS = 8
"""Reserved memory repeats after two or three steps; a program that never repeats stops here."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When the peak is: step (from 0), slice and operation in it."""

    step: int
    slice: str
    index: int
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay saw."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    peak: Moment
    live: tuple[int, ...]
    """Storages alive at the peak."""
    live_requested_bytes: int
    """The sum of what was requested for them; less than allocated by rounding and slack."""
    phase_peaks: dict[str, int]
    """Allocated peak of each phase in the steady step."""
    num_alloc_retries: int
    out_of_memory: OutOfMemory | None = None
    steps: int = 0
    at_rest_bytes: int = 0
    """Allocated behind the last step that was replayed."""
    capacity_bytes: int | None = None
    """What segments could take in all."""
    moments: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(allocated peak in it, reserved peak up to its end) of each moment of the run, in order;
    those beside the steps only where they were asked for."""


def replay(
    program: Program,
    *,
    capacity_bytes: int | None = None,
    config: AllocatorConfig | None = None,
    beside_steps: bool = False,
    enough_bytes: int | None = None,
) -> Replay:
    """Runs load and steps until a step leaves reserved memory and its own peak unchanged.

    `capacity_bytes` is what segments may take in all (capacity less context); None is no limit.
    `beside_steps` goes on through what a run does between and after its steps, for the moments.
    Once more than `enough_bytes` are reserved, nobody wants to know how it goes on.
    """
    player = _Player(program, CachingAllocator(config, capacity_bytes), enough_bytes)
    return player.play(beside_steps)


class _Player:
    def __init__(
        self, program: Program, allocator: CachingAllocator, enough_bytes: int | None = None
    ) -> None:
        self.program, self.allocator = program, allocator
        self.enough_bytes = inf if enough_bytes is None else enough_bytes
        timeline = program.timeline
        self.sizes, self.streams = timeline.sizes, timeline.streams
        self.blocks: list[Block | None] = [None] * len(timeline.sizes)
        self.trail: list[tuple[int, str]] = []
        self.peak_bytes = -1
        self.peak_at = (0, 0)
        """Index into `trail`, and the operation in that slice."""
        self.phase_peaks: dict[str, int] = {}
        self.moments: dict[str, tuple[int, int]] = {}
        self.state: object = None
        """Between two slices, where it is known."""
        self.idle: dict[str, tuple[object, Mapping[str, int]]] = {}
        """By slice: the state that it left as it was, and its peaks."""

    def play(self, beside_steps: bool = False) -> Replay:
        failure: OutOfMemory | None = None
        step = 0
        try:
            self._run(-1, "load")
            self._moment("loading")
            before: tuple[int, ...] = ()
            while step < MAX_STEPS:
                self.phase_peaks = {}
                self._step(step)
                step += 1
                self._moment("first step" if step == 1 else "later steps")
                after = (self.allocator.reserved_bytes, self.allocator.peak_allocated_bytes)
                if self._is_enough or (step >= 2 and after == before):
                    break
                before = after
        except OutOfMemory as error:
            failure = error
        found = self._result(failure, step)
        if beside_steps and failure is None and not self._is_enough:
            self._beside_steps()
        return found

    def _step(self, step: int) -> None:
        """One step; a slice that left all as it found it does nothing when it finds it so again.

        Micro-steps that accumulate do so once each gradient has its place, in the end all slices.
        """
        for name in self.program.step(step):
            idle = self.idle.get(name)
            if idle is not None and idle[0] == self.state:
                self._peaks_of(idle[1])
                continue
            if self._is_enough:
                return
            before, own = self.state, self._run(step, name)
            self.state = self._state()
            if before is not None and before == self.state:
                self.idle[name] = before, own

    @property
    def _is_enough(self) -> bool:
        return self.allocator.peak_reserved_bytes > self.enough_bytes

    def _state(self) -> object:
        """What decides how it goes on; None where that is not known, or the driver was asked."""
        state = self.allocator.state(self.blocks)
        return None if state is None else (*state, self.allocator.num_alloc_retries)

    def _peaks_of(self, peaks: Mapping[str, int]) -> None:
        for phase, peak in peaks.items():
            self.phase_peaks[phase] = max(self.phase_peaks.get(phase, 0), peak)

    def _moment(self, name: str) -> None:
        peak = max(self.phase_peaks.values(), default=0)
        self.moments[name] = peak, self.allocator.peak_reserved_bytes

    def _beside_steps(self) -> None:
        """Evaluation and export, each as far as memory goes; the result is of the steps alone."""
        for name in BESIDE_STEPS:
            if name not in self.program.slices:
                continue
            self.phase_peaks = {}
            try:
                self._run(-1, name)
            except OutOfMemory:
                return
            self._moment(name)

    def _run(self, step: int, name: str) -> Mapping[str, int]:
        """One slice, phase by phase; returns each phase's own peak."""
        allocator, operations = self.allocator, self.program.slices[name]
        self.trail.append((step, name))
        starts = self.program.phase_starts.get(name) or [(0, name)]
        ends = [index for index, _ in starts[1:]] + [len(operations)]
        own: dict[str, int] = {}
        for (start, phase), end in zip(starts, ends, strict=True):
            chunk = operations[start:end] if len(starts) > 1 else operations
            if name == "load" and start in self.program.emptied:
                allocator.empty_cache()
            highest = allocator.peak_allocated_bytes
            allocator.peak_allocated_bytes = allocator.allocated_bytes
            try:
                index = allocator.run(chunk, self.sizes, self.blocks, self.streams)
            finally:
                peak = allocator.peak_allocated_bytes
                own[phase] = max(own.get(phase, 0), peak)
                self._peaks_of(own)
                allocator.peak_allocated_bytes = max(highest, peak)
            if peak > self.peak_bytes:
                self.peak_bytes = peak
                self.peak_at = (len(self.trail) - 1, start + max(index, 0))
        return own

    def _result(self, failure: OutOfMemory | None, steps: int) -> Replay:
        position, index = self.peak_at
        step, name = self.trail[position]
        live = self._live_at(position, index)
        phase = name
        for start, label in self.program.phase_starts.get(name) or []:
            if start <= index:
                phase = label
        return Replay(
            allocated_peak_bytes=self.allocator.peak_allocated_bytes,
            reserved_peak_bytes=self.allocator.peak_reserved_bytes,
            peak=Moment(step, name, index, phase),
            live=tuple(live),
            live_requested_bytes=sum(self.sizes[s] for s in live),
            phase_peaks=self.phase_peaks,
            num_alloc_retries=self.allocator.num_alloc_retries,
            out_of_memory=failure,
            steps=steps,
            at_rest_bytes=self.allocator.allocated_bytes,
            capacity_bytes=self.allocator.capacity_bytes,
            moments=self.moments,
        )

    def _live_at(self, position: int, index: int) -> dict[int, None]:
        live: dict[int, None] = {}
        for number, (_, name) in enumerate(self.trail[: position + 1]):
            operations = self.program.slices[name]
            last = index + 1 if number == position else len(operations)
            for operation in operations[:last]:
                if operation >= 0:
                    live[operation] = None
                else:
                    live.pop(~operation, None)
        return live


def replay_exact(program: Program, *, beside_steps: bool = False) -> Replay:
    """The replay for `cpu`: the running sum of requested bytes, no rounding and no segments."""
    return _Player(program, _ExactAllocator()).play(beside_steps)


class _ExactAllocator(CachingAllocator):
    """Counts requested bytes; the CPU allocator has no pools of its own."""

    def state(self, _blocks: object) -> None:
        """Running sums are cheaper than any look at what is alive."""

    def run(  # type: ignore[override]
        self, ops: list[int], sizes: list[int], _blocks: object, _streams: object = None
    ) -> int:
        allocated, peak, at = self.allocated_bytes, self.peak_allocated_bytes, -1
        for index, operation in enumerate(ops):
            if operation >= 0:
                allocated += sizes[operation]
                if allocated > peak:
                    peak, at = allocated, index
            else:
                allocated -= sizes[~operation]
        self.allocated_bytes, self.peak_allocated_bytes = allocated, peak
        return at
