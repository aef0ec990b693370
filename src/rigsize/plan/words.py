"""What a plan says in words: why classes of candidates were left out, what the nearest misses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import inf

from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.offers import Offer
from rigsize.hardware.targets import target_of
from rigsize.plan.candidates import Left
from rigsize.plan.records import Candidate, Limits, Place, Rejected, Score, Way
from rigsize.plan.search import Tally
from rigsize.steptime.run_lines import RunTime
from rigsize.units import format_bytes, format_usd

__all__ = [
    "beside_in_words",
    "bound_in_words",
    "describe",
    "describe_place",
    "describe_way",
    "hours_in_words",
    "misses_of",
    "nowhere_in_words",
    "rejected_of",
]

_REASONS = {
    "dominated": "another is no dearer, and no slower or hardly",
    "does_not_fit": "does not fit the card",
    "host_memory": "does not fit the machine's own memory",
    "over_price": "over the price",
    "over_hours": "over the hours",
    "no_time": "no time can be given for it: `rigsize estimate --time` says why",
    "dtype_missing": "the card does not compute in the precision",
    "not_traced": "its step cannot be traced, or only `--offload activations` asks for it",
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
        over = format_usd(score.usd - limits.max_price_usd)
        yield f"{format_usd(score.usd)} USD, {over} over --max-price"
    if limits.max_hours is not None and score.hours > limits.max_hours:
        over = hours_in_words(score.hours - limits.max_hours)
        yield f"{hours_in_words(score.hours)} hours, {over} over --max-hours"


def hours_in_words(hours: float) -> str:
    """Two places, of less than 6 minutes two figures."""
    if hours == inf:
        return "unknown"
    return f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.2g}"


_LINES = {
    "start-up": "start-up",
    "download": "downloading the model",
    "data": "tokenising the texts",
    "warm-up": "the slow first step",
    "evaluation": "evaluation",
    "checkpoints": "writing checkpoints",
}
"""Of a run, beside its steps."""


def bound_in_words(run: RunTime) -> str:
    """What its steps wait for, or what takes longest beside them where they are the lesser part."""
    steps = run.lines[0].seconds.p50
    return run.bound_by if steps > run.total_s.p50 / 2 else beside_in_words(run)


def beside_in_words(run: RunTime) -> str:
    """What takes longest beside its steps."""
    beside = run.lines[1:]
    longest = max(beside, key=lambda line: line.seconds.p50, default=run.lines[0])
    return _LINES.get(longest.name, longest.name)


def nowhere_in_words(
    accelerators: Sequence[Accelerator] | None, limits: Limits, offers: Sequence[Offer]
) -> str:
    """Why no machine of the catalogue can be planned on: the first wish that leaves none."""
    if accelerators is not None:
        names = " or ".join(row.id for row in accelerators)
        if not any(_is_planned_on(row) for row in accelerators):
            first = accelerators[0]
            why = target_of(first).words
            if target_of(first).answered:
                why = f"PyTorch on it: {first.pytorch_support}"
            if first.is_cpu:
                why = "its hours are not known"
            return f"nothing is planned on {names}: {why}"
        offers = [offer for offer in offers if offer.accelerator in accelerators]
        if not offers:
            return f"nobody in the catalogue offers {names}"
    else:
        names = "machine"
    if limits.provider is not None:
        others = sorted({offer.provider for offer in offers})
        offers = [offer for offer in offers if offer.provider == limits.provider]
        if not offers:
            offer = "offers it" if len(others) == 1 else "offer it"
            return f"{limits.provider} offers no {names}; {', '.join(others)} {offer}"
    least = min((offer.devices for offer in offers if not offer.fractional), default=None)
    if least is None:
        return f"only slices of a GPU are offered of {names}, and none is planned on"
    if least > limits.max_gpus:
        return f"the smallest such machine has {least} GPUs, more than --max-gpus {limits.max_gpus}"
    wishes = [f"--region {limits.region}"] if limits.region is not None else []
    wishes += ["--spot"] if limits.spot else []
    return f"no machine meets all that was asked for{': ' if wishes else ''}{', '.join(wishes)}"


def _is_planned_on(row: Accelerator) -> bool:
    target = target_of(row)
    return target.answered and target.trains and not row.is_cpu


def rejected_of(
    tally: Tally, cannot: Mapping[str, int], refused: int, left: Sequence[Left]
) -> tuple[Rejected, ...]:
    """Every class of candidates that was left out, then ways that are none and offers."""
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
    ways = [Rejected(kind="refused", of="ways", reason=_REFUSED, count=refused)] if refused else []
    return (*found, *ways, *offers)


_REFUSED = "what they combine does not go together, on any machine"


def _reason(kind: str, tally: Tally) -> str:
    """With the one that came nearest, where it tells something."""
    missed, who = tally.near.get(kind, (inf, None))
    if kind not in ("does_not_fit", "host_memory", "over_price", "over_hours") or who is None:
        return _REASONS[kind]
    where = describe(who) if isinstance(who, Candidate) else describe_place(who)
    if missed == inf:
        return f"{_REASONS[kind]}; the nearest by less than a bound tells: {where}"
    amount = {
        "over_price": f"at {format_usd(missed)} USD or more",
        "over_hours": f"with {hours_in_words(missed)} hours or more",
    }.get(kind, f"by {format_bytes(int(missed))} at least" if missed < inf else "")
    return f"{_REASONS[kind]}; the nearest {amount}: {where}"
