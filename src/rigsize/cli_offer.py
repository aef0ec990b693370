"""The offer that a question names: whose price, and whose host memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rigsize.cli_settings import Settings
from rigsize.cli_target import Target
from rigsize.errors import SizingError
from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rigsize.hardware.offers import Catalogue, Offer
    from rigsize.spec import Cluster

__all__ = ["CHOOSING", "catalogue_of", "offer_of", "with_offered_host"]

CHOOSING = ("offer", "provider", "offers")
"""Flags that choose a machine to rent."""


def catalogue_of(settings: Settings, today: date) -> Catalogue:
    """All offers, with those of `--offers`; SpecError for a wrong file, provider or name."""
    from rigsize.hardware.offers import load_catalogue
    from rigsize.money import check_names

    own = settings.text("offers")
    catalogue = load_catalogue(None if own is None else Path(own).expanduser(), today)
    check_names(
        catalogue.offers, instance=settings.text("offer"), provider=settings.text("provider")
    )
    return catalogue


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
    """The target with the host memory of the chosen machine, where nobody gave another.

    A plan of the same machine is judged by it, too. An offer that cannot be had changes nothing
    here: the answer's price says why.
    """
    chosen = any(settings.text(name) is not None for name in CHOOSING)
    if not chosen or target.cluster.host_memory_bytes is not None:
        return target
    catalogue = catalogue_of(settings, date.today())
    try:
        offer = offer_of(settings, catalogue, target.cluster)
    except SizingError:
        return target
    size = offer.host_memory_bytes
    if size is None:
        return target
    settings.assumed.append(
        f"host-memory {format_bytes(size)}: that of {offer.provider} {offer.instance}"
    )
    return replace(target, cluster=replace(target.cluster, host_memory_bytes=size))
