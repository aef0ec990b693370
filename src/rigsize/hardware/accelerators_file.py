"""The accelerator table as a CSV file: the packaged one and a user's own rows, checked alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rigsize.errors import nearest
from rigsize.hardware.accelerators import (
    RATES,
    ROCM_CONTEXT,
    START_CONTEXT,
    TORCH_SHARE_OF_DRIVER,
    Accelerator,
    Band,
    compute_capability,
    native_dtypes,
)
from rigsize.hardware.csv_rows import Row, read_rows
from rigsize.hardware.dates import first_day
from rigsize.hardware.names import normal
from rigsize.provenance import BASES, Basis, Sourced
from rigsize.units import GIB, MIB

__all__ = ["COLUMNS", "read_accelerators"]

FIELD = "accelerators"
COLUMNS = (
    "id", "vendor", "name", "aliases", "form_factor", "memory_nominal_gb", "memory_driver_mib",
    "memory_usable_gib", "torch_total_gib", "torch_total_source", "memory_kind", "memory_bw_gbs",
    "fp32_tflops", "tf32_tflops", "fp16_tflops", "bf16_tflops", "fp8_tflops", "int8_tops",
    "fp4_tflops", "link_kind", "link_gbs_per_direction", "link_max_peers", "pcie_gen",
    "pcie_lanes", "pcie_gbs_per_direction", "tdp_w", "software_stack", "arch", "training_capable",
    "pytorch_support", "seed_ref", "devices", "sm_count", "max_threads_per_sm", "sm_source",
    "context_low_mib", "context_mid_mib", "context_high_mib", "context_source", "check", "basis",
    "as_of", "source", "note",
)  # fmt: skip
REQUIRED = ("id", "software_stack", "arch")
GRADES = ("V2", "V1", "R")
STACKS = (
    *("cuda", "rocm", "neuron", "synapse", "xla", "xpu", "poplar", "own", "own (Apps SDK)"),
    *("ryzen-ai (ONNX Runtime)", "cpu"),
)
UNDATED = "undated"

MOST = 1e8
"""Of anything that is counted in GB, GB/s, TFLOP/s or watts; far above what there is."""
MOST_DEVICES = 64
LEAST_OF_NOMINAL, LEAST_OF_DRIVER = 0.9, 0.94
"""The driver of the label, torch of the driver: no card of the table leaves less."""
MOST_CONTEXT_MIB = 2048
_ID = re.compile(r"[A-Za-z0-9._+-]{1,100}")
_ALIAS = re.compile(r"[^:,|\x00-\x1f]{1,100}")
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?")


def read_accelerators(
    path: Path, beside: Sequence[Accelerator] | None = None
) -> tuple[Accelerator, ...]:
    """All rows of a file in the columns of `COLUMNS`; an empty cell is unknown.

    Args:
        path: a CSV file with a header, UTF-8.
        beside: the table that a user's rows stand beside, whose names are taken; None reads that
            table itself.

    Raises:
        SpecError: unreadable, malformed, or against what holds of every card; row and column are
            named.
    """
    own = beside is not None
    taken = {normal(name) for one in beside or () for name in (one.id, one.name, *one.aliases)}
    found = []
    for row in read_rows(path, FIELD, COLUMNS, REQUIRED):
        _check_names(row, taken, own=own)
        _check_memory(row)
        _check_rates(row)
        found.append(_accelerator(row, str(path.absolute()) if own else ""))
    return tuple(found)


def _aliases(row: Row) -> tuple[str, ...]:
    return tuple(alias.strip() for alias in row.text("aliases").split("|") if alias.strip())


# -- checks -------------------------------------------------------------------------------------


def _check_names(row: Row, taken: set[str], *, own: bool) -> None:
    """Names that `--gpus NAME:N` can tell apart; adds them to those that are taken."""
    id_ = row.required("id")
    if not _ID.fullmatch(id_) or not normal(id_):
        row.refuse("id", "no name for --gpus: letters, digits, dots, dashes and underscores")
    if normal(id_) in taken:
        row.refuse("id", "another card's name: give it one of its own")
    taken.add(normal(id_))
    if not own:
        return  # one name of the packaged table may cover several of its cards
    for alias in _aliases(row):
        if not _ALIAS.fullmatch(alias) or not normal(alias):
            row.refuse("aliases", f"{alias!r} is no name for --gpus")
        if normal(alias) in taken - {normal(id_)}:
            row.refuse("aliases", f"{alias} is another card's name")
        taken.add(normal(alias))


def _check_memory(row: Row) -> None:
    nominal = row.number("memory_nominal_gb", MOST)
    driver = row.whole("memory_driver_mib", MOST * 1024)
    devices = row.whole("devices", MOST_DEVICES) or 1
    if driver and nominal:
        # Nominal sizes are binary gigabytes on the box, and a driver never shows more.
        if driver > nominal * 1024:
            row.refuse("memory_driver_mib", f"more than the {nominal:g} GB of its label")
        if driver < nominal * 1024 * LEAST_OF_NOMINAL:
            row.refuse("memory_driver_mib", f"less than 90 % of the {nominal:g} GB of its label")
    total = row.number("torch_total_gib", MOST, above_zero=True)
    if total and driver:
        of_driver = total * 1024 * devices / driver
        if not LEAST_OF_DRIVER <= of_driver <= 1:
            row.refuse("torch_total_gib", "not 94 to 100 % of the driver's memory of one device")
    bounds = [row.whole(f"context_{bound}_mib", MOST_CONTEXT_MIB) for bound in Band._fields]
    known = [bound for bound in bounds if bound is not None]
    if known and (len(known) < len(bounds) or known != sorted(known)):
        row.refuse("context_mid_mib", "low, mid and high go together, in that order")


def _check_rates(row: Row) -> None:
    rates = {dtype: row.number(column, MOST, above_zero=True) for dtype, column in RATES.items()}
    for slow, fast in (("fp32", "tf32"), ("fp32", "fp16"), ("fp32", "bf16"), ("tf32", "fp16")):
        below, above = rates[slow], rates[fast]
        if below and above and above < below:
            row.refuse(RATES[fast], f"below its {RATES[slow]}, which no card is")


# -- a row --------------------------------------------------------------------------------------


def _accelerator(row: Row, table: str) -> Accelerator:
    stack = _one_of(row, "software_stack", STACKS)
    arch = row.required("arch")
    _check_arch(row, stack, arch)
    capability = compute_capability(arch)
    rates = {
        dtype: rate * 1e12
        for dtype, column in RATES.items()
        if (rate := row.number(column, MOST)) is not None
    }
    basis, grade = _basis_and_grade(row)
    as_of = _as_of(row)
    return Accelerator(
        id=row.required("id"),
        vendor=row.text("vendor"),
        name=row.text("name") or row.required("id"),
        aliases=_aliases(row),
        form_factor=row.text("form_factor"),
        arch=arch,
        compute_capability=capability,
        sm_count=row.whole("sm_count", MOST),
        max_threads_per_sm=row.whole("max_threads_per_sm", 4096),
        sm_source=row.text("sm_source"),
        memory_nominal_gb=row.number("memory_nominal_gb", MOST),
        memory_driver_mib=row.whole("memory_driver_mib", MOST * 1024),
        devices=row.whole("devices", MOST_DEVICES) or 1,
        capacity=_capacity(row, as_of),
        context_bytes=_context(row, stack, as_of),
        memory_kind=row.text("memory_kind"),
        memory_bytes_per_s=_scaled(row, "memory_bw_gbs"),
        peak_flops_per_s=rates,
        dtypes=native_dtypes(stack, capability, rates),
        link_kind=row.text("link_kind"),
        link_bytes_per_s=_scaled(row, "link_gbs_per_direction"),
        link_max_peers=row.whole("link_max_peers", MOST),
        pcie_bytes_per_s=_scaled(row, "pcie_gbs_per_direction"),
        tdp_w=row.number("tdp_w", MOST, above_zero=True),
        software_stack=stack,
        training_capable=row.text("training_capable") or "yes",
        pytorch_support=row.text("pytorch_support") or "yes",
        seed_ref=row.text("seed_ref"),
        check=grade,
        basis=basis,
        as_of=as_of,
        source=row.text("source") or row.file,
        note=row.text("note"),
        table=table,
    )


def _one_of(row: Row, column: str, allowed: Sequence[str]) -> str:
    value = row.required(column)
    if value not in allowed:
        meant = nearest(value, allowed)
        row.refuse(
            column, f"none of {', '.join(allowed)}{f': did you mean {meant}?' * bool(meant)}"
        )
    return value


def _check_arch(row: Row, stack: str, arch: str) -> None:
    """As torch names it, where torch builds kernels for it."""
    form = _ARCHS.get(stack)
    if form is not None and not form[0].match(arch):
        row.refuse("arch", f"not as {stack} has it: {form[1]}")


_ARCHS = {
    "cuda": (re.compile(r"sm_\d{2,3}\b"), "sm_80, sm_90, sm_120"),
    "rocm": (re.compile(r"gfx[0-9a-f]{3,5}\b"), "gfx90a, gfx942"),
}


def _capacity(row: Row, as_of: str) -> Sourced[int] | None:
    total = row.number("torch_total_gib", MOST)
    if total is not None:
        source = row.text("torch_total_source") or row.text("source") or row.file
        value = int(total * GIB)
        return Sourced(value=value, source=source, as_of=as_of, basis="published")
    driver = row.whole("memory_driver_mib", MOST * 1024)
    if driver is None:
        return None
    of_one = driver * MIB // (row.whole("devices", MOST_DEVICES) or 1)
    source = row.text("source") or row.file
    return Sourced(
        value=int(of_one * TORCH_SHARE_OF_DRIVER),
        source=f"{TORCH_SHARE_OF_DRIVER} of the driver's memory per device; {source}",
        as_of=as_of,
        basis="derived",
    )


def _context(row: Row, stack: str, as_of: str) -> Sourced[Band]:
    bounds = [row.whole(f"context_{bound}_mib", MOST_CONTEXT_MIB) for bound in Band._fields]
    low, mid, high = ((bound or 0) * MIB for bound in bounds)
    if not mid:
        return ROCM_CONTEXT if stack == "rocm" else START_CONTEXT
    source = row.text("context_source") or row.text("source") or row.file
    return Sourced(value=Band(low, mid, high), source=source, as_of=as_of, basis="measured")


def _scaled(row: Row, column: str) -> float | None:
    """Decimal giga a second; 0 is a link that is not there."""
    value = row.number(column, MOST)
    return None if value is None else value * 1e9


def _basis_and_grade(row: Row) -> tuple[Basis, str]:
    """How well it is known; nothing said is assumed and unverified."""
    basis, grade = row.text("basis"), row.text("check")
    if basis:
        _one_of(row, "basis", BASES)
    if grade:
        _one_of(row, "check", GRADES)
    grade = grade or ("R" if basis in ("", "assumed") else "V1")
    basis = basis or ("assumed" if grade == "R" else "published")
    if (basis == "assumed") != (grade == "R"):
        row.refuse("check", f"{grade} does not go with the basis {basis}: R is what is assumed")
    return cast("Basis", basis), grade


def _as_of(row: Row) -> str:
    text = row.text("as_of")
    if not text:
        return UNDATED
    if not _DATE.fullmatch(text):
        row.refuse("as_of", "not a date YYYY-MM-DD")
    row.parsed("as_of", first_day, "not a date YYYY-MM-DD")
    return text
