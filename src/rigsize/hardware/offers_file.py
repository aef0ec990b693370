"""Offers as a CSV file: the packaged snapshot, the refreshed prices and the user's own rows."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import NoReturn, TypeVar

from rigsize.errors import SizingError, SpecError, nearest
from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.names import MAX_PER_NODE, parse_gpus
from rigsize.hardware.offers import Offer, first_day
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

T = TypeVar("T")


def read_offers(path: Path, today: date | None = None) -> tuple[Offer, ...]:
    """All rows of a file in the columns of `COLUMNS`, of which the first four are required.

    Args:
        path: a CSV file with a header, UTF-8.
        today: a price dated later is refused; None accepts any date.

    Raises:
        SpecError: unreadable, empty or malformed; the row (as a spreadsheet counts) and the
            column are named.
    """
    reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
    try:
        _check_header(path, reader.fieldnames)
        offers = tuple(_Row(path, reader.line_num, row, today).offer() for row in reader)
    except csv.Error as error:
        place = f"{path.name} row {reader.line_num}"
        raise SpecError("offers", str(path), f"{place}: no CSV ({error})") from None
    if not offers:
        raise SpecError("offers", str(path), "the file has a header and no row")
    return offers


def write_offers(rows: Iterable[Mapping[str, object]], path: Path) -> None:
    """The rows as one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError("offers", str(path), "no UTF-8 text") from None
    except OSError as error:
        raise SpecError("offers", str(path), f"cannot be read ({error.strerror})") from None


def _check_header(path: Path, header: Iterable[str] | None) -> None:
    names = list(header or ())
    if not names:
        raise SpecError("offers", str(path), "the file is empty", allowed=COLUMNS)
    for name in names:
        if name not in COLUMNS:
            problem = f"{path.name}: no such column"
            raise SpecError(
                "offers", name, problem, allowed=COLUMNS, nearest=nearest(name, COLUMNS)
            )
        if names.count(name) > 1:
            raise SpecError("offers", name, f"{path.name}: the column is there twice")
    for name in REQUIRED:
        if name not in names:
            raise SpecError("offers", name, f"{path.name}: the column is missing", allowed=COLUMNS)


class _Row:
    """One row on its way to an Offer; every mistake names the row and the column."""

    def __init__(
        self, path: Path, number: int, cells: Mapping[str | None, str | None], today: date | None
    ) -> None:
        self.place = f"{path.name} row {number}"
        self.file = path.name
        self.today = today
        if None in cells or None in cells.values():
            raise SpecError("offers", self.place, "more or fewer cells than the header has")
        self.cells = {str(name): str(cell).strip() for name, cell in cells.items()}

    def offer(self) -> Offer:
        accelerator, assumed = self.accelerator()
        count = self.number("gpu_count", MAX_PER_NODE)
        if not count or (count > 1 and count != int(count)):
            self.refuse("gpu_count", "neither a whole number nor a slice of one GPU")
        notes = (self.text("note"), assumed)
        return Offer(
            provider=self.required("provider").casefold(),
            instance=self.required("instance"),
            accelerator=accelerator,
            gpu_count=count,
            gpu_memory_gib=self.number("gpu_mem_gib", MOST_GIB),
            vcpus=self.whole("vcpus"),
            host_memory_gib=self.number("host_ram_gib", MOST_GIB),
            region=self.text("region") or "any",
            on_demand_usd_per_hour=self.number("on_demand_usd_h", MOST_USD_PER_HOUR),
            spot_usd_per_hour=self.number("spot_usd_h", MOST_USD_PER_HOUR),
            price_date=self.day(),
            status=self.text("status") or "current",
            source=self.text("source") or self.file,
            note="; ".join(note for note in notes if note),
            network_gbit_per_s=self.network(),
            max_multiple=self.whole("max_multiple") or 1,
        )

    def accelerator(self) -> tuple[Accelerator, str]:
        name = self.required("gpu_name")
        try:
            gpus = parse_gpus(name)
        except SizingError as error:
            raise type(error)(
                "offers",
                name,
                f"{self.place}, column gpu_name: {error.problem}",
                nearest=error.nearest,
                hint="`rigsize gpus` lists the names",
            ) from None
        if (gpus.per_node, gpus.nodes) != (1, 1):
            self.refuse("gpu_name", "a count belongs into gpu_count")
        return gpus.accelerator, gpus.assumed_note or ""

    def text(self, column: str) -> str:
        return self.cells.get(column, "")

    def required(self, column: str) -> str:
        return self.text(column) or self.refuse(column, "empty")

    def number(self, column: str, most: float) -> float | None:
        value = self.parsed(column, float, "not a number")
        if value is None:
            return None
        if value < 0:
            self.refuse(column, "negative")
        if not math.isfinite(value) or value > most:
            self.refuse(column, f"not a number up to {most:g}")
        return value

    def network(self) -> float | None:
        rate = self.number("network_gbit_s", MOST_NETWORK_GBIT_PER_S)
        if rate == 0:
            self.refuse("network_gbit_s", "no network at all; empty where it is not known")
        return rate

    def whole(self, column: str) -> int | None:
        value = self.parsed(column, int, "not a whole number")
        if value is not None and not 1 <= value <= MOST_GIB:
            self.refuse(column, "not a whole number from 1")
        return value

    def parsed(self, column: str, parse: Callable[[str], T], problem: str) -> T | None:
        cell = self.text(column)
        if not cell:
            return None
        try:
            return parse(cell)
        except ValueError:
            return self.refuse(column, problem)

    def day(self) -> str:
        text = self.text("snapshot_date")
        if text and not _DATE.fullmatch(text):
            self.refuse("snapshot_date", "not a date YYYY-MM-DD")
        first = self.parsed("snapshot_date", first_day, "not a date YYYY-MM-DD")
        if first is not None and self.today is not None and first > self.today:
            self.refuse("snapshot_date", "in the future")
        return text

    def refuse(self, column: str, problem: str) -> NoReturn:
        raise SpecError("offers", self.text(column), f"{self.place}, column {column}: {problem}")
