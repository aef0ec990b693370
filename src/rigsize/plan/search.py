"""The search: best first through a tree of bounds, so that little is timed and less is replayed.

A place holds groups of ways that are spread alike, a group its ways, a way its batches. Each node
has a floor of the hours below it, first a cheap one, then one that knows more: a place and a group
the peak of its card, then a group how it is spread, a way its kernels and its memory, a batch the
same, then its own kernels, then its hours. At one place USD never fall when hours rise, so a floor
of hours is a floor of USD, too.

The node with the least floor is opened first, a place one group after the other in the order of
their floors. What comes off the heap with real hours is no worse than anything that is left; only
then its memory is replayed, and if it fits it belongs to the answer. Found in the order of USD,
whatever is no faster than what was found before is dominated. The same walk in another order finds
the smallest machine, and the nearest plan where nobody meets the limits.

Equals are settled by `Place.order`, then the plainer way, then the larger micro-batch, so that an
answer does not depend on the order of the offers.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rigsize.plan.records import Candidate, Chosen, Confirmation, Limits, Place, Score, Way

__all__ = ["Batches", "Judge", "Tally", "Ways", "front", "nearest", "smallest"]

PLACE, GROUPS, GROUP, WAY, BATCH, CANDIDATE, TIMED = range(7)
"""How far a node is opened; of equals what has real hours goes last, so that no tie is missed."""

Batches = Sequence[tuple[int, int]]
"""(micro-batch, accumulation), the largest micro-batch first."""
Ways = Sequence[Way]
"""Of a group: at one place alike in all but recomputation and what the loss keeps."""


class Judge(Protocol):
    """What the search asks; each floor holds for everything below its node."""

    def size(self, place: Place, ways: Ways | None = None) -> int:
        """Candidates there: the batches of all its ways, or of a group of `groups`."""

    def batches(self, place: Place, way: Way) -> Batches:
        """All batches of a way."""

    def over_bytes(self, place: Place, ways: Ways) -> int:
        """By how much nothing of a group can fit, whatever its batch; 0 where it may."""

    def possible(self, place: Place, way: Way) -> tuple[Batches, int]:
        """The batches up to the first that cannot fit by a bound, and by how many bytes that."""

    def floor_of_place(self, place: Place) -> float:
        """Hours that nothing there goes below, at little cost."""

    def groups(self, place: Place) -> Sequence[tuple[float, Ways]]:
        """The ways that can run there, spread alike in a group; by a cheap floor, least first."""

    def floor_of_group(self, place: Place, ways: Ways) -> float:
        """Hours that none of the group goes below, with what travels and what is updated."""

    def floor_of_way(self, place: Place, way: Way, batches: Batches) -> float:
        """The same of one way and some of its batches, by its kernels."""

    def floor_of_batch(self, candidate: Candidate) -> float:
        """Hours that the candidate does not go below, at little cost."""

    def floor(self, candidate: Candidate) -> float:
        """The same by its own kernels."""

    def hours(self, candidate: Candidate) -> float | None:
        """Its hours; None where no time can be given."""

    def usd(self, place: Place, hours: float) -> float:
        """The price of so many hours there; never falls when hours rise."""

    def ruled_out(self, candidate: Candidate) -> bool:
        """Whether what is known of others says that it does not fit."""

    def confirm(self, candidate: Candidate) -> Confirmation:
        """Whether it fits, exactly."""


@dataclass(slots=True)
class Tally:
    """What became of the candidates."""

    counts: Counter[str] = field(default_factory=Counter)
    """Left out, by kind."""
    near: dict[str, tuple[float, Candidate | Place]] = field(default_factory=dict)
    """By kind: the least that was missed, and by whom."""
    candidates: int = 0
    bounds: int = 0

    def left_out(
        self, kind: str, count: int, missed: float = 0.0, who: Candidate | Place | None = None
    ) -> None:
        """So many candidates for one reason."""
        self.counts[kind] += count
        if who is not None and (kind not in self.near or missed < self.near[kind][0]):
            self.near[kind] = missed, who


@dataclass(slots=True)
class _Node:
    level: int
    place: Place
    way: Way | None = None
    candidate: Candidate | None = None
    groups: Sequence[tuple[float, Ways]] = ()
    """Of a place that is opened: all of them."""
    next: int = 0
    """Which of them is the first that was not opened."""
    ways: Ways = ()
    """Of a group."""
    batches: Batches = ()
    """Of a way: those that may fit."""


Rank = Callable[[Place, Score], tuple[float, ...]]
"""What is found first; at one place it never falls when hours and USD rise."""
Drop = Callable[[Score], str | None]
"""The kind of reason for which a node with this floor is left out; None to go on."""


class _Walk:
    def __init__(
        self, places: Sequence[Place], judge: Judge, rank: Rank, tally: Tally | None = None
    ) -> None:
        self.judge, self.rank, self.tally = judge, rank, tally or Tally()
        self.counts = tally is not None
        self.heap: list[tuple[Any, ...]] = []
        self.serial = 0
        self.dearer: dict[Place, Place] = {}
        for alike in _alike(places):
            first, *others = alike
            for cheap, dear in itertools.pairwise(alike):
                self.dearer[cheap] = dear
            size = self.size(_Node(PLACE, first))
            self.tally.candidates += size * len(alike)
            if others:
                self.tally.left_out("dominated", size * len(others))
            self.push(_Node(PLACE, first), judge.floor_of_place(first))

    def size(self, node: _Node) -> int:
        """Candidates below a node, where somebody counts them."""
        if not self.counts:
            return 0
        if node.candidate is not None:
            return 1
        if node.way is not None:
            return len(node.batches)
        if node.level == GROUPS:
            left = node.groups[node.next :]
            return sum(self.judge.size(node.place, ways) for _, ways in left)
        return self.judge.size(node.place, node.ways or None)

    def push(self, node: _Node, hours: float) -> None:
        self.tally.bounds += node.level < TIMED
        place, candidate = node.place, node.candidate
        score = Score(hours, self.judge.usd(place, hours))
        way = candidate.way.order if candidate else -1
        micro = candidate.micro_batch if candidate else 0
        self.serial += 1
        timed = int(node.level == TIMED)
        key = (self.rank(place, score), timed, place.order, way, -micro)
        heapq.heappush(self.heap, (*key, self.serial, score, node))

    def found(self, drop: Drop) -> Iterator[tuple[Candidate, Score, Confirmation]]:
        """What fits, in the order of `rank`; `drop` may learn from what was found."""
        while self.heap:
            *_, score, node = heapq.heappop(self.heap)
            kind = drop(score)
            if kind is not None:
                who = node.candidate or node.place
                self.tally.left_out(kind, self.size(node), _missed(kind, score), who)
            elif node.level < TIMED:
                self.open(node)
            else:
                assert node.candidate is not None
                confirmed = self.judge.confirm(node.candidate)
                if confirmed.fits:
                    yield node.candidate, score, confirmed
                    continue
                kind = "host_memory" if confirmed.host else "does_not_fit"
                if confirmed.host and node.place in self.dearer:
                    self.move(node.candidate, score.hours)
                self.tally.left_out(kind, 1, confirmed.over_bytes or _UNKNOWN, node.candidate)

    def move(self, candidate: Candidate, hours: float) -> None:
        """To the next dearer machine with the same cards, whose host has more memory."""
        place = self.dearer[candidate.place]
        if self.counts:
            self.tally.counts["dominated"] -= 1
        self.push(_Node(TIMED, place, candidate=replace(candidate, place=place)), hours)

    def open(self, node: _Node) -> None:
        judge, place = self.judge, node.place
        if node.level == PLACE:
            self.push_next(_Node(GROUPS, place, groups=judge.groups(place)))
        elif node.level == GROUPS:
            ways = node.groups[node.next][1]
            node.next += 1
            self.push_next(node)
            self.open_group(place, ways)
        elif node.level == GROUP:
            for way in node.ways:
                self.open_way(place, way)
        elif node.level == WAY:
            assert node.way is not None
            for batch in node.batches:
                candidate = _candidate(place, node.way, batch)
                hours = judge.floor_of_batch(candidate)
                self.push(_Node(BATCH, place, candidate=candidate), hours)
        else:
            assert node.candidate is not None
            self.open_candidate(node.level, node.candidate)

    def push_next(self, node: _Node) -> None:
        """A place that is opened, by the next of its groups."""
        if node.next < len(node.groups):
            self.push(node, node.groups[node.next][0])

    def open_group(self, place: Place, ways: Ways) -> None:
        """Unless its weights, gradients and states alone do not fit."""
        over = self.judge.over_bytes(place, ways)
        if over:
            self.tally.bounds += 1
            least = _candidate(place, ways[0], self.judge.batches(place, ways[0])[-1])
            size = self.judge.size(place, ways) if self.counts else 0
            self.tally.left_out("does_not_fit", size, over, least)
        else:
            self.push(_Node(GROUP, place, ways=ways), self.judge.floor_of_group(place, ways))

    def open_way(self, place: Place, way: Way) -> None:
        """What no bound of memory rules out."""
        possible, over = self.judge.possible(place, way)
        if over:
            self.tally.bounds += 1
            every = self.judge.batches(place, way)
            missing = len(every) - len(possible)
            nearest = _candidate(place, way, every[missing - 1])
            self.tally.left_out("does_not_fit", missing * self.counts, over, nearest)
        if possible:
            hours = self.judge.floor_of_way(place, way, possible)
            self.push(_Node(WAY, place, way, batches=possible), hours)

    def open_candidate(self, level: int, candidate: Candidate) -> None:
        """Its own kernels, then its hours, unless others say that it does not fit."""
        place = candidate.place
        if self.judge.ruled_out(candidate):
            self.tally.left_out("does_not_fit", 1, _UNKNOWN, candidate)
        elif level == BATCH:
            self.push(_Node(CANDIDATE, place, candidate=candidate), self.judge.floor(candidate))
        else:
            hours = self.judge.hours(candidate)
            if hours is None:
                self.tally.left_out("no_time", 1, 0.0, candidate)
            else:
                self.push(_Node(TIMED, place, candidate=candidate), hours)


def _candidate(place: Place, way: Way, batch: tuple[int, int]) -> Candidate:
    return Candidate(place=place, way=way, micro_batch=batch[0], accumulation=batch[1])


def _alike(places: Sequence[Place]) -> list[list[Place]]:
    """Machines with the same cards in the same number on the same network, the cheapest first.

    They take the same hours; a dearer one is of use for its host's memory alone.
    """
    groups: dict[tuple[object, ...], list[Place]] = {}
    for place in sorted(places, key=lambda place: (place.usd_per_hour, place.order)):
        cluster = place.cluster
        shape = cluster.per_node, cluster.nodes, cluster.network_bytes_per_s
        key = (cluster.accelerator, *shape)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


_UNKNOWN = float("inf")
"""By how much a replay ran out of memory is not known."""


def _missed(kind: str, score: Score) -> float:
    return {"over_price": score.usd, "over_hours": score.hours}.get(kind, 0.0)


def _over(score: Score, limits: Limits) -> str | None:
    if limits.max_price_usd is not None and score.usd > limits.max_price_usd:
        return "over_price"
    if limits.max_hours is not None and score.hours > limits.max_hours:
        return "over_hours"
    return None


def front(
    places: Sequence[Place], judge: Judge, limits: Limits, tally: Tally, *, worth: float = 0.0
) -> list[Chosen]:
    """All within the limits that nobody beats in hours and USD, the cheapest first.

    Each is faster than the one before it by more than `worth` of its hours: what is dearer and
    hardly faster is nobody's choice.
    """
    chosen: list[Chosen] = []

    def drop(score: Score) -> str | None:
        if chosen and score.hours >= chosen[-1].score.hours * (1 - worth):
            return "dominated"  # found later, so no cheaper
        return _over(score, limits)

    walk = _Walk(places, judge, lambda _, score: (score.usd, score.hours), tally)
    for candidate, score, confirmed in walk.found(drop):
        chosen.append(
            Chosen(labels=("front",), candidate=candidate, score=score, confirmed=confirmed)
        )
    return chosen


def smallest(places: Sequence[Place], judge: Judge, limits: Limits) -> Chosen | None:
    """The one on fewest devices, of these on the smallest cards, of these the cheapest."""

    def rank(place: Place, score: Score) -> tuple[float, ...]:
        cluster = place.cluster
        capacity = float(cluster.accelerator.capacity_bytes or 0)
        return float(cluster.devices), capacity, score.usd, score.hours

    return _first(_Walk(places, judge, rank), lambda score: _over(score, limits), "smallest")


def nearest(places: Sequence[Place], judge: Judge, limits: Limits) -> Chosen | None:
    """The one that misses its worst limit by the least, if all miss one."""

    def rank(_: Place, score: Score) -> tuple[float, ...]:
        return limits.miss(score), score.usd, score.hours

    return _first(_Walk(places, judge, rank), lambda _: None, "nearest")


def _first(walk: _Walk, drop: Drop, label: str) -> Chosen | None:
    for candidate, score, confirmed in walk.found(drop):
        return Chosen(labels=(label,), candidate=candidate, score=score, confirmed=confirmed)
    return None
