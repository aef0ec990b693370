"""From the notes of concrete traces to a Body of work: equal kernels counted, sizes fitted.

The same tiling as of births and deaths (`trace.fold`), with nothing born. An event of it is one of

    dispatches      label (how many operators the host dispatches in this segment,)
    kernel          op, numbers (batch, m, n, k) or (bytes,), label (kind, dtype, detail, launches)
    attention, attention_backward      as `trace.recorder` tells it, label (..., launches)

where equal kernels of a segment are one event, at the place of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rigsize.trace.fold import LengthDependent, NotFolded, Sizes, check_order, segments_of
from rigsize.trace.profile import DISPATCHES, KERNEL, Body, Event
from rigsize.trace.sizes import Expression, evaluate, monomials_at

if TYPE_CHECKING:
    from rigsize.trace.recorder import RawTrace
    from rigsize.trace.work import WorkNote

__all__ = ["fold_work", "work_mismatch"]

_DISPATCH = "dispatch"
_SIZED = ("gemm", "gemm_4bit", "attention", "attention_backward")
"""Kinds whose numbers are told one by one; of all others their sum counts, in bytes."""


def fold_work(
    traces: Sequence[RawTrace],
    points: Sequence[Mapping[str, int]],
    stacks: Sequence[tuple[str, int]],
    contexts: Sequence[int],
) -> Body:
    """One body from the notes of traces of the same domain, told as to `trace.fold.fold`."""
    first = traces[0].work
    for other, point in zip(traces[1:], points[1:], strict=True):
        if _shape(other.work) != _shape(first):
            raise LengthDependent(
                f"{len(other.work)} notes of work at {dict(point)},"
                f" {len(first)} at {dict(points[0])}"
            )
    sizes = Sizes(points)
    templates: dict[tuple[Event, ...], int] = {}
    by_context: dict[tuple[int, str, int], int] = {}
    passes: Counter[tuple[int, str]] = Counter()
    schedule = []
    for phase, group, indices in segments_of(first):
        columns = ([trace.work[i] for trace in traces] for i in indices)
        template = _counted([_event(notes, sizes) for notes in columns])
        number = templates.setdefault(template, len(templates))
        if group:
            passes[group, phase] += 1
            place = (contexts[group], phase, passes[group, phase])
            known = by_context.setdefault(place, number)
            if known != number:
                raise NotFolded("layers of one context compute something else")
        schedule.append((phase, group, number))
    check_order(schedule, stacks)
    return Body(tuple(templates), (0,) * len(contexts), tuple(schedule))


def work_mismatch(body: Body, trace: RawTrace, point: Mapping[str, int]) -> str:
    """The first difference between a trace's work and what `body` says at `point`; empty if none.

    Segment by segment: how many dispatches, and which kernels with which sizes how often.
    """
    segments = segments_of(trace.work)
    if [s[:2] for s in segments] != [s[:2] for s in body.schedule]:
        return "the layers compute in another order"
    values = monomials_at(point)
    for (phase, group, indices), (_, _, number) in zip(segments, body.schedule, strict=True):
        traced = Counter(_concrete(trace.work[i]) for i in indices)
        told: Counter[tuple[Any, ...]] = Counter()
        for event in body.templates[number]:
            *label, times = event.label
            numbers = tuple(evaluate(n, values) for n in event.numbers)
            told[event.kind, event.op, numbers, tuple(label)] += times
        if traced != told:
            return f"{phase} of {group}: {traced - told} against {told - traced}"
    return ""


def _shape(notes: Sequence[WorkNote]) -> list[tuple[Any, ...]]:
    return [(n.phase, n.group, n.op, n.kind, n.label, len(n.numbers)) for n in notes]


def _concrete(note: WorkNote) -> tuple[Any, ...]:
    """(kind, op, numbers, label) as a template's event has them, at one size."""
    if note.kind == _DISPATCH:
        return DISPATCHES, "", (), ()
    numbers = note.numbers if note.kind in _SIZED else (sum(note.numbers),)
    return (*_told(note)[:2], numbers, _told(note)[2])


def _told(note: WorkNote) -> tuple[str, str, tuple[Any, ...]]:
    """(kind, op, label) of a kernel's event."""
    op = note.op.removeprefix("aten::").partition(".")[0]
    if note.kind.startswith("attention"):
        return note.kind, op, note.label
    return KERNEL, op, (note.kind, *note.label)


def _event(notes: Sequence[WorkNote], sizes: Sizes) -> Event:
    """One note of all traces, as an event that happens once."""
    first = notes[0]
    if first.kind == _DISPATCH:
        return Event(DISPATCHES, None)
    kind, op, label = _told(first)
    numbers = tuple(
        sizes.of(column, f"the work of {op}")
        for column in zip(*(note.numbers for note in notes), strict=True)
    )
    if first.kind not in _SIZED:
        numbers = (_sum(numbers),)
    return Event(kind, None, op, "", (), numbers, label)


def _sum(expressions: Sequence[Expression]) -> Expression:
    total: Counter[str] = Counter()
    for expression in expressions:
        for coefficient, name in expression:
            total[name] += coefficient
    return tuple((total[name], name) for name in sorted(total))


def _counted(events: Sequence[Event]) -> tuple[Event, ...]:
    """Equal events once, each with how often it happens at the end of its label."""
    times = Counter(events)
    return tuple(
        Event(e.kind, None, e.op, "", (), e.numbers, (*e.label, count))
        for e, count in times.items()
    )
