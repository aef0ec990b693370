"""The plan of a run: the grid is laid out, searched, and what was found is put into words."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rigsize.errors import UnsupportedCombination
from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.offers import Offer
from rigsize.models import ModelSource
from rigsize.plan.candidates import Job, Left, own_places, places, ways
from rigsize.plan.clock import PipelineClock
from rigsize.plan.judge import PipelineJudge
from rigsize.plan.memory import Memory
from rigsize.plan.misfit import edits_for, nearest_misfit
from rigsize.plan.records import MOST_GPUS, Chosen, Limits, Place, Plan, Searched
from rigsize.plan.scaling import ScalingPoint, breaks_in_words, scaling
from rigsize.plan.search import Tally, front, nearest, smallest
from rigsize.plan.traces import Told, Traces
from rigsize.plan.words import misses_of, nowhere_in_words, rejected_of
from rigsize.plan.works import Works

__all__ = ["Own", "Question", "plan"]

WORTH = 0.05
"""By which a dearer plan must be faster to be told at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Machines that one has."""

    machine: Offer
    """By its card and host memory; of no provider."""
    per_node: int
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be run, and what of it is open."""

    jobs: Sequence[Job]
    """The recipes that are searched; what each fixes is not varied."""
    global_batch: int | None
    """Texts of an optimizer step; None in inference."""
    micro_batch: int | None = None
    """Texts a device at a time, where the user gave it."""
    accelerators: Sequence[Accelerator] | None = None
    """The only cards; None is all."""
    own: Own | None = None
    """Machines that one has, searched beside the offers at no price."""
    told: Told | None = None
    """Hears of each trace that nothing is stored of."""
    scale: bool = False
    """Whether the cheapest plan's machine is followed over its numbers of GPUs."""


def plan(source: ModelSource, question: Question, limits: Limits, offers: Iterable[Offer]) -> Plan:
    """The cheapest, the fastest, the smallest and all between that nobody beats.

    Args:
        source: the model.
        question: the run.
        limits: what the user can pay, wait for and get.
        offers: the catalogue.
    """
    began = time.perf_counter()
    offers = tuple(offers)
    found, left = _places(offers, limits, question)
    asked = any(job.fixed.get("offload") == "activations" for job in question.jobs)
    traces = Traces(source, copies=asked, told=question.told)
    clock = PipelineClock(Works(source, traces), question.global_batch)
    memory = Memory(source, traces)
    possible, refused = ways(source, question.jobs)
    judge = PipelineJudge(
        possible,
        traces,
        memory,
        clock,
        global_batch=question.global_batch,
        micro_batch=question.micro_batch,
        vary_precision=not any("precision" in job.fixed for job in question.jobs),
    )
    with _without_collector():
        chosen, tally = _chosen(found, judge, memory, clock, limits)
        met = bool(chosen) and not chosen[0].misses
        curve = _curve(chosen, found, judge, clock) if question.scale and met else []
    if not chosen and (near := nearest_misfit(source, found, judge, tally)) is not None:
        chosen = [_timed(near, clock)]
    cannot = _left_out(found, judge)
    return Plan(
        chosen=tuple(chosen),
        rejected=rejected_of(tally, cannot, refused, left),
        searched=Searched(
            candidates=tally.candidates + sum(cannot.values()),
            bounds=tally.bounds,
            evaluations=judge.evaluations,
            replays=memory.replays,
            seconds=time.perf_counter() - began,
        ),
        met=met,
        notes=() if found else (nowhere_in_words(question.accelerators, limits, offers),),
        edits=() if met or not chosen else edits_for(chosen[0]),
        scaling=tuple(curve),
        scaling_breaks=breaks_in_words(curve, question.global_batch) if curve else "",
    )


