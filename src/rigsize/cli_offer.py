"""The offer that a question names: whose price, host memory and network."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.cli_settings import Settings
from rigsize.cli_target import Target
from rigsize.errors import SizingError, SpecError, nearest
from rigsize.units import format_bytes, format_network

if TYPE_CHECKING:
    from rigsize.hardware.offers import Catalogue, Offer
    from rigsize.spec import Cluster

__all__ = ["CHOOSING", "catalogue_of", "offer_of", "with_offered_host"]

CHOOSING = ("offer", "provider", "region", "offers")
"""Flags that choose a machine to rent."""


def catalogue_of(settings: Settings, today: date) -> Catalogue:
    """All offers, or those of a region, with those of `--offers`.

    SpecError for a wrong file, region, provider or name.
    """
    from rigsize.hardware.offers import load_catalogue
    from rigsize.money import check_names

    own = settings.text("offers")
    catalogue = load_catalogue(None if own is None else Path(own).expanduser(), today)
    catalogue = _in_region(settings.text("region"), catalogue)
    check_names(
        catalogue.offers, instance=settings.text("offer"), provider=settings.text("provider")
    )
    return catalogue


def _in_region(region: str | None, catalogue: Catalogue) -> Catalogue:
    from rigsize.hardware.offers import Wanted, is_in, select

    if region is None:
        return catalogue
    found = select(catalogue.offers, Wanted(region=region, fractional=True))
    regions = {offer.region for offer in catalogue.offers}
    if not any(is_in(named, region) for named in regions):
        close = nearest(region, regions)
        hint = "`rigsize offers` lists them"
        raise SpecError("region", region, "no offers of it", nearest=close, hint=hint)
    return replace(catalogue, offers=found)


def offer_of(settings: Settings, catalogue: Catalogue, cluster: Cluster) -> Offer:
    """The cheapest of those chosen on which the cluster can be rented; SizingError for none."""
    from rigsize.money import find_offer

    return find_offer(
        catalogue.offers,
        cluster,
        instance=settings.text("offer"),
        provider=settings.text("provider"),
        spot=settings.switch("spot"),
    )


def with_offered_host(settings: Settings, target: Target) -> Target:
    """The target with host memory and network of the chosen machine, where nobody gave others.

    A plan of the same machine is judged by them, too. An offer that cannot be had changes nothing
    here: the answer's price says why.
    """
    chosen = any(settings.text(name) is not None for name in CHOOSING)
    cluster = target.cluster
    asks_network = cluster.nodes > 1 and cluster.network_bytes_per_s is None
    if not chosen or not (asks_network or cluster.host_memory_bytes is None):
        return target
    catalogue = catalogue_of(settings, date.today())
    try:
        offer = offer_of(settings, catalogue, cluster)
    except SizingError:
        return target
    size, rate = offer.host_memory_bytes, offer.network_bytes_per_s
    whose = f"that of {offer.provider} {offer.instance}"
    if size is not None and cluster.host_memory_bytes is None:
        settings.assumed.append(f"host-memory {format_bytes(size)}: {whose}")
        cluster = replace(cluster, host_memory_bytes=size)
    if rate is not None and asks_network:
        settings.assumed.append(f"network {format_network(rate)}: {whose}")
        cluster = replace(cluster, network_bytes_per_s=rate)
    return replace(target, cluster=cluster)
