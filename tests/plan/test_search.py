"""The search against brute force: every candidate of a small grid timed and replayed."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from tests.plan.made import CARDS, TableJudge, everybody, place, way, within

from rigsize.plan.records import Candidate, Confirmation, Limits, Place, Score
from rigsize.plan.search import Tally, front, nearest, smallest

WAYS = [
    way(0),
    way(1, parallel="ddp"),
    way(2, parallel="fsdp"),
    way(3, parallel="fsdp", offload="cpu"),
    way(4, parallel="zero1", recompute="block"),
]
machines = st.tuples(
    st.sampled_from(CARDS), st.sampled_from((1, 2)), st.sampled_from((1, 2)), st.integers(0, 3)
)
catalogues = st.lists(machines, min_size=1, max_size=8, unique_by=lambda machine: machine[:3])
limits_of = st.builds(
    Limits,
    max_price_usd=st.none() | st.integers(0, 12).map(float),
    max_hours=st.none() | st.integers(0, 6).map(float),
)


def _places(catalogue: list[tuple[str, int, int, int]]) -> list[Place]:
    return [place(card, per, nodes, float(usd)) for card, per, nodes, usd in catalogue]


def _beats(one: Score, other: Score) -> bool:
    """Whether it is no worse in either and better in one."""
    return one.hours <= other.hours and one.usd <= other.usd and one != other


@given(catalogues, limits_of, st.integers(0, 10_000), st.sampled_from((2, 6)))
def test_front_is_that_of_brute_force(
    catalogue: list[tuple[str, int, int, int]], limits: Limits, seed: int, levels: int
) -> None:
    places, judge = _places(catalogue), TableJudge(WAYS, seed, levels)
    tally = Tally()
    found = front(places, judge, limits, tally)

    kept = [row for row in everybody(places, judge) if within(row[0], limits)]
    expected: list[tuple[Score, Candidate]] = []
    for score, _, candidate in sorted(kept, key=lambda row: (row[0].usd, row[0].hours, row[1])):
        if not expected or score.hours < expected[-1][0].hours:
            expected.append((score, candidate))
    assert [(c.score, c.candidate) for c in found] == expected
    assert not any(_beats(a.score, b.score) for a in found for b in found)
    # Nobody is lost, and nobody is counted twice.
    assert tally.candidates == sum(len(judge.candidates(p, judge.ways(p))) for p in places)
    assert tally.counts.total() + len(found) == tally.candidates
    assert len(judge.replays) == len(set(judge.replays))


@given(catalogues, limits_of, st.integers(0, 10_000))
def test_smallest_is_that_of_brute_force(
    catalogue: list[tuple[str, int, int, int]], limits: Limits, seed: int
) -> None:
    places, judge = _places(catalogue), TableJudge(WAYS, seed, 6)
    found = smallest(places, judge, limits)
    kept = [row for row in everybody(places, judge) if within(row[0], limits)]

    def size(row: tuple[object, ...]) -> tuple[object, ...]:
        score, tie, candidate = row
        cluster = candidate.place.cluster  # type: ignore[attr-defined]
        capacity = cluster.accelerator.capacity_bytes
        return cluster.devices, capacity, score.usd, score.hours, tie  # type: ignore[attr-defined]

    assert (found and found.candidate) == (min(kept, key=size)[2] if kept else None)


@given(catalogues, limits_of, st.integers(0, 10_000))
def test_nearest_is_that_of_brute_force(
    catalogue: list[tuple[str, int, int, int]], limits: Limits, seed: int
) -> None:
    places, judge = _places(catalogue), TableJudge(WAYS, seed, 6)
    found = nearest(places, judge, limits)
    rows = sorted(
        everybody(places, judge),
        key=lambda row: (limits.miss(row[0]), row[0].usd, row[0].hours, row[1]),
    )
    assert (found and found.candidate) == (rows[0][2] if rows else None)


@given(catalogues, st.integers(0, 10_000), st.randoms())
def test_order_of_offers_does_not_matter(
    catalogue: list[tuple[str, int, int, int]], seed: int, shuffled: object
) -> None:
    places, judge = _places(catalogue), TableJudge(WAYS, seed, 2)
    first = front(places, judge, Limits(), Tally())
    shuffled.shuffle(places)  # type: ignore[attr-defined]
    again = front(places, judge, Limits(), Tally())
    assert [c.candidate for c in first] == [c.candidate for c in again]


@given(catalogues, st.integers(0, 10_000), st.sampled_from((0.05, 0.3)))
def test_what_is_hardly_faster_is_left_out(
    catalogue: list[tuple[str, int, int, int]], seed: int, worth: float
) -> None:
    places, judge = _places(catalogue), TableJudge(WAYS, seed, 12)
    found = front(places, judge, Limits(), Tally(), worth=worth)
    rows = sorted(everybody(places, judge), key=lambda row: (row[0].usd, row[0].hours, row[1]))
    expected: list[Score] = []
    for score, _, _ in rows:
        if not expected or score.hours < expected[-1].hours * (1 - worth):
            expected.append(score)
    assert [one.score for one in found] == expected


@dataclass
class SmallHosts(TableJudge):
    """Cards hold everything, a host of less than two dollars an hour nothing."""

    def true_hours(self, candidate: Candidate) -> float | None:
        return 1.0 + candidate.way.order + 1 / candidate.micro_batch

    def fits(self, candidate: Candidate) -> bool:
        return True

    def confirm(self, candidate: Candidate) -> Confirmation:
        small = candidate.place.usd_per_hour < 2
        self.replays.append(candidate)
        return Confirmation(fits=not small, replayed=True, host=small)


def test_a_dearer_machine_is_of_use_for_its_host() -> None:
    alike = [place("L4", 1, 1, usd, region) for usd, region in ((1.0, "a"), (3.0, "c"), (2.0, "b"))]
    judge, tally = SmallHosts(WAYS, 2, 6), Tally()
    found = front(alike, judge, Limits(), tally)
    assert [one.candidate.place.offer.region for one in found] == ["b"]
    assert tally.counts["host_memory"] > 0
    assert tally.counts.total() + len(found) == tally.candidates
    # Where the cheapest has memory enough, nobody looks at the others.
    judge = SmallHosts(WAYS, 2, 6)
    front(alike[1:], judge, Limits(), Tally())
    assert {c.place.offer.region for c in judge.replays} == {"b"}


def test_bounds_save_replays() -> None:
    places = [place(card, n, nodes, 2.0) for card in CARDS for n in (1, 2) for nodes in (1, 2)]
    judge = TableJudge(WAYS, 3, 60)
    tally = Tally()
    found = front(places, judge, Limits(), tally)
    assert found
    assert judge.asked < tally.candidates
    assert len(judge.replays) < tally.candidates / 4


def test_limits_name_their_reason() -> None:
    places, judge = [place("L4", 1, 1, 2.0)], TableJudge(WAYS, 3, 60)
    tally = Tally()
    assert not front(places, judge, Limits(max_price_usd=0.5), tally)
    assert set(tally.counts) == {"over_price"}
    missed, who = tally.near["over_price"]
    assert missed > 0.5
    assert who is places[0]
