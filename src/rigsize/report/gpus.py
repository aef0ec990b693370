"""The accelerator table as `rigsize gpus` lists it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rigsize.hardware import Accelerator
from rigsize.report.document import unknown
from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["gpus_document", "gpus_text"]


def _answered(row: Accelerator) -> bool:
    return row.is_cpu or (row.software_stack == "cuda" and row.compute_capability is not None)


def gpus_text(rows: Sequence[Accelerator]) -> Iterator[RenderableType]:
    """What `--gpus` takes today, then what is known but not answered."""
    from rigsize.report.console import table

    made = table(None, "name", "usable", "label", "arch", "also", right=("usable", "label"))
    for row in rows:
        if _answered(row):
            usable = "" if row.capacity_bytes is None else format_bytes(row.capacity_bytes)
            label = "" if row.memory_nominal_gb is None else f"{row.memory_nominal_gb:g} GB"
            made.add_row(row.id, usable, label, row.arch, ", ".join(row.aliases[:3]))
    yield made
    rest = ", ".join(row.id for row in rows if not _answered(row))
    yield f"In the table but not answered yet: {rest}"


def gpus_document(rows: Sequence[Accelerator]) -> dict[str, Any]:
    """Every row."""
    return {"accelerators": [_row(row) for row in rows]}


def _row(row: Accelerator) -> dict[str, Any]:
    capacity = row.capacity
    document: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "vendor": row.vendor,
        "aliases": list(row.aliases),
        "arch": row.arch,
        "software_stack": row.software_stack,
        "answered": _answered(row),
        "memory_nominal_gb": row.memory_nominal_gb,
    }
    if capacity is None:
        return document | unknown("capacity_bytes", "nobody published enough to know it")
    return document | {
        "capacity_bytes": capacity.value,
        "capacity_basis": capacity.basis,
        "capacity_source": capacity.source,
    }
