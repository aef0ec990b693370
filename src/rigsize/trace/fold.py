"""From concrete traces at several sizes to a Body: name storages, fit sizes, share templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rigsize.trace.passages import passage_at
from rigsize.trace.profile import Body, Event, Ref
from rigsize.trace.recorder import (
    ALLOC,
    ATTENTION,
    ATTENTION_BACKWARD,
    FREE,
    KIND_NAMES,
    RawEvent,
    RawTrace,
)
from rigsize.trace.sizes import Expression, NotFitted, evaluate, fit, monomials_at

if TYPE_CHECKING:
    from rigsize.trace.work import WorkNote


class NotFolded(Exception):
    """The traces do not have the shape that tiling needs; says why."""


class LengthDependent(NotFolded):
    """Sizes of one domain give other events: no expression in sizes can hold, at any depth."""


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
    *,
    whole: bool = False,
) -> Body:
    """One body from traces of the same domain.

    `stacks` are (module path, traced depth); `contexts[g]` names the context of traced layer g
    (from 1; entry 0 is unused): layers of equal context must have equal templates. Of a `whole`
    model, which nothing is tiled from, any layer may reach into any other.
    """
    first = traces[0]
    for trace in traces:
        give_back_layer_deaths(trace, stacks)
    for other, point in zip(traces[1:], points[1:], strict=True):
        if shape_of(other) != shape_of(first):
            raise LengthDependent(
                f"{len(other.events)} events at {dict(point)},"
                f" {len(first.events)} at {dict(points[0])}"
            )
    names = _Namer(first, stacks, whole=whole)
    sizes = Sizes(points)
    segments = segments_of(first.events)
    templates: list[tuple[Event, ...]] = []
    seen: dict[tuple[Any, ...], int] = {}
    by_context: dict[tuple[int, str, int], int] = {}
    schedule = []
    passes: dict[tuple[int, str], int] = {}
    for phase, group, indices in segments:
        template = tuple(_event(traces, i, names, sizes) for i in indices)
        number = seen.setdefault(template, len(templates))
        if number == len(templates):
            templates.append(template)
        if group:
            turn = passes[group, phase] = passes.get((group, phase), 0) + 1
            known = by_context.setdefault((contexts[group], phase, turn), number)
            if known != number:
                raise NotFolded(
                    f"layers of one context differ: {_difference(templates[known], template)}"
                )
        schedule.append((phase, group, number))
    check_order(schedule, stacks)
    return Body(tuple(templates), tuple(names.births), tuple(schedule))


def mismatch(
    body: Body,
    trace: RawTrace,
    point: Mapping[str, int],
    stacks: Sequence[tuple[str, int]],
    *,
    whole: bool = False,
) -> str:
    """The first difference between a trace and what `body` says at `point`; empty if none.

    Whole sequence: operator, order, place, birth and death by storage, bytes.
    """
    give_back_layer_deaths(trace, stacks)
    names = _Namer(trace, stacks, whole=whole)
    if tuple(names.births) != body.births:
        return f"{sum(names.births)} storages against {sum(body.births)}"
    segments = segments_of(trace.events)
    if [s[:2] for s in segments] != [s[:2] for s in body.schedule]:
        return "the layers run in another order"
    values = monomials_at(point)
    for (phase, group, indices), (_, _, number) in zip(segments, body.schedule, strict=True):
        template = body.templates[number]
        if len(indices) != len(template):
            return f"{phase} of {group}: {len(indices)} events against {len(template)}"
        for index, event in zip(indices, template, strict=True):
            traced = _named(trace.events[index], names)
            if traced != _at(event, values):
                return f"{phase} of {group}: {traced} against {_at(event, values)}"
    return ""


def _at(event: Event, values: Mapping[str, int]) -> tuple[Any, ...]:
    """The event with its sizes at one point, in the order of `_named`."""
    return (
        event.kind,
        event.ref,
        event.op,
        event.module,
        evaluate(event.size, values),
        tuple(evaluate(n, values) for n in event.numbers),
        event.label,
        event.outputs,
    )


def _named(raw: RawEvent, names: _Namer) -> tuple[Any, ...]:
    """The traced event as `Event`'s fields, sizes as numbers."""
    return (
        KIND_NAMES[raw.kind],
        names.ref(raw.storage, raw.group),
        raw.op.removeprefix("aten::"),
        names.module(raw.module),
        raw.num_bytes if raw.kind == ALLOC else 0,
        raw.numbers,
        tuple(names.module(x) if isinstance(x, str) else x for x in raw.label),
        tuple(names.ref(s, raw.group) for s in raw.outputs),
    )


def _difference(left: tuple[Event, ...], right: tuple[Event, ...]) -> str:
    for a, b in zip(left, right, strict=False):
        if a != b:
            return f"{a} against {b}"
    return f"{len(left)} against {len(right)} events"


def segments_of(events: Sequence[RawEvent | WorkNote]) -> list[tuple[str, int, list[int]]]:
    """(phase, group, indices) of the stretches in which neither changes."""
    segments: list[tuple[str, int, list[int]]] = []
    for index, event in enumerate(events):
        if not segments or segments[-1][:2] != (event.phase, event.group):
            segments.append((event.phase, event.group, []))
        segments[-1][2].append(index)
    return segments


