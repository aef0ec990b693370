"""What is searched and what is found: machines, ways to run, batches, limits and the Plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rigsize.batches import usual_batch, worst_batch
from rigsize.estimate import with_batch
from rigsize.hardware.offers import Offer
from rigsize.point import point_of
from rigsize.program.mesh import Mesh, mesh_of
from rigsize.spec import Cluster, Strategy, Workload

if TYPE_CHECKING:
    from rigsize.estimate import Estimate
    from rigsize.plan.scaling import ScalingPoint
    from rigsize.search import Edit
    from rigsize.steptime.run_lines import RunTime
    from rigsize.texts.stats import LengthHistogram

__all__ = [
    "Candidate",
    "Chosen",
    "Confirmation",
    "Limits",
    "Place",
    "Plan",
    "Rejected",
    "Score",
    "Searched",
    "Way",
    "least_point_at",
    "point_at",
    "usual_of",
    "usual_point_at",
]

MOST_GPUS = 1024
"""GPUs that are searched where nobody says how many may be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the user can pay, wait for and get; None is no limit."""

    max_price_usd: float | None = None
    """For the whole run."""
    max_hours: float | None = None
    """p50, of the whole run."""
    max_gpus: int = MOST_GPUS
    """Devices in all."""
    provider: str | None = None
    region: str | None = None
    spot: bool = False
    """Spot prices, and only offers that have one."""
    headroom_bytes: int = 0
    """Of each card, to be left free."""
    headroom_share: float = 0.0
    """The same as a share of the card; both are kept."""

    def miss(self, score: Score) -> float:
        """How many times over its worst limit a score is; up to 1 it meets all."""
        price = _share(score.usd, self.max_price_usd)
        return max(price, _share(score.hours, self.max_hours))


def _share(value: float, limit: float | None) -> float:
    if limit is None:
        return 0.0
    return value / limit if limit else (float("inf") if value else 0.0)


class Score(NamedTuple):
    """What a candidate is judged by: hours p50, and USD where there is a price."""

    hours: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """A machine as it is sold, or owned, times a number of nodes."""

    offer: Offer
    cluster: Cluster
    usd_per_hour: float
    """Of all nodes; of one's own that of their energy, or 0."""

    @property
    def order(self) -> tuple[int, float, float, str, str, str]:
        """Between equals: fewer devices, the cheaper, the smaller card, then by name."""
        cluster, offer = self.cluster, self.offer
        capacity = cluster.accelerator.capacity_bytes or 0
        return (
            cluster.devices,
            self.usd_per_hour,
            capacity,
            offer.provider,
            offer.instance,
            offer.region,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Way:
    """How it is run, all but the batch: a recipe with its precision, sharding and offload."""

    recipe: str
    """Of `rigsize.recipes`, or `as given`."""
    workload: Workload
    strategy: Strategy
    """With a micro-batch of 1."""
    order: int
    """Between equals the plainer, which stands first in the grid."""
    label: str = ""
    """What it changes of mathematics or rounding, in words; empty where it changes nothing."""
    lengths: LengthHistogram | None = None
    """Of the texts, cut to the workload's longest; None where each takes max-length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way at a place with its batch."""

    place: Place
    way: Way
    micro_batch: int
    accumulation: int

    @property
    def strategy(self) -> Strategy:
        """The way's, with this batch: of the longest texts, where lengths are known."""
        return _with_batch(self.way, self.micro_batch, self.accumulation)

    @property
    def mesh(self) -> Mesh:
        """The ranks."""
        return _mesh(self.way, self.place)

    @property
    def point(self) -> Mapping[str, int]:
        """The sizes of a micro-batch, of the longest texts where lengths are known."""
        return point_at(self.way, self.micro_batch)

    @property
    def usual(self) -> tuple[Workload, Strategy]:
        """What hours are of: a usual batch, where lengths are known."""
        return usual_of(self.way, self.micro_batch, self.accumulation)

    @property
    def global_batch(self) -> int:
        """Texts of an optimizer step, which may be a little more than asked for."""
        return self.micro_batch * self.accumulation * self.mesh.ranks


# A search asks these of thousands of candidates; records that are made anew are checked anew.
@lru_cache(maxsize=65_536)
def _with_batch(way: Way, micro_batch: int, accumulation: int) -> Strategy:
    strategy = with_batch(way.strategy, micro_batch, accumulation)
    if way.lengths is None:
        return strategy
    return worst_batch(way.lengths, way.workload, strategy).strategy


@lru_cache(maxsize=65_536)
def usual_of(way: Way, micro_batch: int, accumulation: int = 1) -> tuple[Workload, Strategy]:
    """The records of a usual batch, as `run_time` has them."""
    strategy = with_batch(way.strategy, micro_batch, accumulation)
    if way.lengths is None:
        return way.workload, strategy
    batch = usual_batch(way.lengths, way.workload, strategy)
    return batch.workload, batch.strategy


@lru_cache(maxsize=65_536)
def usual_point_at(way: Way, micro_batch: int) -> Mapping[str, int]:
    """The sizes of a usual micro-batch."""
    return point_of(*usual_of(way, micro_batch))


@lru_cache(maxsize=65_536)
def least_point_at(way: Way, micro_batch: int) -> Mapping[str, int]:
    """Sizes of no more a text than a usual batch of any size has: all of the mean length."""
    if way.lengths is None:
        return point_at(way, micro_batch)
    mean = way.lengths.mean
    strategy = with_batch(way.strategy, micro_batch)
    if way.workload.padding == "unpadded":
        tokens = max(micro_batch, int(micro_batch * mean))
        strategy = replace(strategy, tokens_per_batch=tokens)
    return point_of(replace(way.workload, max_length=math.ceil(mean)), strategy)


@lru_cache(maxsize=65_536)
def _mesh(way: Way, place: Place) -> Mesh:
    return mesh_of(way.strategy, place.cluster, training=way.workload.training)


@lru_cache(maxsize=65_536)
def point_at(way: Way, micro_batch: int) -> Mapping[str, int]:
    """The sizes of a micro-batch of so many texts."""
    return point_of(way.workload, _with_batch(way, micro_batch, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What an exact replay, or a fact that follows from one, says of a candidate's memory."""

    fits: bool
    replayed: bool
    """False where it follows from another candidate's replay."""
    over_bytes: int = 0
    """Where it does not fit, and is known: by how much at least."""
    host: bool = False
    """Whether it is the host's memory that does not do."""
    estimate: Estimate | None = None
    """Of a replay that fits; of the nearest candidate where nothing does."""
    at_most_bytes: int | None = None
    """Of the device, where another candidate's replay, of no less memory, says that it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """What was left out for one reason."""

    kind: str
    """does_not_fit, host_memory, dtype_missing, over_price, over_hours, not_sold, dominated, ..."""
    of: str
    """candidates of the grid, ways that are none, or offers that are no place in it."""
    reason: str
    """In words, with the one that came nearest."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """How much was looked at."""

    candidates: int
    """In the grid."""
    bounds: int
    """Bounds of memory, hours or price that were computed."""
    evaluations: int
    """Step times."""
    replays: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A candidate of the answer."""

    labels: tuple[str, ...]
    """cheapest, fastest, smallest, front, nearest."""
    candidate: Candidate
    score: Score
    confirmed: Confirmation
    run: RunTime | None = None
    """Its hours line by line, with their interval."""
    misses: tuple[str, ...] = ()
    """Of the nearest plan, where nobody meets the limits or fits: which, and by how much."""

    def labelled(self, label: str) -> Chosen:
        """The same with one more label."""
        return replace(self, labels=(*self.labels, label))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer."""

    chosen: tuple[Chosen, ...]
    """By USD, the cheapest first, before them the smallest where another beats it.

    Where nobody meets the limits, or nothing fits, the nearest; empty where there is no machine or
    no way to run it that can be judged.
    """
    rejected: tuple[Rejected, ...]
    searched: Searched
    met: bool
    """Whether any plan meets the limits; else `chosen` holds the nearest."""
    notes: tuple[str, ...] = ()
    """Why there is no machine to plan on."""
    edits: tuple[Edit, ...] = ()
    """Where nothing fits: what would make the nearest fit, or saves most of it."""
    scaling: tuple[ScalingPoint, ...] = ()
    """Of the cheapest plan's machine, where it was asked for."""
    scaling_breaks: str = ""
