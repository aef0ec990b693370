"""What a plan says in words: why classes of candidates were left out, what the nearest misses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import inf

from rigsize.plan.candidates import Left
from rigsize.plan.records import Candidate, Limits, Place, Rejected, Score, Way
from rigsize.plan.search import Tally
from rigsize.units import format_bytes

__all__ = ["describe", "describe_place", "describe_way", "misses_of", "rejected_of"]

_REASONS = {
    "dominated": "another is no slower and no dearer",
    "does_not_fit": "does not fit the card",
    "host_memory": "does not fit the machine's own memory",
    "over_price": "over the price",
    "over_hours": "over the hours",
    "no_time": "no time can be given for it",
    "dtype_missing": "the card does not compute in the precision",
    "not_traced": "not traced yet: `rigsize estimate` of it traces it once",
}
_ORDER = (*_REASONS, "not_sold")


def describe_place(place: Place) -> str:
    """`aws p5.48xlarge: 4 x 8 H100-80GB-SXM`."""
    cluster, offer = place.cluster, place.offer
    nodes = f"{cluster.nodes} x " if cluster.nodes > 1 else ""
    return f"{offer.provider} {offer.instance}: {nodes}{cluster.per_node} {cluster.accelerator.id}"


def describe_way(way: Way) -> str:
    """`lean, amp-bf16, fsdp, offload cpu, recompute block`."""
    strategy = way.strategy
    parts = [way.recipe, strategy.precision, strategy.parallel]
    parts += [f"offload {strategy.offload}"] if strategy.offload != "none" else []
    parts += [f"recompute {strategy.recompute}"] if strategy.recompute != "none" else []
    return ", ".join(parts)


def describe(candidate: Candidate) -> str:
    """Where, how and in which batch."""
    batch = f"batch {candidate.micro_batch} x {candidate.accumulation}"
    return f"{describe_place(candidate.place)}; {describe_way(candidate.way)}; {batch}"


def misses_of(score: Score, limits: Limits) -> tuple[str, ...]:
    """Which limits a score is above, and by how much."""
    return tuple(_misses(score, limits))


def _misses(score: Score, limits: Limits) -> Iterator[str]:
    if limits.max_price_usd is not None and score.usd > limits.max_price_usd:
        yield f"{score.usd:,.2f} USD, {score.usd - limits.max_price_usd:,.2f} over --max-price"
    if limits.max_hours is not None and score.hours > limits.max_hours:
        yield f"{score.hours:,.2f} hours, {score.hours - limits.max_hours:,.2f} over --max-hours"


def rejected_of(
    tally: Tally, cannot: Mapping[str, int], left: Sequence[Left]
) -> tuple[Rejected, ...]:
    """Every class of candidates that was left out, then every class of offers."""
    counts = tally.counts + Counter(cannot)
    found = [
        Rejected(kind=kind, of="candidates", reason=_reason(kind, tally), count=count)
        for kind, count in counts.items()
        if count
    ]
    found.sort(key=lambda one: _ORDER.index(one.kind))
    offers = (
        Rejected(kind=one.kind, of="offers", reason=one.reason, count=one.count) for one in left
    )
    return (*found, *offers)


def _reason(kind: str, tally: Tally) -> str:
    """With the one that came nearest, where it tells something."""
    missed, who = tally.near.get(kind, (inf, None))
    if kind not in ("does_not_fit", "host_memory", "over_price", "over_hours") or who is None:
        return _REASONS[kind]
    where = describe(who) if isinstance(who, Candidate) else describe_place(who)
    if missed == inf:
        return f"{_REASONS[kind]}; the nearest by less than a bound tells: {where}"
    amount = {
        "over_price": f"at {missed:,.2f} USD or more",
        "over_hours": f"with {missed:,.2f} hours or more",
    }.get(kind, f"by {format_bytes(int(missed))} at least" if missed < inf else "")
    return f"{_REASONS[kind]}; the nearest {amount}: {where}"