def give_back_layer_deaths(trace: RawTrace, stacks: Sequence[tuple[str, int]]) -> None:
    """Deaths of every layer's storages outside the layers count for the layers that bore them.

    At the end of an autocast region the cast of every layer's weights dies, layer by layer; told
    from outside the layers the number of such events would depend on the depth. A few deaths of
    the first or last layers alone (a loop's variable goes) stay where they are.
    """
    owner = {e.storage: e.group for e in trace.events if e.kind in (ALLOC, ATTENTION)}
    owner |= trace.persistent_groups
    layers, start = [], 1
    for _, depth in stacks:
        layers.append(range(start, start + depth))
        start += depth
    run: list[RawEvent] = []
    for event in [*trace.events, None]:
        if event is not None and event.kind == FREE and event.group == 0:
            run.append(event)
            continue
        for passage in _passages(_sorted_if_scattered(run, owner)):
            dying = {group for group, _ in passage}
            whole = {g for stack in layers if _passes(dying, stack) for g in stack}
            for group, death in passage:
                death.group = group if group in whole else 0
        run = []


MOST_PASSAGES = 4
"""More turns than this through the layers are no order but a hash map's."""


def _sorted_if_scattered(run: list[RawEvent], owner: dict[int, int]) -> list[tuple[int, RawEvent]]:
    """The deaths with their layers, layer by layer where torch let them die in hash order.

    Its own autocast (the cpu's) keeps weight casts in a hash map and drops them at once; deaths
    with nothing between them may be told in any order.
    """
    deaths = [(owner.get(event.storage, 0), event) for event in run]
    if len(_passages(deaths)) <= MOST_PASSAGES:
        return deaths
    order = sorted((group, event.storage) for group, event in deaths)
    for event, (_, storage) in zip(run, order, strict=True):
        event.storage = storage
    return [(group, event) for event, (group, _) in zip(run, order, strict=True)]


def _passes(groups: set[int], stack: range) -> bool:
    """Whether a passage goes through all layers of a stack, but for its first or its last one."""
    return groups >= set(stack[1:]) or groups >= set(stack[:-1])


def _passages(deaths: list[tuple[int, RawEvent]]) -> list[list[tuple[int, RawEvent]]]:
    """The deaths in pieces that go through the layers one by one, up or down."""
    passages: list[list[tuple[int, RawEvent]]] = [[]]
    last, direction = 0, 0
    for group, death in deaths:
        step = group - last if group and last else 0
        if abs(step) > 1 or step * direction < 0:
            passages.append([])
            direction = 0
        else:
            direction = step or direction
        last = group or last
        passages[-1].append((group, death))
    return passages


def check_order(
    schedule: Sequence[tuple[str, int, int]], stacks: Sequence[tuple[str, int]]
) -> None:
    """Raises NotFolded if the layers run otherwise than in passages up or down."""
    start = 1
    for _, depth in stacks:
        layers = range(start, start + depth)
        start += depth
        index = 0
        while index < len(schedule):
            if schedule[index][1] not in layers:
                index += 1
                continue
            passage = passage_at(schedule, index, layers)
            if passage is None:
                order = [group for _, group, _ in schedule[index : index + 12]]
                raise NotFolded(f"layers run in the order {order}")
            index += len(passage)


class _Namer:
    """Names storages by the group that bore them and their ordinal there."""

    def __init__(self, trace: RawTrace, stacks: Sequence[tuple[str, int]], *, whole: bool) -> None:
        self.whole = whole
        self.stack_of: list[int] = [-1]
        self.ends: list[tuple[int, int]] = []
        self.patterns: list[tuple[re.Pattern[str], str]] = []
        for number, (path, depth) in enumerate(stacks):
            self.ends.append((len(self.stack_of), len(self.stack_of) + depth - 1))
            self.stack_of.extend([number] * depth)
            self.patterns.append((re.compile(rf"^{re.escape(path)}\.\d+"), f"{path}.*"))
        self.kept, self.kept_in = trace.persistent, trace.persistent_groups
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
            if self.kept_in.get(storage, group) != group:
                raise NotFolded(f"layer {group} ends what the pass before left in another")
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
        reach = 0 if group else 1  # a loop's variable may still hold what the layer before left
        if last - reach <= owner:
            return ("end", stack, 1, owner - last, ordinal)
        if self.whole or owner <= first + reach:
            return ("end", stack, 0, owner - first, ordinal)
        raise NotFolded(f"layer {group} reaches into layer {owner}")

    def module(self, name: str) -> str:
        for pattern, replacement in self.patterns:
            name = pattern.sub(replacement, name)
        return name


class Sizes:
    """Fits each distinct vector of samples once."""

    def __init__(self, points: Sequence[Mapping[str, int]]) -> None:
        self.points = [monomials_at(point) for point in points]
        self.fitted: dict[tuple[int, ...], Expression] = {}

    def of(self, samples: tuple[int, ...], what: str) -> Expression:
        """The expression that gives one sample a point; NotFolded names `what` has none."""
        if samples not in self.fitted:
            try:
                self.fitted[samples] = fit(samples, self.points)
            except NotFitted as error:
                raise NotFolded(f"no expression for {what}: {error}") from error
        return self.fitted[samples]


def _event(traces: Sequence[RawTrace], index: int, names: _Namer, sizes: Sizes) -> Event:
    raw = traces[0].events[index]
    kind, ref, op, module, _, _, label, outputs = _named(raw, names)
    peers = [t.events[index] for t in traces]
    size: Expression = ()
    if raw.kind == ALLOC:
        size = sizes.of(tuple(p.num_bytes for p in peers), f"{raw.op} in {raw.module}")
    numbers = tuple(
        sizes.of(column, f"{raw.op} in {raw.module}")
        for column in zip(*(p.numbers for p in peers), strict=True)
    )
    return Event(kind, ref, op, module, size, numbers, label, outputs)
