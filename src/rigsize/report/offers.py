"""Offers as `rigsize offers` lists them, cheapest first, each price with its date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from rigsize.hardware.offers import STALE_DAYS, Offer
from rigsize.report.document import unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Listing", "offers_document", "offers_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What was found, and in which catalogue."""

    offers: tuple[Offer, ...]
    searched: int
    """Offers in the catalogue."""
    spot: bool
    """Whether they are ordered by their spot prices."""
    limit: int
    """How many the text shows; JSON has all."""
    today: date
    notes: tuple[str, ...]


def offers_document(listing: Listing) -> dict[str, Any]:
    """All that was found."""
    return {
        "offers": [_offer(offer, listing) for offer in listing.offers],
        "searched": listing.searched,
        "ordered_by": "spot_usd_per_gpu_hour" if listing.spot else "usd_per_gpu_hour",
        "notes": list(listing.notes),
    }


def _offer(offer: Offer, listing: Listing) -> dict[str, Any]:
    document: dict[str, Any] = {
        "provider": offer.provider,
        "instance": offer.instance,
        "gpu": offer.accelerator.id,
        "gpu_count": offer.gpu_count,
        "devices": offer.devices,
        "fractional": offer.fractional,
        "link": offer.link,
        "vcpus": offer.vcpus,
        "region": offer.region,
        "price_date": offer.price_date or None,
        "stale": offer.is_stale(listing.today),
        "status": offer.status,
        "source": offer.source,
        "note": offer.note,
    }
    host = offer.host_memory_gib
    if host is None:
        document |= unknown("host_memory_bytes", "the source does not say")
    else:
        document["host_memory_bytes"] = int(host * 2**30)
    network = offer.network_bytes_per_s
    if network is None:
        document |= unknown("network_bytes_per_s", "the source does not say")
    else:
        document["network_bytes_per_s"] = network
    prices = {
        "usd_per_hour": offer.usd_per_hour(),
        "usd_per_gpu_hour": offer.usd_per_gpu_hour(),
        "spot_usd_per_hour": offer.usd_per_hour(spot=True),
        "spot_usd_per_gpu_hour": offer.usd_per_gpu_hour(spot=True),
    }
    for key, price in prices.items():
        document |= unknown(key, "no such price is listed") if price is None else {key: price}
    return document


def offers_text(listing: Listing) -> Iterator[RenderableType]:
    """The cheapest of them, then where prices come from and how old they are."""
    from rigsize.report.console import table

    shown = listing.offers[: listing.limit]
    networks = any(offer.network_gbit_per_s is not None for offer in shown)
    known = ("Gbit/s",) if networks else ()
    numbers = ("vCPU", "GiB", "USD/h", "spot", "per GPU", "price of", *known)
    made = table(
        None, "instance", "GPUs", "vCPU", "GiB", "USD/h", "spot", "per GPU", "region", "price of",
        *known, right=numbers,
    )  # fmt: skip
    sources = {source: number for number, source in enumerate(_sources(shown), start=1)}
    for offer in shown:
        network = (_network(offer),) if networks else ()
        made.add_row(*_cells(offer, listing, sources), *network)
    yield made
    hidden = len(listing.offers) - len(shown)
    more = f", {hidden} more with --limit {len(listing.offers)}" if hidden else ""
    order = "spot price" if listing.spot else "price on demand"
    yield (
        f"{len(listing.offers)} of {listing.searched} offers, cheapest {order} per GPU first{more};"
        " GiB is the host's memory, prices are of the whole machine"
    )
    yield from (f"[{number}] {source}" for source, number in sources.items())
    yield from listing.notes
    yield from _age_lines(listing)


def _sources(offers: Sequence[Offer]) -> list[str]:
    return list(dict.fromkeys(offer.source for offer in offers))


def _cells(offer: Offer, listing: Listing, sources: dict[str, int]) -> tuple[str, ...]:
    return (
        f"{offer.provider} {offer.instance}",
        f"{offer.gpu_count:g} {offer.accelerator.id}",
        "" if offer.vcpus is None else str(offer.vcpus),
        "" if offer.host_memory_gib is None else f"{offer.host_memory_gib:g}",
        _usd(offer.usd_per_hour()),
        _usd(offer.usd_per_hour(spot=True)),
        _usd(offer.usd_per_gpu_hour(listing.spot)),
        offer.region,
        f"{'! ' if offer.is_stale(listing.today) else ''}{offer.price_date or 'undated'}"
        f" [{sources[offer.source]}]",
    )


def _network(offer: Offer) -> str:
    """A column of its own where any of the machines states it."""
    rate = offer.network_gbit_per_s
    return "" if rate is None else f"{rate:g}"


def _usd(price: float | None) -> str:
    return "" if price is None else f"{price:.2f}"


def _age_lines(listing: Listing) -> Iterator[str]:
    if any("spot derived" in offer.note for offer in listing.offers[: listing.limit]):
        yield "spot prices of aws are derived from the Spot Advisor's discounts of 2025-07-28"
    stale = Counter(o.provider for o in listing.offers if o.is_stale(listing.today))
    if stale:
        names = ", ".join(f"{provider} {count}" for provider, count in sorted(stale.items()))
        yield (
            f"! warning: {stale.total()} prices are older than {STALE_DAYS} days or undated"
            f" ({names}); `rigsize offers refresh` reads today's"
        )
