"""From concrete traces at several sizes to a Body: name storages, fit sizes, share templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rigsize.trace.profile import Body, Event, Ref
from rigsize.trace.recorder import (
    ALLOC,
    ATTENTION,
    ATTENTION_BACKWARD,
    KIND_NAMES,
    RawEvent,
    RawTrace,
)
from rigsize.trace.sizes import Expression, NotFitted, fit, monomials_at


class NotFolded(Exception):
    """The traces do not have the shape that tiling needs; says why."""


def shape_of(trace: RawTrace) -> list[tuple[Any, ...]]:
    """The events without their sizes: equal for two traces of one domain."""
    return [
        (e.kind, e.storage, e.group, e.phase, e.op, e.label, e.outputs, len(e.numbers))
        for e in trace.events
    ]


def fold(
    traces: Sequence[RawTrace],
    points: Sequence[Mapping[str, int]],
    stacks: Sequence[tuple[str, int]],
    contexts: Sequence[int],
) -> Body:
    """One body from traces of the same domain.

    `stacks` are (module path, traced depth); `contexts[g]` names the context of traced layer g
    (from 1; entry 0 is unused): layers of equal context must have equal templates.
    """
    first = traces[0]
    for other, point in zip(traces[1:], points[1:], strict=True):
        if shape_of(other) != shape_of(first):
            raise NotFolded(f"other events at {dict(point)} than at {dict(points[0])}")
    names = _Namer(first, stacks)
    sizes = _Sizes(traces, points)
    segments = _segments(first.events)
    templates: list[tuple[Event, ...]] = []
    seen: dict[tuple[Any, ...], int] = {}
    by_context: dict[tuple[int, str], int] = {}
    schedule = []
    for phase, group, indices in segments:
        template = tuple(_event(first, i, names, sizes) for i in indices)
        number = seen.setdefault(template, len(templates))
        if number == len(templates):
            templates.append(template)
        if group:
            known = by_context.setdefault((contexts[group], phase), number)
            if known != number:
                raise NotFolded(
                    f"layers of one context differ: {_difference(templates[known], template)}"
                )
        schedule.append((phase, group, number))
    _check_order(schedule, stacks)
    return Body(tuple(templates), tuple(names.births), tuple(schedule))


def _difference(left: tuple[Event, ...], right: tuple[Event, ...]) -> str:
    for a, b in zip(left, right):
        if a != b:
            return f"{a} against {b}"
    return f"{len(left)} against {len(right)} events"


def _segments(events: Sequence[RawEvent]) -> list[tuple[str, int, list[int]]]:
    segments: list[tuple[str, int, list[int]]] = []
    for index, event in enumerate(events):
        if not segments or segments[-1][:2] != (event.phase, event.group):
            segments.append((event.phase, event.group, []))
        segments[-1][2].append(index)
    return segments


def _check_order(schedule: Sequence[tuple[str, int, int]], stacks: Sequence[Any]) -> None:
    """Every stack is passed once forward, ascending, and once backward, descending, unbroken."""
    start = 1
    for path, depth in stacks:
        layers = list(range(start, start + depth))
        start += depth
        for phase, order in (("forward", layers), ("backward", layers[::-1])):
            found = [(i, g) for i, (p, g, _) in enumerate(schedule) if p == phase and g in layers]
            if not found and phase == "backward":
                continue
            groups = [g for _, g in found]
            positions = [i for i, _ in found]
            if groups != order or positions != list(range(positions[0], positions[0] + depth)):
                raise NotFolded(f"{path} runs {phase} in the order {groups[:12]}")


class _Namer:
    """Names storages by the group that bore them and their ordinal there."""

    def __init__(self, trace: RawTrace, stacks: Sequence[tuple[str, int]]) -> None:
        self.stack_of: list[int] = [-1]
        self.ends: list[tuple[int, int]] = []
        self.patterns: list[tuple[re.Pattern[str], str]] = []
        for number, (path, depth) in enumerate(stacks):
            self.ends.append((len(self.stack_of), len(self.stack_of) + depth - 1))
            self.stack_of.extend([number] * depth)
            self.patterns.append((re.compile(rf"^{re.escape(path)}\.\d+"), f"{path}.*"))
        self.kept = trace.persistent
        self.births = [0] * len(self.stack_of)
        self.where: dict[int, tuple[int, int]] = {}
        for event in trace.events:
            if event.kind in (ALLOC, ATTENTION):
                self._born(event.storage, event.group)
            for output in event.outputs if event.kind == ATTENTION_BACKWARD else ():
                if output >= 0 and output not in self.where:
                    self._born(output, event.group)

    def _born(self, storage: int, group: int) -> None:
        self.where[storage] = (group, self.births[group])
        self.births[group] += 1

    def ref(self, storage: int, group: int) -> Ref | None:
        if storage < 0:
            return None
        if storage in self.kept:
            return ("kept", self.kept[storage])
        if storage not in self.where:
            raise NotFolded("a storage died that was never born")
        owner, ordinal = self.where[storage]
        if owner == group:
            return ("own", ordinal)
        if owner == 0:
            return ("global", ordinal)
        stack = self.stack_of[owner]
        if group and self.stack_of[group] == stack and abs(owner - group) == 1:
            return ("near", owner - group, ordinal)
        first, last = self.ends[stack]
        if owner in (first, last):
            return ("end", stack, int(owner == last), ordinal)
        raise NotFolded(f"layer {group} reaches into layer {owner}")

    def module(self, name: str) -> str:
        for pattern, replacement in self.patterns:
            name = pattern.sub(replacement, name)
        return name


class _Sizes:
    """Fits each distinct vector of samples once."""

    def __init__(self, traces: Sequence[RawTrace], points: Sequence[Mapping[str, int]]) -> None:
        self.traces = traces
        self.points = [monomials_at(point) for point in points]
        self.fitted: dict[tuple[int, ...], Expression] = {}

    def of(self, samples: tuple[int, ...], what: str) -> Expression:
        if samples not in self.fitted:
            try:
                self.fitted[samples] = fit(samples, self.points)
            except NotFitted as error:
                raise NotFolded(f"no expression for {what}: {error}") from error
        return self.fitted[samples]


def _event(trace: RawTrace, index: int, names: _Namer, sizes: _Sizes) -> Event:
    raw = trace.events[index]
    peers = [t.events[index] for t in sizes.traces]
    size: Expression = ()
    if raw.kind == ALLOC:
        size = sizes.of(tuple(p.num_bytes for p in peers), f"{raw.op} in {raw.module}")
    numbers = tuple(
        sizes.of(column, f"{raw.op} in {raw.module}")
        for column in zip(*(p.numbers for p in peers), strict=True)
    )
    label = tuple(names.module(x) if isinstance(x, str) else x for x in raw.label)
    return Event(
        KIND_NAMES[raw.kind],
        names.ref(raw.storage, raw.group),
        raw.op.removeprefix("aten::"),
        names.module(raw.module),
        size,
        numbers,
        label,
        tuple(names.ref(s, raw.group) for s in raw.outputs),
    )
