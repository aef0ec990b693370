"""Which parameters are whole when, under ZeRO-3: fetch, prefetch and release by module.

Mirrors deepspeed 0.19.8, runtime/zero/partitioned_param_coordinator.py
(`PartitionedParameterCoordinator`) once it knows the order of modules, which is from the second
micro-step on; the gathering of runtime/zero/partition_parameters.py (`_all_gather_dtype`,
`_all_gather_sequential`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rigsize.program.foreach import place
from rigsize.program.micro_step import MicroStep
from rigsize.program.timeline import ALL_GATHER, Parameter

__all__ = ["Coordinator", "Limits"]

GATHER = place("communication.buffers", "zero3.all_gather_coalesced", "forward")
WHOLE = place("weights.gathered", "zero3.all_gather_coalesced", "forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """In elements; the defaults of runtime/zero/config.py."""

    prefetch: int = 50_000_000
    persistence: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000


@dataclass(slots=True)
class Handle:
    """One gathering under way."""

    parameters: list[Parameter]
    flat: int
    """The storage that all ranks' parts arrive in; -1 for none."""
    waiting: set[str]
    """Parameters whose module has not asked for them yet."""
    arrived: bool = False


@dataclass(slots=True)
class Coordinator:
    """The course of one micro-step: (module, its parameters) in the order of execution."""

    course: Sequence[tuple[str, Sequence[Parameter]]]
    ranks: int
    limits: Limits
    resident: frozenset[str]
    """Names that are always whole."""
    on_host: bool = False
    """The parts are in host memory (parameter offload)."""
    position: int = 0
    """The next entry of the course."""
    num_whole: int = 0
    """Elements of whole parameters, those that are resident apart."""
    whole: dict[str, int] = field(default_factory=dict)
    """Storages of parameters that are whole now, -1 for a view of the part."""
    in_flight: dict[str, Handle] = field(default_factory=dict)
    fetched_for: dict[str, int] = field(default_factory=dict)
    queue: deque[tuple[Parameter, int]] = field(default_factory=deque)
    passed: list[int] = field(default_factory=lambda: [0])
    """Elements of all parameters before each entry."""
    uses: dict[str, list[int]] = field(default_factory=dict)
    """Entries that want a parameter."""

    def start(self) -> None:
        """Sums up the course: `record_parameters`."""
        for index, (_, parameters) in enumerate(self.course):
            self.queue.extend((p, index) for p in parameters)
            self.passed.append(self.passed[-1] + sum(p.numel for p in parameters))
            for p in parameters:
                self.uses.setdefault(p.name, []).append(index)

    def is_missing(self, parameter: Parameter) -> bool:
        """Neither whole nor on its way."""
        name = parameter.name
        return not (name in self.whole or name in self.in_flight or name in self.resident)

    def enter(self, step: MicroStep) -> None:
        """The next module of the course begins: `fetch_sub_module`."""
        _, parameters = self.course[self.position]
        if missing := [p for p in parameters if self.is_missing(p)]:
            self._gather(step, missing)
        for parameter in parameters:
            if parameter.name in self.in_flight:
                self._wait(step, parameter)
        self._skip(parameters)
        self._prefetch(step)
        self.position += 1

    def _skip(self, parameters: Sequence[Parameter]) -> None:
        """What this module was to fetch leaves the queue."""
        left = {p.name for p in parameters if self.fetched_for.get(p.name, -1) < self.position}
        while self.queue and left:
            parameter, index = self.queue.popleft()
            self.fetched_for[parameter.name] = index
            left.discard(parameter.name)

    def _prefetch(self, step: MicroStep) -> None:
        """From the queue until one bucket is passed, or as many are whole as may be."""
        room = min(self.limits.max_live - self.num_whole, self.limits.prefetch)
        chosen: dict[str, Parameter] = {}
        numel = 0
        while self.queue and numel < room:
            parameter, index = self.queue.popleft()
            name = parameter.name
            self.fetched_for[name] = max(self.fetched_for.get(name, -1), index)
            if self.is_missing(parameter) and name not in chosen:
                chosen[name] = parameter
                numel += parameter.numel
        if chosen:
            self._gather(step, list(chosen.values()))

    def _gather(self, step: MicroStep, parameters: list[Parameter]) -> None:
        """One flat buffer; a parameter alone stays in it, several are copied out later."""
        self.num_whole += sum(p.numel for p in parameters)
        alone = len(parameters) == 1
        flat = -1
        if self.ranks > 1:
            size = sum(self.part(p) for p in parameters) * self.ranks * parameters[0].itemsize
            flat = step.alloc(size, WHOLE if alone else GATHER, ALL_GATHER)
            if self.on_host:
                self._from_host(step, parameters)
        handle = Handle(parameters, flat, {p.name for p in parameters})
        self.in_flight.update(dict.fromkeys(handle.waiting, handle))

    def _from_host(self, step: MicroStep, parameters: Sequence[Parameter]) -> None:
        sizes = [self.part(p) * p.itemsize for p in parameters]
        copies = [step.alloc(size, GATHER, ALL_GATHER) for size in sizes]
        for storage in copies:
            step.free(storage)

    def part(self, parameter: Parameter) -> int:
        """Elements of a rank's part."""
        return -(-parameter.numel // self.ranks)

    def _wait(self, step: MicroStep, parameter: Parameter) -> None:
        """`AllGatherCoalescedHandle.wait`: all of the gathering is unpacked for the first to ask.

        Its buffer dies with the last one's wait.
        """
        handle = self.in_flight[parameter.name]
        if not handle.arrived:
            handle.arrived = True
            for p in handle.parameters:
                self.whole[p.name] = self._unpack(step, handle, p)
        handle.waiting.discard(parameter.name)
        del self.in_flight[parameter.name]
        if not handle.waiting and handle.flat >= 0 and len(handle.parameters) > 1:
            step.free(handle.flat)

    def _unpack(self, step: MicroStep, handle: Handle, parameter: Parameter) -> int:
        if handle.flat >= 0 and len(handle.parameters) == 1:
            return handle.flat
        if self.ranks == 1 and not self.on_host:
            return -1
        return step.alloc(parameter.num_bytes, WHOLE, ALL_GATHER)

    def leave(self, step: MicroStep) -> None:
        """The module that was entered last has ended: `release_sub_module`."""
        _, parameters = self.course[self.position - 1]
        for parameter in parameters:
            if parameter.name in self.whole and not self._is_wanted(parameter):
                self._release(step, parameter)

    def _is_wanted(self, parameter: Parameter) -> bool:
        """Its next use was passed over by the prefetch, or is near."""
        now = self.position
        if self.fetched_for.get(parameter.name, -1) > now:
            return True
        later = next((use for use in self.uses[parameter.name] if use >= now), None)
        return later is not None and self.passed[later] - self.passed[now] < self.limits.max_reuse

    def _release(self, step: MicroStep, parameter: Parameter) -> None:
        self.num_whole -= parameter.numel
        storage = self.whole.pop(parameter.name)
        if storage >= 0:
            step.free(storage)

    def finish(self, step: MicroStep) -> None:
        """What is still whole or on its way at the end: `_clean_inflight_param_registry`."""
        buffers: dict[int, Handle] = {id(h): h for h in self.in_flight.values()}
        for handle in buffers.values():
            if handle.flat >= 0 and not (handle.arrived and len(handle.parameters) == 1):
                step.free(handle.flat)
        for storage in self.whole.values():
            if storage >= 0:
                step.free(storage)
        self.whole, self.in_flight = {}, {}
