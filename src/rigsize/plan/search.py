"""The search: best first through a tree of bounds, so that little is timed and less is replayed.

A place holds ways, a way its batches. Each node has a floor of the hours below it, a way first a
cheap one, then one that knows how it is spread; at one place USD never fall when hours rise, so a
floor of hours is a floor of USD, too. The node with the least
floor is opened first: a place into ways, a way into candidates, a candidate into its real hours.
What comes off the heap with real hours is no worse than anything that is left; only then its memory
is replayed, and if it fits it belongs to the answer. Found in the order of USD, whatever is no
faster than what was found before is dominated. The same walk in another order finds the smallest
machine, and the nearest plan where nobody meets the limits.

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

__all__ = ["Judge", "Tally", "front", "nearest", "smallest"]

PLACE, WAY, SPREAD, CANDIDATE, TIMED = range(5)
"""How far a node is opened; of equals the less opened goes first, so that no tie is missed."""


class Judge(Protocol):
    """What the search asks; each floor holds for everything below its node."""

    def ways(self, place: Place) -> Sequence[Way]:
        """Those that can run there."""

    def batches(self, place: Place, way: Way) -> Sequence[tuple[int, int]]:
        """(micro-batch, accumulation), the largest micro-batch first."""

    def size(self, place: Place) -> int:
        """Candidates there: the batches of its ways."""

    def floor_of_place(self, place: Place) -> float:
        """Hours that nothing there goes below."""

    def floor_of_way(self, place: Place, way: Way) -> float:
        """Hours that no batch of the way goes below, at little cost."""

    def floor_of_spread(self, place: Place, way: Way) -> float:
        """The same with what travels between ranks and to the host."""

    def floor(self, candidate: Candidate) -> float:
        """Hours that the candidate does not go below."""

    def hours(self, candidate: Candidate) -> float | None:
        """Its hours; None where no time can be given."""

    def usd(self, place: Place, hours: float) -> float:
        """The price of so many hours there; never falls when hours rise."""

    def over_bytes(self, candidate: Candidate) -> int:
        """By how much it cannot fit by a bound; 0 where the bound does not say."""

    def possible(self, place: Place, way: Way) -> bool:
        """Whether the least batch of a way fits, exactly: without it no batch does."""

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


@dataclass(frozen=True, slots=True)
class _Node:
    level: int
    place: Place
    way: Way | None = None
    candidate: Candidate | None = None


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
        self.doubtful: set[tuple[object, int]] = set()
        """Cards, by how many, of which the last replay failed: there a way is asked for its least
        batch before any of its batches is timed."""
        self.heap: list[tuple[Any, ...]] = []
        self.serial = 0
        self.dearer: dict[Place, Place] = {}
        for alike in _alike(places):
            first, *others = alike
            for place in alike:
                self.tally.candidates += self.size(_Node(PLACE, place))
            for cheap, dear in itertools.pairwise(alike):
                self.dearer[cheap] = dear
            for place in others:
                self.tally.left_out("dominated", self.size(_Node(PLACE, place)))
            self.push(_Node(PLACE, first), judge.floor_of_place(first))

    def size(self, node: _Node) -> int:
        """Candidates below a node, where somebody counts them."""
        if not self.counts:
            return 0
        if node.candidate is not None:
            return 1
        if node.way is not None:
            return len(self.judge.batches(node.place, node.way))
        return self.judge.size(node.place)

    def push(self, node: _Node, hours: float) -> None:
        self.tally.bounds += node.level < TIMED
        place, candidate = node.place, node.candidate
        score = Score(hours, self.judge.usd(place, hours))
        way = candidate.way.order if candidate else node.way.order if node.way else -1
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
                if confirmed.replayed:
                    change = self.doubtful.discard if confirmed.fits else self.doubtful.add
                    change(_cards(node.place))
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
        self.push(_Node(TIMED, place, candidate.way, replace(candidate, place=place)), hours)

    def open(self, node: _Node) -> None:
        judge, place = self.judge, node.place
        if node.level == PLACE:
            for way in judge.ways(place):
                if judge.batches(place, way):
                    self.push(_Node(WAY, place, way), judge.floor_of_way(place, way))
        elif node.level == WAY:
            assert node.way is not None
            hours = judge.floor_of_spread(place, node.way)
            self.push(_Node(SPREAD, place, node.way), hours)
        elif node.level == SPREAD:
            assert node.way is not None
            self.open_way(place, node.way)
        else:
            assert node.candidate is not None
            if judge.ruled_out(node.candidate) or (
                _cards(place) in self.doubtful and not judge.possible(place, node.candidate.way)
            ):
                self.tally.left_out("does_not_fit", 1, _UNKNOWN, node.candidate)
                return
            timed = judge.hours(node.candidate)
            if timed is None:
                self.tally.left_out("no_time", 1, 0.0, node.candidate)
            else:
                self.push(_Node(TIMED, place, node.way, node.candidate), timed)

    def open_way(self, place: Place, way: Way) -> None:
        for micro, accumulation in self.judge.batches(place, way):
            candidate = Candidate(
                place=place, way=way, micro_batch=micro, accumulation=accumulation
            )
            self.tally.bounds += 1
            over = self.judge.over_bytes(candidate)
            if over:
                self.tally.left_out("does_not_fit", 1, over, candidate)
            else:
                self.push(_Node(CANDIDATE, place, way, candidate), self.judge.floor(candidate))


def _cards(place: Place) -> tuple[object, int]:
    return place.cluster.accelerator, place.cluster.devices


def _alike(places: Sequence[Place]) -> list[list[Place]]:
    """Machines with the same cards in the same number, the cheapest first.

    They take the same hours; a dearer one is of use for its host's memory alone.
    """
    groups: dict[tuple[object, ...], list[Place]] = {}
    for place in sorted(places, key=lambda place: (place.usd_per_hour, place.order)):
        cluster = place.cluster
        key = (cluster.accelerator, cluster.per_node, cluster.nodes)
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
