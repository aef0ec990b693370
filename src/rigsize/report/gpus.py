"""The accelerator table: as `rigsize gpus` lists it, one row of it, and this machine's devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rigsize.hardware.accelerators import Accelerator
from rigsize.hardware.here import Device
from rigsize.hardware.targets import target_of
from rigsize.report.document import unknown
from rigsize.units import format_bandwidth, format_bytes, format_flops

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "PriceRange",
    "gpu_document",
    "gpu_text",
    "gpus_document",
    "gpus_text",
    "here_document",
    "here_text",
]

GRADES = {
    "V2": "two or more sources opened",
    "V1": "one source opened",
    "R": "unverified: recalled, no source opened",
}
_NO_RATE = "no dense rate was published for a dtype that is not listed"
_NO_CAPACITY = "nobody published enough to know it"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRange:
    """What a GPU-hour of a card costs on demand, over all offers."""

    low_usd_per_gpu_hour: float
    high_usd_per_gpu_hour: float
    offers: int
    oldest: str
    """The oldest price date among them, empty where one is undated."""
    newest: str


def gpus_text(rows: Sequence[Accelerator]) -> Iterator[RenderableType]:
    """What `--gpus` takes, then what is known but not answered, and why."""
    from rigsize.report.console import table

    made = table(None, "name", "usable", "label", "arch", "also", right=("usable", "label"))
    for row in rows:
        if target_of(row).answered:
            usable = "" if row.capacity_bytes is None else format_bytes(row.capacity_bytes)
            label = "" if row.memory_nominal_gb is None else f"{row.memory_nominal_gb:g} GB"
            name = row.id if row.is_verified else f"{row.id} *"
            made.add_row(name, usable, label, row.arch, ", ".join(row.aliases[:3]))
    yield made
    yield "usable: what torch sees of one device; * unverified: no source was opened for it"
    others = table("not taken by --gpus", "name", "memory", "what it can and cannot do")
    for row in rows:
        if not target_of(row).answered:
            memory = f"{row.memory_nominal_gb:g} GB" if row.memory_nominal_gb else ""
            name = row.id if row.is_verified else f"{row.id} *"
            others.add_row(name, memory, target_of(row).words)
    yield others
    yield "rigsize gpus NAME shows a row with its sources; rigsize offers shows what it costs"


def gpus_document(rows: Sequence[Accelerator]) -> dict[str, Any]:
    """Every row."""
    return {"accelerators": [_row(row) for row in rows]}


def _row(row: Accelerator) -> dict[str, Any]:
    target = target_of(row)
    document: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "vendor": row.vendor,
        "aliases": list(row.aliases),
        "arch": row.arch,
        "software_stack": row.software_stack,
        "answered": target.answered,
        "pytorch_trains": target.trains,
        "use": target.words,
        "devices_per_product": row.devices,
        "memory_nominal_gb": row.memory_nominal_gb,
        "grade": row.check,
        "verified": row.is_verified,
        "basis": row.basis,
        "as_of": row.as_of,
        "source": row.source,
        "note": row.note,
    }
    capacity = row.capacity
    if capacity is None:
        return document | unknown("capacity_bytes", _NO_CAPACITY)
    return document | {
        "capacity_bytes": capacity.value,
        "capacity_basis": capacity.basis,
        "capacity_source": capacity.source,
    }


# -- one row ------------------------------------------------------------------------------------


def gpu_document(
    row: Accelerator, assumed: str | None, prices: PriceRange | None
) -> dict[str, Any]:
    """One row with every figure; an unknown one is null with its reason."""
    context = row.context_bytes
    document = {
        **_row(row),
        "form_factor": row.form_factor,
        "assumed": assumed,
        "devices_per_product": row.devices,
        "training": row.training_capable,
        "pytorch_support": row.pytorch_support,
        "memory_kind": row.memory_kind,
        "sm_count": row.sm_count,
        "sm_source": row.sm_source,
        "native_dtypes": list(row.dtypes),
        "peak_flops_per_s": dict(row.peak_flops_per_s),
        "context_bytes": dict(zip(("low", "mid", "high"), context.value, strict=True)),
        "context_basis": context.basis,
        "context_source": context.source,
        "link_kind": row.link_kind,
        "link_max_peers": row.link_max_peers,
        "tdp_w": row.tdp_w,
    }
    rates = {
        "memory_bytes_per_s": row.memory_bytes_per_s,
        "link_bytes_per_s": row.link_bytes_per_s,
        "pcie_bytes_per_s": row.pcie_bytes_per_s,
    }
    for key, value in rates.items():
        document |= unknown(key, "not published") if value is None else {key: value}
    if prices is None:
        return document | unknown("usd_per_gpu_hour", "no offer with a price has it")
    return document | {
        "usd_per_gpu_hour": {
            "low": prices.low_usd_per_gpu_hour,
            "high": prices.high_usd_per_gpu_hour,
            "offers": prices.offers,
            "oldest_price_date": prices.oldest or None,
            "newest_price_date": prices.newest,
        }
    }


def gpu_text(
    row: Accelerator, assumed: str | None, prices: PriceRange | None
) -> Iterator[RenderableType]:
    """One row for people: each figure with where it comes from."""
    from rigsize.report.console import table

    yield f"{row.id}: {', '.join(filter(None, (row.name, row.form_factor, row.arch)))}"
    if assumed:
        yield assumed
    yield target_of(row).words
    made = table(None, "", "value", "from")
    for name, value, source in _figures(row):
        made.add_row(name, value, source)
    yield made
    yield f"the row's sources: {row.source}"
    yield f"grade {row.check}: {GRADES[row.check]}; read {row.as_of}"
    if row.peak_flops_per_s:
        yield f"rates are dense; {_NO_RATE}"
    if row.devices > 1:
        yield (
            f"one product is {row.devices} devices: usable memory and context are of one of them;"
            " label, bandwidth, rates and power are of the whole product"
        )
    if row.note:
        yield f"note: {row.note}"
    yield _price_line(prices)


def _figures(row: Accelerator) -> Iterator[tuple[str, str, str]]:
    sheet = f"{row.basis}: the row's sources"
    capacity = row.capacity
    if capacity is None:
        yield "usable memory", "unknown", _NO_CAPACITY
    else:
        yield "usable memory", format_bytes(capacity.value), f"{capacity.basis}: {capacity.source}"
    context = row.context_bytes
    if target_of(row).answered and not row.is_cpu:
        low, mid, high = (format_bytes(size) for size in context.value)
        yield "context", f"{mid} ({low} to {high})", f"{context.basis}: {context.source}"
    label = row.memory_nominal_gb
    whole = f", all {row.devices} devices" if row.devices > 1 else ""
    if label:
        yield "label", f"{label:g} GB {row.memory_kind}{whole}", sheet
    if row.memory_bytes_per_s is not None:
        yield "bandwidth", f"{format_bandwidth(row.memory_bytes_per_s)}{whole}", sheet
    for dtype, rate in row.peak_flops_per_s.items():
        # Integer rates count operations, not floating-point ones.
        text = f"{rate / 1e12:g} TOP/s" if dtype == "int8" else format_flops(rate)
        yield f"peak {dtype}", text, sheet
    # The row's grade covers memory and the main tensor rate; these are often recalled.
    sheet = f"{sheet}, unverified"
    yield "link", _link(row), sheet
    if row.pcie_bytes_per_s is not None:
        yield "PCIe", f"{format_bandwidth(row.pcie_bytes_per_s)} a direction", sheet
    if row.tdp_w is not None:
        yield "power", f"{row.tdp_w:g} W", sheet


def _link(row: Accelerator) -> str:
    if not row.link_kind:
        return "unknown"
    if row.link_kind == "none":
        return "none between cards but PCIe"
    if row.link_bytes_per_s is None:
        return row.link_kind
    peers = f", up to {row.link_max_peers}" if row.link_max_peers else ""
    return f"{row.link_kind}: {format_bandwidth(row.link_bytes_per_s)} a direction{peers}"


def _price_line(prices: PriceRange | None) -> str:
    if prices is None:
        return "no offer with a price has it: own it, or ask `rigsize offers refresh`"
    dates = f"{prices.oldest or 'undated'} to {prices.newest}"
    low, high = prices.low_usd_per_gpu_hour, prices.high_usd_per_gpu_hour
    return f"{low:.2f} to {high:.2f} USD a GPU-hour on demand in {prices.offers} offers of {dates}"


# -- this machine -------------------------------------------------------------------------------


def here_document(devices: Sequence[Device]) -> dict[str, Any]:
    """The devices that a driver reports, each with its row."""
    return {
        "devices": [
            {
                "name": device.name,
                "driver_memory_bytes": device.memory_bytes,
                "driver": device.driver or None,
                "tool": device.tool,
                "accelerator": device.accelerator and device.accelerator.id,
                "note": device.note,
            }
            for device in devices
        ]
    }


def here_text(devices: Sequence[Device]) -> Iterator[RenderableType]:
    """The same for people."""
    from rigsize.report.console import table

    made = table(None, "device", "driver's memory", "row", "by", right=("driver's memory",))
    for device in devices:
        row = device.accelerator.id if device.accelerator else "none"
        by = f"{device.tool} {device.driver}".strip()
        made.add_row(device.name, format_bytes(device.memory_bytes), row, by)
    yield made
    yield from dict.fromkeys(f"{d.name}: {d.note}" for d in devices if d.note)
    names = [d.accelerator.id for d in devices if d.accelerator]
    for name in dict.fromkeys(names):
        yield f"for estimate: --gpus {name}:{names.count(name)}"
