"""The plan of a run: the grid is laid out, searched, and what was found is put into words."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.offers import Offer
from rigsize.models import ModelSource
from rigsize.plan.candidates import Job, own_places, places, ways
from rigsize.plan.clock import PipelineClock
from rigsize.plan.judge import PipelineJudge
from rigsize.plan.memory import Memory
from rigsize.plan.records import Chosen, Limits, Place, Plan, Searched
from rigsize.plan.scaling import breaks_in_words, scaling
from rigsize.plan.search import Tally, front, nearest, smallest
from rigsize.plan.traces import MOST_TRACES, Traces
from rigsize.plan.words import misses_of, rejected_of
from rigsize.plan.works import Works

__all__ = ["Own", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Machines that one has."""

    machine: Offer
    """By its card and host memory; of no provider."""
    per_node: int
    nodes: int


def plan(
    source: ModelSource,
    jobs: Sequence[Job],
    limits: Limits,
    offers: Iterable[Offer],
    *,
    global_batch: int | None,
    micro_batch: int | None = None,
    accelerators: Sequence[Accelerator] | None = None,
    own: Own | None = None,
    most_traces: int = MOST_TRACES,
    scale: bool = False,
) -> Plan:
    """The cheapest, the fastest, the smallest and all between that nobody beats.

    Args:
        source: the model.
        jobs: the recipes that are searched; what each fixes is not varied.
        limits: what the user can pay, wait for and get.
        offers: the catalogue.
        global_batch: texts of an optimizer step; None in inference.
        micro_batch: texts a device at a time, where the user gave it.
        accelerators: the only cards; None is all.
        own: machines that one has, searched beside the offers at no price.
        most_traces: keys that may be traced when nothing is stored of them.
        scale: whether the cheapest plan's machine is followed over its numbers of nodes.
    """
    began = time.perf_counter()
    found, left = places(offers, limits, accelerators)
    if own is not None:
        found = [*own_places(own.machine, own.per_node, own.nodes, limits), *found]
    traces = Traces(source, most_traces)
    clock, memory = PipelineClock(Works(source, traces), global_batch), Memory(source, traces)
    judge = PipelineJudge(
        ways(source, jobs)[0],
        traces,
        memory,
        clock,
        global_batch=global_batch,
        micro_batch=micro_batch,
        vary_precision=not any("precision" in job.fixed for job in jobs),
    )
    tally = Tally()
    with _without_collector():
        chosen = front(found, judge, limits, tally)
        met = bool(chosen)
        chosen = _labelled(chosen, smallest(found, judge, limits)) if met else []
        if not met and (near := nearest(found, judge, limits)) is not None:
            chosen = [replace(near, misses=misses_of(near.score, limits))]
        curve = scaling(_cheapest(chosen), found, judge, clock) if scale and chosen else []
    cannot = _left_out(found, judge)
    return Plan(
        chosen=tuple(_whole(one, memory, clock) for one in chosen),
        rejected=rejected_of(tally, cannot, left),
        searched=Searched(
            candidates=tally.candidates + sum(cannot.values()),
            bounds=tally.bounds,
            evaluations=judge.evaluations,
            replays=memory.replays,
            seconds=time.perf_counter() - began,
        ),
        met=met,
        scaling=tuple(curve),
        scaling_breaks=breaks_in_words(curve, global_batch) if scale else "",
    )


@contextmanager
def _without_collector() -> Iterator[None]:
    """A search makes hundreds of thousands of records and no cycles.

    Looking for cycles took a third of its time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _cheapest(chosen: Sequence[Chosen]) -> Chosen:
    return next((one for one in chosen if "cheapest" in one.labels), chosen[0])


def _labelled(found: list[Chosen], least: Chosen | None) -> list[Chosen]:
    """The front with its ends named, and the smallest, which may lie off it."""
    marked = list(found)
    marked[0] = marked[0].labelled("cheapest")
    marked[-1] = marked[-1].labelled("fastest")
    if least is None:
        return marked
    for index, one in enumerate(marked):
        if one.candidate == least.candidate:
            marked[index] = one.labelled("smallest")
            return marked
    return [least, *marked]


DRAWS = 200
"""Of the interval of a named plan's hours."""


def _whole(chosen: Chosen, memory: Memory, clock: PipelineClock) -> Chosen:
    """With its hours line by line; a named one with their interval and an Estimate of its own."""
    named = chosen.labels != ("front",)
    run = clock.run_time(chosen.candidate, draws=DRAWS if named else 0)
    confirmed = memory.confirm(chosen.candidate, exactly=True) if named else chosen.confirmed
    return replace(chosen, run=run, confirmed=confirmed)


def _left_out(found: Sequence[Place], judge: PipelineJudge) -> dict[str, int]:
    """Candidates that no card can run, by kind."""
    counts: dict[str, int] = {}
    for place in found:
        for kind, count in judge.left_out(place).items():
            counts[kind] = counts.get(kind, 0) + count
    return counts
