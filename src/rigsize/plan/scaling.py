"""How hours and price grow with the GPUs of one machine, and where more of them stop helping."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rigsize.plan.clock import PipelineClock
from rigsize.plan.judge import PipelineJudge
from rigsize.plan.records import Chosen, Limits, Place
from rigsize.plan.search import Tally, front
from rigsize.plan.words import beside_in_words, bound_in_words, describe_place, describe_way
from rigsize.steptime.run_lines import RunTime
from rigsize.units import plural

__all__ = ["ScalingPoint", "breaks_in_words", "scaling"]

HALF = 0.5
"""Below this efficiency most of what is rented waits."""
NO_GAIN = 0.95
"""Of the hours with the next fewer GPUs: above it more of them gain nothing worth their price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPoint:
    """The fastest run that fits so many GPUs."""

    machine: str
    nodes: int
    gpus: int
    network_known: bool
    """Between its nodes; else 100 Gbit/s are assumed."""
    how: str
    batch: str
    hours: float
    usd: float
    efficiency: float
    """GPU-hours of the fewest GPUs that it fits, over these."""
    steps_hours: float
    """Of its steps alone, without start-up, texts, evaluation and the like."""
    lost_to: str
    """What costs most of its efficiency; empty of the first."""
    bound_by: str
    """What its steps wait for, or what takes longest where they are the lesser part."""


def scaling(
    of: Chosen, places: Sequence[Place], judge: PipelineJudge, clock: PipelineClock
) -> list[ScalingPoint]:
    """The fastest way on each number of nodes of one plan's machine, of one's own also on parts."""
    offer = of.candidate.place.offer
    same = [place for place in places if place.offer is offer]
    points: list[ScalingPoint] = []
    for place in sorted(same, key=lambda place: place.cluster.devices):
        found = front([place], judge, Limits(), Tally())
        if found:
            points.append(_point(found[0], points[0] if points else None, clock))
    return points


def _point(chosen: Chosen, first: ScalingPoint | None, clock: PipelineClock) -> ScalingPoint:
    candidate, score = chosen.candidate, chosen.score
    cluster = candidate.place.cluster
    one = first.hours * first.gpus if first else score.hours * cluster.devices
    run = clock.run_time(candidate, draws=0)
    steps_hours = run.lines[0].seconds.p50 / 3600
    return ScalingPoint(
        machine=describe_place(candidate.place) if first is None else first.machine,
        nodes=cluster.nodes,
        gpus=cluster.devices,
        network_known=cluster.network_bytes_per_s is not None,
        how=describe_way(candidate.way),
        batch=f"{candidate.micro_batch} x {candidate.accumulation}",
        hours=score.hours,
        usd=score.usd,
        efficiency=one / (score.hours * cluster.devices),
        steps_hours=steps_hours,
        lost_to=_lost_to(run, steps_hours, cluster.devices, first) if first else "",
        bound_by=bound_in_words(run),
    )


def _lost_to(run: RunTime, steps_hours: float, gpus: int, first: ScalingPoint) -> str:
    """What takes more GPU-hours than on the fewest GPUs, the most of it."""
    share = first.gpus / gpus
    steps = steps_hours - first.steps_hours * share
    beside = (run.hours.p50 - steps_hours) - (first.hours - first.steps_hours) * share
    if beside > steps:
        return beside_in_words(run)
    return "smaller micro-batches" if run.bound_by == "compute" else run.bound_by


def breaks_in_words(points: Sequence[ScalingPoint], global_batch: int | None) -> str:
    """Where the curve breaks: below half the efficiency, where more GPUs gain nothing."""
    if not points:
        return "it fits no number of GPUs"
    parts, last = [], points[-1]
    low = next((p for p in points if p.efficiency < HALF), None)
    if low is not None:
        parts.append(
            f"from {plural(low.gpus, 'GPU')} on less than half of each is used,"
            f" most of the rest lost to {low.lost_to}"
        )
    pairs = itertools.pairwise(points)
    flat = next(((a, b) for a, b in pairs if b.hours > NO_GAIN * a.hours), None)
    if flat is not None:
        fewer, more = flat
        parts.append(f"{plural(more.gpus, 'GPU')} are hardly faster than {fewer.gpus}")
    if not parts:
        parts.append(f"it holds up to {plural(last.gpus, 'GPU')}, the most that were searched")
    if global_batch is not None and last.gpus * 2 > global_batch:
        parts.append(f"a global batch of {global_batch:,} gives no more GPUs a text each")
    return "; ".join(parts)
