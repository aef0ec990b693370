"""What machines cost: dated offers of cloud providers and one's own machines, row by row.

An offer is one whole shape as it is sold: nobody rents two of the eight GPUs of a p4d. Prices are
USD an hour for the whole machine, memory of the host is GiB as the providers mean it, and the
GPU's memory is never taken from an offer but from the accelerator table. `OFFERS-LICENCE.md` says
where the packaged rows come from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path

from rigsize.errors import SizingError, SpecError
from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.dates import first_day
from rigsize.units import GIB, GIGABIT_BYTES

__all__ = [
    "STALE_DAYS",
    "Catalogue",
    "Offer",
    "Wanted",
    "cache_file",
    "is_in",
    "load_catalogue",
    "packaged_offers",
    "select",
]

PACKAGED = Path(__file__).parent / "data" / "cloud_offers.csv"
STALE_DAYS = 90
"""A price older than this is shown with a warning."""
_ANYWHERE = ("all", "any")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One shape of one provider in one region."""

    provider: str
    instance: str
    accelerator: Accelerator
    gpu_count: float
    """Products, not dies; below 1 it is a slice of one."""
    gpu_memory_gib: float | None
    """As the provider states it; of use only for a slice."""
    vcpus: int | None
    host_memory_gib: float | None
    region: str
    on_demand_usd_per_hour: float | None
    spot_usd_per_hour: float | None
    price_date: str
    """YYYY-MM-DD, less where the source says less, empty where it says nothing."""
    status: str
    source: str
    note: str
    network_gbit_per_s: float | None = None
    """That one machine sends to others of it; None where nobody says."""
    max_multiple: int = 1
    """How many of it the provider puts into one machine at a linear price."""

    @property
    def host_memory_bytes(self) -> int | None:
        """Of the whole machine; None where nobody says."""
        return int(self.host_memory_gib * GIB) if self.host_memory_gib else None

    @property
    def network_bytes_per_s(self) -> float | None:
        """Of a machine; None where nobody says."""
        rate = self.network_gbit_per_s
        return None if rate is None else rate * GIGABIT_BYTES

    @property
    def fractional(self) -> bool:
        """Whether it is a slice of a GPU, which no training is planned on."""
        return self.gpu_count < 1

    @property
    def devices(self) -> int:
        """How many devices torch sees; 0 for a slice."""
        return int(self.gpu_count) * self.accelerator.devices

    @property
    def link(self) -> str:
        """What connects the GPUs within the machine."""
        kind = self.accelerator.link_kind
        if self.devices <= 1:
            return "one device"
        if kind in ("", "none"):
            return "PCIe"
        return f"PCIe, {kind} in pairs" if "bridge" in kind else kind

    def usd_per_hour(self, spot: bool = False) -> float | None:
        """Of the whole machine; None where there is no such price."""
        return self.spot_usd_per_hour if spot else self.on_demand_usd_per_hour

    def usd_per_gpu_hour(self, spot: bool = False) -> float | None:
        """Of one product in it; of a slice, of the whole GPU it would add up to."""
        price = self.usd_per_hour(spot)
        return None if price is None else price / self.gpu_count

    def age_days(self, today: date) -> int | None:
        """Days since its price was read, from the earliest day the date allows; None undated."""
        first = first_day(self.price_date)
        return None if first is None else (today - first).days

    def is_stale(self, today: date) -> bool:
        """Whether its price is undated or older than `STALE_DAYS`."""
        age = self.age_days(today)
        return age is None or age > STALE_DAYS

    def times(self, multiple: int) -> Offer:
        """`multiple` of it as one machine, at the linear price its row allows."""
        if multiple == 1:
            return self
        assert 1 < multiple <= self.max_multiple, (self.instance, multiple)
        return replace(
            self,
            gpu_count=self.gpu_count * multiple,
            vcpus=None if self.vcpus is None else self.vcpus * multiple,
            host_memory_gib=_scaled(self.host_memory_gib, multiple),
            on_demand_usd_per_hour=_scaled(self.on_demand_usd_per_hour, multiple),
            spot_usd_per_hour=_scaled(self.spot_usd_per_hour, multiple),
            max_multiple=1,
        )


