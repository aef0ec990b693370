"""`rigsize gpus` and `rigsize offers`: which devices there are, and which can be rented."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.cli_common import Given, print_answer, say, take_own_cards, waiting
from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination, nearest
from rigsize.hardware import Accelerator, accelerator_family, load_accelerators, parse_gpus
from rigsize.hardware.offers import (
    Catalogue,
    Offer,
    Wanted,
    cache_file,
    is_in,
    load_catalogue,
    select,
)

if TYPE_CHECKING:
    from rigsize.report.gpus import PriceRange

__all__ = ["check_provider", "gpus_verb", "offers_verb", "rows_of"]

NOTHING_FOUND = 3
_SHOWN = 40
_ACTIONS = ("refresh",)


# -- gpus ---------------------------------------------------------------------------------------


def gpus_verb(given: Given) -> int:
    """`rigsize gpus [NAME] [--here]`."""
    take_own_cards(_text(given, "accelerators"))
    name = _text(given, "gpu")
    if given.get("here"):
        if name is not None:
            raise UnsupportedCombination("here", name, "lists this machine and takes no name")
        return _here(given)
    return _one(name, given) if name is not None else _all(given)


def _all(given: Given) -> int:
    from rigsize.report.gpus import gpus_document, gpus_text

    rows = load_accelerators()
    print_answer(lambda: gpus_document(rows), bool(given.get("json")), lambda: gpus_text(rows))
    return 0


def _one(name: str, given: Given) -> int:
    from rigsize.report.gpus import gpu_document, gpu_text

    gpus = parse_gpus(name)
    catalogue = load_catalogue(None, _today())
    _say_all(catalogue)
    prices = _price_range(gpus.accelerator, catalogue.offers)
    shown = (gpus.accelerator, gpus.assumed_note, prices)
    print_answer(lambda: gpu_document(*shown), bool(given.get("json")), lambda: gpu_text(*shown))
    return 0


def _price_range(row: Accelerator, offers: Iterable[Offer]) -> PriceRange | None:
    from rigsize.report.gpus import PriceRange

    found = [o for o in select(offers, Wanted(accelerators=(row,))) if o.usd_per_hour() is not None]
    if not found:
        return None
    prices = [price for offer in found if (price := offer.usd_per_gpu_hour()) is not None]
    dates = [offer.price_date for offer in found]
    return PriceRange(
        low_usd_per_gpu_hour=min(prices),
        high_usd_per_gpu_hour=max(prices),
        offers=len(found),
        oldest=min(dates),
        newest=max(dates),
    )


def _here(given: Given) -> int:
    from rigsize.hardware.here import devices_here
    from rigsize.report.gpus import here_document, here_text

    found = devices_here()
    print_answer(lambda: here_document(found), bool(given.get("json")), lambda: here_text(found))
    return 0


# -- offers -------------------------------------------------------------------------------------


def offers_verb(given: Given) -> int:
    """`rigsize offers [refresh]`."""
    from rigsize.report.offers import Listing, offers_document, offers_text

    action = _text(given, "action")
    if action is not None and action not in _ACTIONS:
        raise SpecError(
            "offers", action, "no such action", allowed=_ACTIONS, nearest=nearest(action, _ACTIONS)
        )
    if action is None and "from_" in given:
        raise UnsupportedCombination("from", given["from_"], "belongs to `offers refresh`")
    take_own_cards(_text(given, "accelerators"))
    today = _today()
    limit = _number(given, "limit", int, 1)
    wanted, notes = _wanted(given)
    notes += _refresh(_text(given, "from_"), today) if action else ()
    own = _text(given, "offers")
    catalogue = load_catalogue(None if own is None else Path(own).expanduser(), today)
    _say_all(catalogue)
    check_provider(wanted.provider, catalogue)
    notes += tuple(_unnamed_region(wanted, catalogue))
    found = select(catalogue.offers, wanted)
    if not found:
        notes += (_nothing(catalogue.offers, wanted),)
    slices = len(select(catalogue.offers, replace(wanted, fractional=True))) - len(found)
    if slices:
        notes += (f"{slices} slices of a GPU are left out: no training; --fractional shows them",)
    listing = Listing(
        offers=found,
        searched=len(catalogue.offers),
        spot=wanted.spot,
        limit=_SHOWN if limit is None else int(limit),
        today=today,
        notes=notes,
    )
    print_answer(
        lambda: offers_document(listing), bool(given.get("json")), lambda: offers_text(listing)
    )
    return 0 if found else NOTHING_FOUND


def _refresh(source: str | None, today: date) -> tuple[str, ...]:
    """What was refreshed; on any failure one line, and what there is answers."""
    from rigsize.hardware.offers_refresh import refresh

    try:
        with waiting("reading today's prices"):
            done = refresh(source, cache_file(), today)
    except MeasurementFailed as error:
        say(f"not refreshed, the prices at hand answer: {error}")
        return ()
    text = f"refreshed: {done.offers} offers of {', '.join(done.providers)}, kept in {done.path}"
    left_out = sum(done.left_out.values())
    if left_out:
        text += f"; {left_out} of GPUs without a row or without a price left out"
    if done.missing:
        text += f"; not read: {', '.join(done.missing)}"
    return (text,)


def _wanted(given: Given) -> tuple[Wanted, tuple[str, ...]]:
    """The filters, and what is to be said about them."""
    rows, count = None, _number(given, "count", int, 1)
    notes: tuple[str, ...] = ()
    gpu = _text(given, "gpu")
    if gpu is not None:
        rows, asked = rows_of(gpu)
        if asked is not None and count is not None and count != asked:
            raise UnsupportedCombination("count", str(given["count"]), f"{gpu} names another count")
        count = asked if count is None else count
        if len(rows) > 1:
            notes = (f"{gpu} covers {', '.join(row.id for row in rows)}",)
    provider, region = _text(given, "provider"), _text(given, "region")
    if region is not None and not region.strip():
        raise SpecError("region", region, "no name")
    wanted = Wanted(
        accelerators=rows,
        provider=None if provider is None else provider.casefold(),
        gpu_count=None if count is None else int(count),
        max_usd_per_hour=_number(given, "max_price", float, 0),
        spot=bool(given.get("spot")),
        region=region,
        fractional=bool(given.get("fractional")),
    )
    return wanted, notes


def rows_of(gpu: str) -> tuple[tuple[Accelerator, ...], int | None]:
    """The rows that a text covers, and the count it names: `A100`, `A100:80GB:8`."""
    gpus = parse_gpus(gpu)
    if gpus.nodes != 1:
        raise SpecError("gpu", gpu, "offers are of one machine", hint="leave out xNODES")
    name, *rest = gpu.split(":")
    with_memory = bool(rest) and rest[0].strip().casefold().endswith("b")
    counted = len(rest) > with_memory
    family = accelerator_family(name) if gpus.assumed_note else (gpus.accelerator,)
    if with_memory:
        size = gpus.accelerator.memory_nominal_gb
        family = tuple(row for row in family if row.memory_nominal_gb == size)
    return family, gpus.per_node if counted else None


def check_provider(name: str | None, catalogue: Catalogue) -> None:
    """SpecError for a provider that the catalogue has no offer of."""
    providers = sorted({offer.provider for offer in catalogue.offers})
    if name is not None and name not in providers:
        raise SpecError(
            "provider",
            name,
            "no offers of it",
            allowed=providers,
            nearest=nearest(name, providers),
        )


def _unnamed_region(wanted: Wanted, catalogue: Catalogue) -> Iterator[str]:
    """A region that no offer names: what can be had in any region answers for it."""
    regions = sorted({offer.region for offer in catalogue.offers})
    if wanted.region is not None and not any(is_in(r, wanted.region) for r in regions):
        near = nearest(wanted.region, regions)
        meant = f", did you mean {near}?" if near else ""
        yield (f"no offer names the region {wanted.region}{meant}; shown is what is offered in any")


def _nothing(offers: Iterable[Offer], wanted: Wanted) -> str:
    """Why nothing was found: the one wish without which there is something."""
    relaxed = {
        "max-price": replace(wanted, max_usd_per_hour=None),
        "count": replace(wanted, gpu_count=None),
        "region": replace(wanted, region=None),
        "spot": replace(wanted, spot=False),
        "provider": replace(wanted, provider=None),
    }
    all_offers = tuple(offers)
    for name, wish in relaxed.items():
        found = select(all_offers, wish) if wish != wanted else ()
        if found:
            best, price = found[0], found[0].usd_per_hour(wish.spot)
            cost = "without a price" if price is None else f"at {price:.2f} USD an hour"
            return (
                f"no offer meets all of it; without --{name}: {best.provider} {best.instance},"
                f" {best.gpu_count:g} x {best.accelerator.id}, {best.region}, {cost}"
            )
    return "no offer meets it: not to be rented in this catalogue"


# -- flags --------------------------------------------------------------------------------------


def _text(given: Given, key: str) -> str | None:
    value = given.get(key)
    return value if isinstance(value, str) else None


def _number(given: Given, key: str, parse: Callable[[str], float], least: int) -> float | None:
    text = _text(given, key)
    if text is None:
        return None
    field = key.replace("_", "-")
    try:
        value = parse(text)
    except ValueError:
        raise SpecError(field, text, "not a number") from None
    if not math.isfinite(value) or value < least:
        raise SpecError(field, text, f"not a number from {least}")
    return value


def _say_all(catalogue: Catalogue) -> None:
    for warning in catalogue.warnings:
        say(f"warning: {warning}")


def _today() -> date:
    return date.today()
