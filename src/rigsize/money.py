"""From the hours of a run to USD: what it costs rented, and after how long buying is cheaper.

A price is an offer's, of whole machines by the hour, and carries the date on which it was read. An
amount is never without that date.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from rigsize.errors import SpecError, UnsupportedCombination, nearest
from rigsize.hardware.dates import first_day
from rigsize.hardware.offers import STALE_DAYS, Offer
from rigsize.spec import Cluster
from rigsize.steptime.intervals import scaled, total_of
from rigsize.steptime.run_constants import POWER_SHARE, USD_PER_KWH
from rigsize.steptime.run_lines import RunTime, power_limit_kw
from rigsize.steptime.step import Quantiles

__all__ = [
    "BreakEven",
    "Cost",
    "CostLine",
    "break_even",
    "check_names",
    "cost",
    "find_offer",
    "offers_for",
    "power_usd_per_hour",
]

MOST_USD = 1e12


class CostLine(NamedTuple):
    """What one line of the run's time costs."""

    name: str
    usd: Quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """USD of a run on rented machines."""

    offer: Offer
    machines: int
    """Whole shapes, one a node."""
    spot: bool
    usd_per_hour: float
    """Of all machines."""
    lines: tuple[CostLine, ...]
    """They sum to `usd`; empty where the run's length is unknown."""
    other_usd: float | None
    """The whole run at p50 at the offer's other price: on demand for spot, spot for on demand."""
    stale: bool
    """The price is undated or older than `STALE_DAYS`."""
    notes: tuple[str, ...]

    @property
    def usd(self) -> Quantiles:
        """The sum of the lines."""
        return total_of(line.usd for line in self.lines)

    @property
    def price_date(self) -> str:
        """When the price was read, as far as its source says; empty undated."""
        return self.offer.price_date


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Renting against buying."""

    own_usd: float
    """Price of the machines bought."""
    rent_usd_per_hour: float
    power_usd_per_hour: float
    """Of the accelerators that one owns, at a mean share of their limit."""
    hours: float | None
    """Of use after which buying is cheaper; None where power costs as much as renting."""
    runs: float | None
    """So many of this run; None where its length is unknown."""
    notes: tuple[str, ...]


def cost(run: RunTime, offer: Offer, cluster: Cluster, today: date, *, spot: bool = False) -> Cost:
    """What the run costs on as many of the offer's machines as the cluster has nodes.

    Raises:
        SpecError: no such price, a negative one, or one dated in the future.
        UnsupportedCombination: the machine has another card, or fewer of them.
    """
    shape = _of_size(offer, cluster)
    if shape is None:
        raise UnsupportedCombination(
            "offer",
            offer.instance,
            f"has {offer.gpu_count:g} {offer.accelerator.id},"
            f" asked are {cluster.per_node} {cluster.accelerator.id} a machine",
        )
    price = _checked(shape, spot, today)
    rate = price * cluster.nodes
    other = shape.usd_per_hour(not spot)
    stale = shape.is_stale(today)
    return Cost(
        offer=shape,
        machines=cluster.nodes,
        spot=spot,
        usd_per_hour=rate,
        lines=tuple(CostLine(line.name, scaled(line.seconds, rate / 3600)) for line in run.lines),
        other_usd=None if other is None else other * cluster.nodes * run.hours.p50,
        stale=stale,
        notes=tuple(_notes(shape, cluster, spot, stale)),
    )


def _checked(offer: Offer, spot: bool, today: date) -> float:
    price = offer.usd_per_hour(spot)
    kind = "spot" if spot else "on-demand"
    if price is None:
        raise SpecError("offer", offer.instance, f"has no {kind} price")
    if not math.isfinite(price) or price < 0:
        raise SpecError("offer", price, f"{offer.instance}: no {kind} price")
    first = first_day(offer.price_date)
    if first is not None and first > today:
        raise SpecError("offer", offer.price_date, f"{offer.instance}: a price of the future")
    return price


def _notes(offer: Offer, cluster: Cluster, spot: bool, stale: bool) -> Iterable[str]:
    if stale:
        old = f"of {offer.price_date}, more than {STALE_DAYS} days old"
        yield f"the price is {old if offer.price_date else 'undated'}: `rigsize offers refresh`"
    idle = offer.devices - cluster.per_node
    if idle:
        yield f"the machine is sold with {offer.devices} devices: {idle} are paid for and idle"
    if spot:
        yield "a spot machine may be taken away: what is then done again is not in the price"


def offers_for(
    offers: Iterable[Offer],
    cluster: Cluster,
    *,
    spot: bool = False,
    provider: str | None = None,
) -> tuple[Offer, ...]:
    """Machines on which the cluster could be rented, cheapest first; ties by name.

    A machine with more devices than asked counts with its whole price.
    """
    found = []
    for offer in offers:
        if provider is not None and offer.provider != provider.casefold():
            continue
        shape = _of_size(offer, cluster)
        price = None if shape is None else shape.usd_per_hour(spot)
        if shape is not None and price is not None and price >= 0:
            found.append((price, shape.provider, shape.instance, shape.region, shape))
    return tuple(shape for *_, shape in sorted(found, key=lambda one: one[:4]))


def _of_size(offer: Offer, cluster: Cluster) -> Offer | None:
    """The offer with enough devices a machine, several of it where they make one machine."""
    card = cluster.accelerator
    # By id: a headroom makes another object of the same card.
    if offer.accelerator.id != card.id or offer.fractional:
        return None
    multiple = -(-cluster.per_node // offer.devices)
    return offer.times(multiple) if multiple <= offer.max_multiple else None


def find_offer(
    offers: Iterable[Offer],
    cluster: Cluster,
    *,
    instance: str | None = None,
    provider: str | None = None,
    spot: bool = False,
) -> Offer:
    """The cheapest machine for the cluster, of a provider or by its name.

    Raises:
        SpecError: nobody offers it, or no such provider or instance; the nearest is named.
    """
    everything = tuple(offers)
    check_names(everything, instance=instance, provider=provider)
    found = offers_for(everything, cluster, spot=spot, provider=provider)
    if instance is not None:
        found = tuple(one for one in found if one.instance.casefold() == instance.casefold())
    if not found:
        named = _named(everything, instance, provider)
        raise SpecError(
            "gpus",
            f"{cluster.accelerator.id}:{cluster.per_node}",
            _why_none(named, cluster, spot, " ".join(filter(None, (provider, instance)))),
            hint="--offers FILE adds own machines and prices; `rigsize offers` lists what there is",
        )
    return found[0]


def check_names(
    offers: Sequence[Offer], *, instance: str | None = None, provider: str | None = None
) -> None:
    """SpecError for a provider or an instance that the catalogue lacks; the nearest is named."""
    providers = sorted({offer.provider for offer in offers})
    if provider is not None and provider.casefold() not in providers:
        raise SpecError(
            "provider",
            provider,
            "no offers of it",
            allowed=providers,
            nearest=nearest(provider, providers),
        )
    names = {offer.instance.casefold() for offer in offers}
    if instance is not None and instance.casefold() not in names:
        raise SpecError(
            "offer",
            instance,
            "no such instance",
            nearest=nearest(instance, {offer.instance for offer in offers}),
            hint="`rigsize offers` lists them",
        )


def _named(
    offers: Sequence[Offer], instance: str | None, provider: str | None
) -> tuple[Offer, ...]:
    """Those of a provider or of a name."""
    return tuple(
        offer
        for offer in offers
        if (provider is None or offer.provider == provider.casefold())
        and (instance is None or offer.instance.casefold() == instance.casefold())
    )


def _why_none(named: Sequence[Offer], cluster: Cluster, spot: bool, who: str) -> str:
    """Whether it is the card, the number of them in a machine, or the price that is missing."""
    card, none = cluster.accelerator, f"{who} has no" if who else "nobody in the catalogue has"
    cards = sorted({offer.accelerator.id for offer in named})
    same = [offer for offer in named if offer.accelerator.id == card.id]
    if not same:
        others = f", but {', '.join(cards[:4])}" if who and cards else ""
        return f"{none} {card.id}{others}"
    whole = [offer for offer in same if not offer.fractional]
    shapes = [shape for offer in whole if (shape := _of_size(offer, cluster)) is not None]
    if not shapes:
        most = max((offer.devices * offer.max_multiple for offer in whole), default=0)
        least = "only slices of it" if not most else f"at most {most} in a machine"
        return f"{none} {cluster.per_node} {card.id} in a machine, {least}"
    kind = "spot" if spot else "on-demand"
    has = f"{who or 'the catalogue'} has"
    return f"{has} {cluster.per_node} {card.id} in a machine, but no {kind} price of it"


def break_even(
    run: RunTime,
    rented: Cost,
    cluster: Cluster,
    own_usd: float,
    usd_per_kwh: float | None = None,
) -> BreakEven:
    """Hours of use after which machines bought for `own_usd` are cheaper than renting.

    Power is that of the accelerators at the middle of its range; space, staff, other power,
    resale and interest are left out.

    Raises:
        SpecError: a price that is none.
    """
    checked_usd(own_usd, "own-price")
    price = (
        USD_PER_KWH.value.mid if usd_per_kwh is None else checked_usd(usd_per_kwh, "power-price")
    )
    hours_of_run = run.hours.p50
    known = power_usd_per_hour(cluster, price)
    power = known or 0.0
    left = rented.usd_per_hour - power
    hours = own_usd / left if left > 0 else None
    notes = ["space, staff, other power, resale and interest are left out"]
    if usd_per_kwh is None:
        low, mid, high = USD_PER_KWH.value
        notes.append(f"{mid:g} USD a kWh assumed ({low:g} to {high:g}): --power-price")
    if known is None:
        notes.append(f"nobody published the power of {cluster.accelerator.id}: counted as none")
    return BreakEven(
        own_usd=own_usd,
        rent_usd_per_hour=rented.usd_per_hour,
        power_usd_per_hour=power,
        hours=hours,
        runs=hours / hours_of_run if hours is not None and hours_of_run else None,
        notes=tuple(notes),
    )


def power_usd_per_hour(cluster: Cluster, usd_per_kwh: float) -> float | None:
    """Of the accelerators, at the middle of their power's range; None where nobody published it."""
    limit_kw = power_limit_kw(cluster)
    return None if limit_kw is None else limit_kw * POWER_SHARE.value.mid * usd_per_kwh


def checked_usd(value: float, field: str) -> float:
    """The amount; SpecError where it is none.

    Args:
        value: in USD.
        field: the option it came from.
    """
    if not math.isfinite(value) or not 0 <= value <= MOST_USD:
        raise SpecError(field, value, "no price", allowed=(f"from 0 to {MOST_USD:g} USD",))
    return value
