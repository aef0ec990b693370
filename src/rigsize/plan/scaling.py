"""How hours and price grow with the nodes of one machine, and where more of them stop helping."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rigsize.plan.clock import PipelineClock
from rigsize.plan.judge import PipelineJudge
from rigsize.plan.records import Chosen, Limits, Place
from rigsize.plan.search import Tally, front
from rigsize.plan.words import describe_place, describe_way
from rigsize.steptime.run_lines import RunTime

__all__ = ["ScalingPoint", "breaks_in_words", "scaling"]

HALF = 0.5
"""Below this efficiency most of what is rented waits."""
NO_GAIN = 0.95
"""Of the hours with half as many nodes: above it a doubling gains nothing worth its price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPoint:
    """The fastest run that fits so many nodes."""

    machine: str
    nodes: int
    gpus: int
    how: str
    batch: str
    hours: float
    usd: float
    efficiency: float
    """GPU-hours of the fewest nodes that it fits, over these."""
    bound_by: str


def scaling(
    of: Chosen, places: Sequence[Place], judge: PipelineJudge, clock: PipelineClock
) -> list[ScalingPoint]:
    """The fastest way on each number of nodes of one plan's machine."""
    offer = of.candidate.place.offer
    same = [place for place in places if place.offer is offer]
    points: list[ScalingPoint] = []
    for place in sorted(same, key=lambda place: place.cluster.nodes):
        found = front([place], judge, Limits(), Tally())
        if found:
            points.append(_point(found[0], points[0] if points else None, clock))
    return points


def _point(chosen: Chosen, first: ScalingPoint | None, clock: PipelineClock) -> ScalingPoint:
    candidate, score = chosen.candidate, chosen.score
    cluster = candidate.place.cluster
    one = first.hours * first.gpus if first else score.hours * cluster.devices
    return ScalingPoint(
        machine=describe_place(candidate.place) if first is None else first.machine,
        nodes=cluster.nodes,
        gpus=cluster.devices,
        how=describe_way(candidate.way),
        batch=f"{candidate.micro_batch} x {candidate.accumulation}",
        hours=score.hours,
        usd=score.usd,
        efficiency=one / (score.hours * cluster.devices),
        bound_by=_bound_by(clock.run_time(candidate, draws=0)),
    )


def _bound_by(run: RunTime) -> str:
    """What its steps wait for, or that the steps are the smaller part of it."""
    steps = run.lines[0].seconds.p50
    return run.bound_by if steps > run.total_s.p50 / 2 else "start-up, download and data"


def breaks_in_words(points: Sequence[ScalingPoint], global_batch: int | None) -> str:
    """Where the curve breaks: below half the efficiency, where a doubling gains nothing."""
    if not points:
        return "it fits no number of nodes"
    parts = []
    low = next((p for p in points if p.efficiency < HALF), None)
    if low is not None:
        parts.append(
            f"from {low.nodes} nodes on less than half of each GPU is used, bound by {low.bound_by}"
        )
    pairs = itertools.pairwise(points)
    flat = next((b for a, b in pairs if b.hours > NO_GAIN * a.hours), None)
    if flat is not None:
        parts.append(f"{flat.nodes} nodes are hardly faster than half as many")
    if not parts:
        parts.append(f"it holds up to {points[-1].nodes} nodes, the most that were searched")
    last = points[-1]
    if global_batch is not None and last.gpus * 2 > global_batch:
        parts.append(f"a global batch of {global_batch:,} gives no more GPUs a text each")
    return "; ".join(parts)
