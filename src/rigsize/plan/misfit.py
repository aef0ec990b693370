"""Where nothing fits: what comes nearest, by how much it fails, and what would help."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from math import inf

from rigsize.errors import SizingError
from rigsize.estimate import estimate
from rigsize.estimated import Estimate
from rigsize.models import ModelSource
from rigsize.plan.judge import PipelineJudge
from rigsize.plan.records import Candidate, Chosen, Confirmation, Place, Score, Way
from rigsize.plan.search import Tally
from rigsize.search import Edit, cheapest_edits
from rigsize.units import format_bytes

__all__ = ["edits_for", "nearest_misfit"]

ESTIMATED = 6
"""Ways that get an Estimate: each takes up to seconds."""


def nearest_misfit(
    source: ModelSource, places: Sequence[Place], judge: PipelineJudge, tally: Tally
) -> Chosen | None:
    """What misses card and host by the fewest bytes; None where the grid is empty.

    Of each way the place with the least bound above its card and the smallest micro-batch; of these
    the few with the least bounds are estimated.
    """
    found = [
        (_over_bytes(one), candidate.place.order, number, candidate, one)
        for number, candidate in enumerate(_contenders(places, judge, tally))
        if (one := _estimated(source, candidate)) is not None
    ]
    if not found:
        return None
    over, *_, candidate, answer = min(found, key=lambda row: row[:3])
    hours = judge.hours(candidate)
    hours = inf if hours is None else hours
    return Chosen(
        labels=("nearest",),
        candidate=candidate,
        score=Score(hours, judge.usd(candidate.place, hours)),
        confirmed=Confirmation(
            fits=False,
            replayed=True,
            over_bytes=over,
            host=answer.fit.of_card != "does_not_fit",
            estimate=answer,
        ),
        misses=tuple(_misses(answer)),
    )


def _contenders(places: Sequence[Place], judge: PipelineJudge, tally: Tally) -> Iterator[Candidate]:
    """Those whose least bytes are the least above card and host, and the nearest by its host."""
    memory = judge.memory
    best: dict[Way, tuple[tuple[object, ...], Candidate]] = {}
    for place in places:
        for way in judge.ways(place):
            for micro, accumulation in judge.batches(place, way)[-1:]:
                one = Candidate(place=place, way=way, micro_batch=micro, accumulation=accumulation)
                rank = memory.above_bytes(one), place.order
                if way not in best or rank < best[way][0]:
                    best[way] = rank, one

    def by_both(one: Candidate) -> tuple[object, ...]:
        above = memory.above_bytes(one)
        return max(0, above) + memory.host_over_bytes(one), above, one.place.order, one.way.order

    yield from heapq.nsmallest(ESTIMATED, (one for _, one in best.values()), key=by_both)
    _, by_host = tally.near.get("host_memory", (inf, None))
    if isinstance(by_host, Candidate):
        yield by_host


def _estimated(source: ModelSource, candidate: Candidate) -> Estimate | None:
    try:
        return estimate(source, candidate.way.workload, candidate.strategy, candidate.place.cluster)
    except SizingError:
        return None


def _over_bytes(answer: Estimate) -> int:
    """Above card and host, at the high ends of both."""
    return sum(over for _, over in _overs(answer))


def _overs(answer: Estimate) -> Iterator[tuple[str, int]]:
    memory, fit, host = answer.memory, answer.fit, answer.host
    high = memory.allocated_peak_bytes if memory.high_bytes is None else memory.high_bytes
    if fit.capacity_bytes is not None and high > fit.capacity_bytes:
        yield f"the card needs {_of(high, fit.capacity_bytes)}", high - fit.capacity_bytes
    room = fit.host_capacity_bytes
    if room is not None and host.high_bytes > room:
        yield f"the host needs {_of(host.high_bytes, room)}", host.high_bytes - room


def _of(need: int, capacity: int) -> str:
    over = format_bytes(need - capacity)
    return f"up to {format_bytes(need)} of {format_bytes(capacity)}: over by {over}"


def _misses(answer: Estimate) -> Iterator[str]:
    yield from (words for words, _ in _overs(answer))


def edits_for(chosen: Chosen) -> tuple[Edit, ...]:
    """The changes that make it fit its card, else those that save most of it."""
    answer = chosen.confirmed.estimate
    if answer is None or answer.fit.of_card != "does_not_fit":
        return ()
    return tuple(cheapest_edits(answer))