def _places(
    offers: Sequence[Offer], limits: Limits, question: Question
) -> tuple[list[Place], list[Left]]:
    """Every machine with no more GPUs than may be had, and the offers that are none."""
    most = replace(limits, max_gpus=max(limits.max_gpus, MOST_GPUS))
    every, left = places(offers, most, question.accelerators)
    found = [place for place in every if place.cluster.devices <= limits.max_gpus]
    dropped = {id(place.offer): place.offer for place in every}
    for place in found:
        dropped.pop(id(place.offer), None)
    if dropped:
        least = min(offer.devices for offer in dropped.values())
        reason = f"more than {limits.max_gpus:,} GPUs a machine (--max-gpus): {least:,} or more"
        left.append(Left(kind="too_many_gpus", reason=reason, count=len(dropped)))
    own = question.own
    if own is not None:
        mine = own_places(own.machine, own.per_node, own.nodes, limits)
        found = [*(one for one in mine if one.cluster.devices <= limits.max_gpus), *found]
    return found, left


def _chosen(
    found: Sequence[Place],
    judge: PipelineJudge,
    memory: Memory,
    clock: PipelineClock,
    limits: Limits,
) -> tuple[list[Chosen], Tally]:
    """The answer: all that is named has a replay of its own, and fits by it.

    A fact may say that a candidate fits where its own replay does not: it is known as one that
    does not then, and the search goes again.
    """
    while True:
        tally = Tally()
        chosen = front(found, judge, limits, tally, worth=WORTH)
        if chosen:
            chosen = _labelled(chosen, smallest(found, judge, limits))
        elif (near := nearest(found, judge, limits)) is not None:
            chosen = [replace(near, misses=misses_of(near.score, limits))]
        whole = [_whole(one, memory, clock) for one in chosen]
        if all(one.confirmed.fits for one in whole):
            return whole, tally


def _curve(
    chosen: Sequence[Chosen], found: Sequence[Place], judge: PipelineJudge, clock: PipelineClock
) -> list[ScalingPoint]:
    """Of the cheapest plan's machine; of one's own, the fastest plan's."""
    of = next((one for one in chosen if "cheapest" in one.labels), chosen[-1])
    return scaling(of, found, judge, clock)


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
        gc.freeze()  # to the old ones with all that was made, without a look at each of them
        gc.unfreeze()
        if running:
            gc.enable()


def _labelled(found: list[Chosen], least: Chosen | None) -> list[Chosen]:
    """The front with its ends named, and the smallest, which may lie off it."""
    marked = list(found)
    if marked[0].score.usd:  # one's own machines have no price
        marked[0] = marked[0].labelled("cheapest")
    marked[-1] = marked[-1].labelled("fastest")
    if least is None:
        return marked
    for index, one in enumerate(marked):
        if one.candidate == least.candidate:
            marked[index] = one.labelled("smallest")
            return marked
    return [least, *marked]


DRAWS = 100
"""Of the interval of a named plan's hours."""


def _whole(chosen: Chosen, memory: Memory, clock: PipelineClock) -> Chosen:
    """With its hours line by line; a named one with their interval and an Estimate of its own."""
    named = chosen.labels != ("front",)
    run = clock.run_time(chosen.candidate, draws=DRAWS if named else 0)
    confirmed = memory.confirm(chosen.candidate, exactly=True) if named else chosen.confirmed
    return replace(chosen, run=run, confirmed=confirmed)


def _timed(chosen: Chosen, clock: PipelineClock) -> Chosen:
    """What does not fit, with the hours that it would take, where any can be told."""
    try:
        return replace(chosen, run=clock.run_time(chosen.candidate, draws=DRAWS))
    except UnsupportedCombination:
        return chosen


def _left_out(found: Sequence[Place], judge: PipelineJudge) -> dict[str, int]:
    """Candidates that no card can run, by kind."""
    counts: dict[str, int] = {}
    for place in found:
        for kind, count in judge.left_out(place).items():
            counts[kind] = counts.get(kind, 0) + count
    return counts