def _scaled(value: float | None, multiple: int) -> float | None:
    return None if value is None else value * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Offers from one or more sources, and what is to be said about them."""

    offers: tuple[Offer, ...]
    warnings: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def packaged_offers() -> tuple[Offer, ...]:
    """The snapshot that ships with rigsize (read at the first call)."""
    from rigsize.hardware.offers_file import read_offers

    return read_offers(PACKAGED)


def cache_file() -> Path:
    """Where `offers refresh` writes: `$XDG_CACHE_HOME/rigsize/offers.csv`."""
    given = os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given else Path.home() / ".cache"
    return base / "rigsize" / "offers.csv"


def load_catalogue(own: Path | None, today: date) -> Catalogue:
    """The snapshot, over it what was refreshed, over that the user's own rows.

    A refreshed provider replaces that provider's rows in the snapshot whole, so that no two dates
    of one provider are mixed; an own row replaces the row of the same provider, instance and
    region.

    Raises:
        SpecError: the user's file is wrong, row and column named.
    """
    from rigsize.hardware.offers_file import read_offers

    refreshed, warnings = _refreshed()
    providers = {offer.provider for offer in refreshed}
    offers = [o for o in packaged_offers() if o.provider not in providers] + list(refreshed)
    if own is not None:
        if not own.name:
            raise SpecError("offers", str(own), "no file named", hint="--offers FILE")
        mine = read_offers(own, today=today)
        keys = {_key(offer) for offer in mine}
        offers = [offer for offer in offers if _key(offer) not in keys] + list(mine)
    return Catalogue(offers=tuple(offers), warnings=warnings)


def _refreshed() -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    from rigsize.hardware.offers_file import read_offers

    path = cache_file()
    if not path.is_file():
        return (), ()
    try:
        return read_offers(path), ()
    except SizingError as error:
        return (), (f"the refreshed prices cannot be read and are left out: {error}",)


def _key(offer: Offer) -> tuple[str, str, str]:
    return offer.provider, offer.instance, offer.region


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `rigsize offers` is asked for; None asks for nothing."""

    accelerators: tuple[Accelerator, ...] | None = None
    provider: str | None = None
    gpu_count: int | None = None
    """In one machine, exactly."""
    max_usd_per_hour: float | None = None
    """For the whole machine."""
    spot: bool = False
    """Spot prices, and only offers that have one."""
    region: str | None = None
    fractional: bool = False
    """Slices of a GPU too."""


def select(offers: Iterable[Offer], wanted: Wanted) -> tuple[Offer, ...]:
    """The offers that meet it, cheapest per GPU-hour first, those without a price last."""
    found = [sized for offer in offers if (sized := _sized(offer, wanted)) is not None]

    def order(offer: Offer) -> tuple[bool, float, str, str, str]:
        price = offer.usd_per_gpu_hour(wanted.spot)
        unpriced = price is None
        return unpriced, price or 0.0, offer.provider, offer.instance, offer.region

    return tuple(sorted(found, key=order))


def _sized(offer: Offer, wanted: Wanted) -> Offer | None:
    """The offer at the wanted count, or None where it does not meet what is wanted."""
    if wanted.accelerators is not None and offer.accelerator not in wanted.accelerators:
        return None
    if wanted.provider is not None and offer.provider != wanted.provider:
        return None
    if (offer.fractional and not wanted.fractional) or not _is_in(offer, wanted.region):
        return None
    if wanted.gpu_count is not None:
        multiple = wanted.gpu_count / offer.gpu_count
        if multiple not in range(1, offer.max_multiple + 1):
            return None
        offer = offer.times(int(multiple))
    price = offer.usd_per_hour(wanted.spot)
    if wanted.spot and price is None:
        return None
    limit = wanted.max_usd_per_hour
    return None if limit is not None and (price is None or price > limit) else offer


def _is_in(offer: Offer, region: str | None) -> bool:
    return region is None or offer.region in _ANYWHERE or is_in(offer.region, region)


def is_in(named: str, region: str) -> bool:
    """Whether an offer's region, `us-east/us-west` for two of them, is or names this one."""
    return region.casefold() in (named.casefold(), *named.casefold().split("/"))
