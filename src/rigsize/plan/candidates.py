"""The grid: places from offers, ways from what the user fixed, micro-batches of a global batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from rigsize.errors import SizingError
from rigsize.estimate import check_workload
from rigsize.hardware.accelerators import Accelerator, with_headroom
from rigsize.hardware.offers import Offer, Wanted, select
from rigsize.hardware.targets import target_of
from rigsize.models import ModelSource
from rigsize.plan.records import Limits, Place, Way
from rigsize.program.mesh import accumulation_for
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.spec.zero import ZEROS
from rigsize.texts.stats import LengthHistogram

__all__ = ["Job", "Left", "batches", "own_places", "places", "ways"]

MOST_OVERSHOOT = 0.02
"""Of the global batch, by which whole micro-batches may exceed it before they leave the grid."""
PRECISIONS = ("fp32", "tf32", "amp-bf16", "amp-fp16")
"""What is searched where no precision is given: weights, states and sums stay fp32 in all."""
ZERO_PRECISIONS = ("fp32", "tf32", "bf16", "fp16-master")
"""The same under ZeRO, whose 16-bit engines keep fp32 masters."""
PARALLELS = ("single", "ddp", "zero1", "zero2", "fsdp", "hsdp", "zero3")
OFFLOADS = ("none", "optimizer", "cpu-params", "cpu", "activations")
RECOMPUTES = ("none", "block")
NO_NETWORK = ("runpod", "vast")
"""Their machines are pods of many hosts, between which there is the internet: never several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A recipe as the command line and its defaults make it."""

    recipe: str
    workload: Workload
    strategy: Strategy
    label: str = ""
    """What the recipe changes of the mathematics or the rounding, in words."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Fields of the Strategy that are not varied, by their values: what the user gave."""
    lengths: LengthHistogram | None = None
    """Of the texts, where its batches are not padded to max-length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Offers that are no place, and why."""

    kind: str
    reason: str
    count: int


# -- places -------------------------------------------------------------------------------------


def places(
    offers: Iterable[Offer], limits: Limits, accelerators: Sequence[Accelerator] | None = None
) -> tuple[list[Place], list[Left]]:
    """Every machine that may be rented, alone and in powers of two, and what was left out.

    Of machines with the same cards and no less host memory the cheapest alone stays.
    """
    offers = tuple(offers)
    wanted = Wanted(
        accelerators=None if accelerators is None else tuple(accelerators),
        provider=limits.provider,
        region=limits.region,
        fractional=True,
    )
    asked = select(offers, wanted)
    sold: list[Offer] = []
    left: dict[tuple[str, str], int] = {}
    for offer in asked:
        why = _no_place(offer, limits.spot)
        if why is None:
            sold += list(_multiples(offer))
        else:
            left[why] = left.get(why, 0) + 1
    if len(offers) > len(asked):
        asked_for = ("not_asked_for", "other providers, regions or cards than were asked for")
        left[asked_for] = len(offers) - len(asked)
    best = _cheapest(sold, limits.spot)
    if len(sold) > len(best):
        left["dearer_offer", "the same machine is sold for less"] = len(sold) - len(best)
    found = [place for offer in best for place in _in_nodes(offer, limits)]
    reasons = [Left(kind=kind, reason=words, count=count) for (kind, words), count in left.items()]
    return sorted(found, key=lambda place: place.order), reasons


def own_places(own: Offer, per_node: int, nodes: int, limits: Limits) -> list[Place]:
    """Machines one has: some devices of one, or all of them in some or all nodes.

    Their price is that of the devices that are used, 0 where `own` has none.
    """
    shapes = [(count, 1) for count in _powers(per_node)]
    shapes += [(per_node, number) for number in _powers(nodes) if number > 1]
    price = (own.usd_per_hour(limits.spot) or 0.0) / own.devices
    found = [_place(own, count, number, limits, price * count) for count, number in shapes]
    return sorted(found, key=lambda place: place.order)


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    numbers = [1]
    while numbers[-1] * 2 < most:
        numbers.append(numbers[-1] * 2)
    return numbers if numbers[-1] == most else [*numbers, most]


def _no_place(offer: Offer, spot: bool) -> tuple[str, str] | None:
    """(kind, reason) of an offer that nothing is planned on."""
    row = offer.accelerator
    target = target_of(row)
    if not target.answered or not target.trains or row.is_cpu:
        return (
            "no_pytorch",
            "PyTorch does not train on it, or through a plugin that is not answered",
        )
    if offer.fractional:
        return "slice", "a slice of a GPU"
    if row.capacity_bytes is None:
        return "unknown_capacity", "nobody published what torch sees of its memory"
    if offer.usd_per_hour(spot) is None:
        return "not_sold", f"no {'spot price' if spot else 'price on demand'} is listed"
    if offer.status.startswith("retired"):
        return "not_sold", "retired by its provider"
    return None


def _multiples(offer: Offer) -> Iterator[Offer]:
    for multiple in _powers(offer.max_multiple):
        yield offer.times(multiple)


