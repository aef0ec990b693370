"""Where a plan looks: the machines one has, and the offers of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.cli_common import say
from rigsize.cli_hardware import check_provider
from rigsize.cli_settings import Settings, amount
from rigsize.cli_target import host_memory_asked, network_asked
from rigsize.errors import SizingError, SpecError, UnsupportedCombination
from rigsize.hardware import Accelerator, parse_gpus
from rigsize.hardware.offers import Catalogue, Offer, load_catalogue
from rigsize.hardware.targets import target_of
from rigsize.money import power_usd_per_hour
from rigsize.spec import Cluster
from rigsize.steptime.run_constants import POWER_SHARE
from rigsize.units import GIB, GIGABIT_BYTES, format_bytes

if TYPE_CHECKING:
    from rigsize.plan.planner import Own
    from rigsize.plan.records import Limits

__all__ = ["catalogue_asked", "check_headroom", "check_own", "own_asked"]

_OWN = "own"
_OF_OFFERS = {
    "provider": "nobody rents out one's own machines",
    "region": "nobody rents out one's own machines",
    "spot": "one's own machines have no price",
    "max-price": "one's own machines have no price but with --power-price",
    "gpu": "--own names the card",
}
"""What asks for offers, of which none is searched beside --own."""
_OF_OWN = {
    "host-memory": "is of one's own machines; an offer has its own",
    "network": "is of one's own machines; `--offers FILE` has a column for it",
    "power-price": "is of one's own machines; an offer's price has its power in it",
}


def check_own(settings: Settings) -> None:
    """UnsupportedCombination for what does not go with one's own machines, or needs them."""
    if settings.text("own") is None:
        for name, why in _OF_OWN.items():
            text = settings.text(name)
            if text is not None:
                raise UnsupportedCombination(name, text, why, hint=f"--own NAME:N --{name} ...")
        return
    if settings.text("offers") is not None:
        return  # these are searched, too
    for name, why in _OF_OFFERS.items():
        value = settings.given.get(name.replace("-", "_"))
        priced = name == "max-price" and settings.text("power-price") is not None
        if value and not priced:
            raise UnsupportedCombination(
                name, value, f"without effect beside --own: {why}", hint="--offers FILE adds offers"
            )


def own_asked(settings: Settings, today: date) -> Own | None:
    """The machines of `--own H100:8x2`, as offers of nobody, at the price of their energy."""
    text = settings.text("own")
    if text is None:
        return None
    from rigsize.plan.planner import Own

    try:
        gpus = parse_gpus(text)
    except SizingError as error:
        error.field = _OWN
        raise
    _check_planned_on(gpus.accelerator)
    host = host_memory_asked(settings)
    if gpus.assumed_note:
        settings.assumed.append(gpus.assumed_note)
    row, network = gpus.accelerator, network_asked(settings)
    products = max(1, gpus.per_node // row.devices)
    kwh = amount(settings, "power-price")
    price = _energy_price(row, products * row.devices, kwh)
    machine = Offer(
        provider=_OWN,
        instance=f"{row.id}:{gpus.per_node}",
        accelerator=row,
        gpu_count=products,
        gpu_memory_gib=None,
        vcpus=None,
        host_memory_gib=None if host is None else host / GIB,
        region="here",
        on_demand_usd_per_hour=price,
        spot_usd_per_hour=price,
        price_date=today.isoformat() if price else "",
        status="current",
        source=_energy_in_words(kwh) if price else "--own",
        note="",
        network_gbit_per_s=None if network is None else network / GIGABIT_BYTES,
    )
    return Own(machine=machine, per_node=gpus.per_node, nodes=gpus.nodes)


def _energy_price(row: Accelerator, devices: int, usd_per_kwh: float | None) -> float:
    """USD an hour of so many devices' energy, 0 where power has no price."""
    if usd_per_kwh is None:
        return 0.0
    price = power_usd_per_hour(Cluster(accelerator=row, per_node=devices), usd_per_kwh)
    if price is None:
        why = f"nobody published the power limit of {row.id}"
        raise UnsupportedCombination("power-price", usd_per_kwh, why)
    return price


def _energy_in_words(usd_per_kwh: float | None) -> str:
    share = POWER_SHARE.value.mid
    return (
        f"--power-price {usd_per_kwh:g} USD a kWh: {share:.0%} of the cards' power limit;"
        " the machines themselves, other power and cooling are left out"
    )


def _check_planned_on(row: Accelerator) -> None:
    """UnsupportedCombination for one's own device that no plan can be made for."""
    target, why = target_of(row), ""
    if row.is_cpu:
        why = "its hours are not known"
    elif not target.answered:
        why = target.words
    elif not target.trains:
        why = f"PyTorch on it: {row.pytorch_support}"
    elif row.capacity_bytes is None:
        why = "nobody published what torch sees of its memory"
    if why:
        raise UnsupportedCombination("own", row.id, f"nothing is planned on it: {why}")


def catalogue_asked(settings: Settings, limits: Limits, today: date, own: Own | None) -> Catalogue:
    """The offers that are searched: none beside own machines, unless they were asked for."""
    mine = settings.text("offers")
    if own is not None and mine is None:
        return Catalogue(offers=())
    found = load_catalogue(None if mine is None else Path(mine).expanduser(), today)
    for warning in found.warnings:
        say(f"warning: {warning}")
    check_provider(limits.provider, found)
    return found


def check_headroom(
    settings: Settings,
    limits: Limits,
    catalogue: Catalogue,
    cards: Sequence[Accelerator] | None,
    own: Own | None,
) -> None:
    """SpecError where none of the cards that are searched has more than what is to be left free."""
    from rigsize.plan.candidates import places

    text = settings.text("headroom")
    if text is None:
        return
    whole = replace(limits, headroom_bytes=0, headroom_share=0.0)
    rows = {place.cluster.accelerator for place in places(catalogue.offers, whole, cards)[0]}
    rows |= set() if own is None else {own.machine.accelerator}
    largest = max(rows, key=lambda row: row.capacity_bytes or 0, default=None)
    if largest is None or limits.headroom_bytes < (largest.capacity_bytes or 0):
        return
    most = f"less than {format_bytes(largest.capacity_bytes or 0)}, what {largest.id} has"
    raise SpecError("headroom", text, "leaves nothing of any card", allowed=(most,))
