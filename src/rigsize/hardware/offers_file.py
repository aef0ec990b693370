"""Offers as a CSV file: the packaged snapshot, the refreshed prices and the user's own rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

from rigsize.errors import SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.csv_rows import Row, read_rows
from rigsize.hardware.dates import first_day
from rigsize.hardware.names import MAX_PER_NODE, parse_gpus
from rigsize.hardware.offers import Offer
from rigsize.spec.cluster import MOST_NETWORK_GBIT_PER_S

__all__ = ["COLUMNS", "MOST_GIB", "MOST_USD_PER_HOUR", "read_offers", "write_offers"]

COLUMNS = (
    "provider", "instance", "gpu_name", "gpu_count", "gpu_mem_gib", "vcpus", "host_ram_gib",
    "region", "on_demand_usd_h", "spot_usd_h", "snapshot_date", "status", "source", "note",
    "max_multiple", "network_gbit_s",
)  # fmt: skip
REQUIRED = COLUMNS[:4]
MOST_USD_PER_HOUR = 1e6
MOST_GIB = 1e6
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


def read_offers(path: Path, today: date | None = None) -> tuple[Offer, ...]:
    """All rows of a file in the columns of `COLUMNS`, of which the first four are required.

    Args:
        path: a CSV file with a header, UTF-8.
        today: of a user's file: a price dated later, and a machine that is there twice, are
            refused; None accepts both, for some of the snapshot are of two sources.

    Raises:
        SpecError: unreadable, empty or malformed; the row (as a spreadsheet counts) and the
            column are named.
    """
    found: dict[tuple[str, str, str, int], Offer] = {}
    for number, row in enumerate(read_rows(path, "offers", COLUMNS, REQUIRED)):
        offer = _offer(row, today)
        key = offer.provider, offer.instance, offer.region, 0 if today else number
        if key in found:
            row.refuse("instance", "there already, of the same provider in the same region")
        found[key] = offer
    return tuple(found.values())


def write_offers(rows: Iterable[Mapping[str, object]], path: Path) -> None:
    """The rows as one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def _offer(row: Row, today: date | None) -> Offer:
    accelerator, assumed = _accelerator(row)
    count = row.number("gpu_count", MAX_PER_NODE)
    if not count or (count > 1 and count != int(count)):
        row.refuse("gpu_count", "neither a whole number nor a slice of one GPU")
    notes = (row.text("note"), assumed)
    return Offer(
        provider=row.required("provider").casefold(),
        instance=row.required("instance"),
        accelerator=accelerator,
        gpu_count=count,
        gpu_memory_gib=row.number("gpu_mem_gib", MOST_GIB),
        vcpus=row.whole("vcpus", MOST_GIB),
        host_memory_gib=row.number("host_ram_gib", MOST_GIB),
        region=row.text("region") or "any",
        on_demand_usd_per_hour=row.number("on_demand_usd_h", MOST_USD_PER_HOUR),
        spot_usd_per_hour=row.number("spot_usd_h", MOST_USD_PER_HOUR),
        price_date=_day(row, "snapshot_date", today),
        status=row.text("status") or "current",
        source=row.text("source") or row.file,
        note="; ".join(note for note in notes if note),
        network_gbit_per_s=row.number("network_gbit_s", MOST_NETWORK_GBIT_PER_S, above_zero=True),
        max_multiple=row.whole("max_multiple", MAX_PER_NODE) or 1,
    )


def _accelerator(row: Row) -> tuple[Accelerator, str]:
    name = row.required("gpu_name")
    try:
        gpus = parse_gpus(name)
    except SizingError as error:
        raise type(error)(
            "offers",
            name,
            f"{row.place}, column gpu_name: {error.problem}",
            nearest=error.nearest,
            hint="`rigsize gpus` lists the names",
        ) from None
    if (gpus.per_node, gpus.nodes) != (1, 1):
        row.refuse("gpu_name", "a count belongs into gpu_count")
    return gpus.accelerator, gpus.assumed_note or ""


def _day(row: Row, column: str, today: date | None) -> str:
    text = row.text(column)
    if text and not _DATE.fullmatch(text):
        row.refuse(column, "not a date YYYY-MM-DD")
    first = row.parsed(column, first_day, "not a date YYYY-MM-DD")
    if first is not None and today is not None and first > today:
        row.refuse(column, "in the future")
    return text