def _cheapest(offers: Sequence[Offer], spot: bool) -> list[Offer]:
    """Without those that another with the same cards and no less host memory undersells.

    One without a network undersells none that has one: its machines stand alone.
    """

    def order(offer: Offer) -> tuple[float, float, str, str, str]:
        host = offer.host_memory_gib or 0.0
        return _price(offer, spot), -host, offer.provider, offer.instance, offer.region

    kept: dict[tuple[object, ...], list[Offer]] = {}
    for offer in sorted(offers, key=order):
        network = offer.provider not in NO_NETWORK, offer.network_gbit_per_s
        same = kept.setdefault((offer.accelerator, offer.devices, *network), [])
        if not any((o.host_memory_gib or 0.0) >= (offer.host_memory_gib or 0.0) for o in same):
            same.append(offer)
    return [offer for same in kept.values() for offer in same]


def _price(offer: Offer, spot: bool) -> float:
    price = offer.usd_per_hour(spot)
    assert price is not None, offer.instance
    return price


def _in_nodes(offer: Offer, limits: Limits) -> Iterator[Place]:
    nodes = 1
    most = 1 if offer.provider in NO_NETWORK else limits.max_gpus // max(1, offer.devices)
    while nodes <= most and offer.devices * nodes <= limits.max_gpus:
        yield _place(offer, offer.devices, nodes, limits, _price(offer, limits.spot))
        nodes *= 2


def _place(
    offer: Offer, per_node: int, nodes: int, limits: Limits, usd_per_hour: float = 0.0
) -> Place:
    cluster = Cluster(
        accelerator=_with_headroom(offer.accelerator, limits),
        per_node=per_node,
        nodes=nodes,
        host_memory_bytes=offer.host_memory_bytes,
        network_bytes_per_s=offer.network_bytes_per_s,
    )
    return Place(offer=offer, cluster=cluster, usd_per_hour=usd_per_hour * nodes)


def _with_headroom(row: Accelerator, limits: Limits) -> Accelerator:
    share = int((row.capacity_bytes or 0) * limits.headroom_share)
    return with_headroom(row, max(limits.headroom_bytes, share))


# -- ways ---------------------------------------------------------------------------------------


def ways(source: ModelSource, jobs: Sequence[Job]) -> tuple[list[Way], int]:
    """Every way that the records allow, and how many they refuse.

    Where they refuse all, what was asked for does not go together: raises the first refusal.
    """
    found: list[Way] = []
    refused = 0
    first: SizingError | None = None
    seen: set[tuple[Workload, Strategy]] = set()
    for job in jobs:
        for changes in _changes(job):
            try:
                strategy = replace(job.strategy, micro_batch=1, accumulation=1, **changes)  # type: ignore[arg-type]
                check_workload(source, job.workload, strategy)
            except SizingError as error:
                refused += 1
                first = first or error
                continue
            if (job.workload, strategy) in seen:
                continue
            seen.add((job.workload, strategy))
            found.append(
                Way(
                    recipe=job.recipe,
                    workload=job.workload,
                    strategy=strategy,
                    order=len(found),
                    label=job.label,
                    lengths=job.lengths,
                )
            )
    if not found and first is not None:
        raise first
    return found, refused


def _changes(job: Job) -> Iterator[dict[str, str]]:
    """The plain before the involved, so that of equals the plain one wins."""
    training = job.workload.training

    def values(name: str, searched: Sequence[str]) -> Sequence[str]:
        return (job.fixed[name],) if name in job.fixed else searched

    for recompute in values("recompute", RECOMPUTES if training else ("none",)):
        for offload in values("offload", OFFLOADS if training else ("none",)):
            for parallel in values("parallel", PARALLELS if training else ("single", "ddp")):
                searched = ZERO_PRECISIONS if parallel in ZEROS else PRECISIONS
                for precision in values("precision", searched):
                    yield {
                        "recompute": recompute,
                        "offload": offload,
                        "parallel": parallel,
                        "precision": precision,
                    }


# -- batches ------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def batches(
    global_batch: int, ranks: int, micro_batch: int | None = None
) -> tuple[tuple[int, int], ...]:
    """(micro-batch, accumulation) for a global batch, the largest micro-batch first.

    Whole micro-batches only: what exceeds the global batch by more than 2 % would be another run.
    None where ranks would be idle, or no share of theirs comes near.
    """
    if ranks > global_batch:
        return ()
    share = -(-global_batch // ranks)  # of one rank
    most = int(global_batch * (1 + MOST_OVERSHOOT))
    if micro_batch is not None:
        accumulation = accumulation_for(global_batch, micro_batch, ranks)
        return ((micro_batch, accumulation),) if micro_batch * accumulation * ranks <= most else ()
    found = []
    for micro in sorted(_sizes(share), reverse=True):
        accumulation = accumulation_for(global_batch, micro, ranks)
        if micro * accumulation * ranks <= most:
            found.append((micro, accumulation))
    return tuple(found)


MOST_DIVISORS = 16
"""Of a rank's share of the global batch: a share with more of them has powers of two enough."""


def _sizes(share: int) -> set[int]:
    """1, 2, 4, ..., the share itself, and what divides it."""
    powers = {2**power for power in range(share.bit_length())}
    small = [n for n in range(1, math.isqrt(share) + 1) if share % n == 0]
    divisors = {*small, *(share // n for n in small)}
    return powers | {share} | (divisors if len(divisors) <= MOST_DIVISORS else set())
