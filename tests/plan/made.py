"""A judge that is a table of random numbers, so that the search can be held against brute force."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from rigsize.hardware import find_accelerator
from rigsize.hardware.offers import Offer
from rigsize.plan.records import Candidate, Confirmation, Limits, Place, Score, Way
from rigsize.spec import Cluster, Strategy, Workload

CARDS = ("T4", "L4", "A100-40GB", "H100-80GB-SXM")
WORKLOAD = Workload(model="m", task="masked-lm", max_length=128)
BATCHES = ((4, 1), (2, 2), (1, 4))


def place(card: str, per_node: int, nodes: int, usd_per_hour: float, region: str = "any") -> Place:
    """A place of an offer that nobody made."""
    row = find_accelerator(card)
    offer = Offer(
        provider="made",
        instance=f"{card}-{per_node}",
        accelerator=row,
        gpu_count=per_node,
        gpu_memory_gib=None,
        vcpus=None,
        host_memory_gib=None,
        region=region,
        on_demand_usd_per_hour=usd_per_hour,
        spot_usd_per_hour=None,
        price_date="2026-11-01",
        status="current",
        source="made",
        note="",
    )
    cluster = Cluster(accelerator=row, per_node=per_node, nodes=nodes)
    return Place(offer=offer, cluster=cluster, usd_per_hour=usd_per_hour * nodes)


def way(order: int, **strategy: str) -> Way:
    """A way of the made workload."""
    return Way(recipe="made", workload=WORKLOAD, strategy=Strategy(**strategy), order=order)  # type: ignore[arg-type]


@dataclass
class TableJudge:
    """Random hours and needs; floors are random shares of the least below a node."""

    all_ways: list[Way]
    seed: int
    levels: int
    """Of hours, few so that there are ties."""
    asked: int = 0
    replays: list[Candidate] = field(default_factory=list)

    def draw(self, candidate: Candidate, what: str) -> random.Random:
        """Numbers that depend on nothing but the candidate."""
        where = candidate.place.order, candidate.place.cluster.nodes, candidate.way.order
        return random.Random(f"{self.seed} {what} {where} {candidate.micro_batch}")

    def true_hours(self, candidate: Candidate) -> float | None:
        hours = self.draw(candidate, "hours").randint(0, self.levels)
        return float(hours) if hours else None

    def fits(self, candidate: Candidate) -> bool:
        return self.draw(candidate, "fit").random() < 0.6

    def candidates(self, place: Place, ways: Sequence[Way]) -> list[Candidate]:
        return [
            Candidate(place=place, way=way, micro_batch=micro, accumulation=accumulation)
            for way in ways
            for micro, accumulation in self.batches(place, way)
        ]

    def _floor(self, place: Place, ways: Sequence[Way]) -> float:
        hours = [self.true_hours(c) for c in self.candidates(place, ways)]
        least = min((h for h in hours if h is not None), default=0.0)
        return least * random.Random(f"{self.seed} {place.order}").choice((0.0, 0.5, 1.0))

    # -- the protocol ---------------------------------------------------------------------------

    def ways(self, place: Place) -> Sequence[Way]:
        return [w for w in self.all_ways if (w.order + place.cluster.devices + self.seed) % 4]

    def batches(self, place: Place, way: Way) -> Sequence[tuple[int, int]]:
        return BATCHES[(self.seed + way.order) % 3 :]

    def size(self, place: Place, ways: Sequence[Way] | None = None) -> int:
        return len(self.candidates(place, self.ways(place) if ways is None else ways))

    def over_bytes(self, place: Place, ways: Sequence[Way]) -> int:
        knows = random.Random(f"{self.seed} {place.order} group").random() < 0.5
        return 9 if knows and not any(map(self.fits, self.candidates(place, ways))) else 0

    def possible(self, place: Place, way: Way) -> tuple[Sequence[tuple[int, int]], int]:
        every = self.candidates(place, [way])
        ruled_out = 0
        while ruled_out < len(every) and not self.fits(every[ruled_out]):
            if self.draw(every[ruled_out], "bound").random() < 0.4:
                break
            ruled_out += 1
        return self.batches(place, way)[ruled_out:], 7 if ruled_out else 0

    def floor_of_place(self, place: Place) -> float:
        return self._floor(place, self.ways(place))

    def groups(self, place: Place) -> Sequence[tuple[float, Sequence[Way]]]:
        ways = self.ways(place)
        halves = [ways[:2], ways[2:]] if len(ways) > 2 else [ways] if ways else []
        floored = [(self._floor(place, half), number, half) for number, half in enumerate(halves)]
        return [(floor, half) for floor, _, half in sorted(floored)]

    def floor_of_group(self, place: Place, ways: Sequence[Way]) -> float:
        return self._floor(place, ways)

    def floor_of_way(self, place: Place, way: Way, batches: Sequence[tuple[int, int]]) -> float:
        return self._floor(place, [way])

    def floor_of_batch(self, candidate: Candidate) -> float:
        return (self.true_hours(candidate) or 0.0) * 0.5

    def floor(self, candidate: Candidate) -> float:
        return (self.true_hours(candidate) or 0.0) * 0.75

    def hours(self, candidate: Candidate) -> float | None:
        self.asked += 1
        return self.true_hours(candidate)

    def usd(self, place: Place, hours: float) -> float:
        return hours * place.usd_per_hour + (1.0 if place.usd_per_hour else 0.0)

    def ruled_out(self, candidate: Candidate) -> bool:
        return self.draw(candidate, "fact").random() < 0.3 and not self.fits(candidate)

    def confirm(self, candidate: Candidate) -> Confirmation:
        self.replays.append(candidate)
        return Confirmation(fits=self.fits(candidate), replayed=True)


def everybody(
    places: Sequence[Place], judge: TableJudge
) -> list[tuple[Score, tuple[object, ...], Candidate]]:
    """Every candidate that fits, timed one by one: (score, the order between equals, it)."""
    found: list[tuple[Score, tuple[object, ...], Candidate]] = []
    for there in places:
        for candidate in judge.candidates(there, judge.ways(there)):
            hours = judge.true_hours(candidate)
            if hours is None or not judge.fits(candidate):
                continue
            score = Score(hours, judge.usd(there, hours))
            tie = (there.order, candidate.way.order, -candidate.micro_batch)
            found.append((score, tie, candidate))
    return found


def within(score: Score, limits: Limits) -> bool:
    """Whether a score meets both limits."""
    return limits.miss(score) <= 1
