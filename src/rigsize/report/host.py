"""The host's memory, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.estimate import Estimate

__all__ = ["host_document", "host_line", "host_text"]

_WORDS = {"fits": "", "tight": "tight: ", "does_not_fit": "does not fit: ", "unknown": ""}


def host_text(estimate: Estimate) -> Iterator[RenderableType]:
    """The line, and the ledger where the host has a part in the run."""
    yield host_line(estimate)
    spread = estimate.strategy.offload != "none" or estimate.cluster.devices > 1
    if spread or estimate.fit.host_capacity_bytes is not None:
        yield _ledger(estimate)
    if estimate.fit.host_verdict == "does_not_fit":
        yield _what_would_fit(estimate)


def host_line(estimate: Estimate) -> str:
    """`host peak 5.20 GiB (3.10 to 6.40 GiB) a node of 2 processes, loading`."""
    host = estimate.host
    band = f"{format_bytes(host.low_bytes)} to {format_bytes(host.high_bytes)}"
    processes = "1 process" if host.ranks == 1 else f"{host.ranks:,} processes"
    where = f"a node of {processes}, at {host.moment}"
    return f"  host peak {format_bytes(host.peak_bytes)} ({band}) {where}{_room(estimate)}"


def _what_would_fit(estimate: Estimate) -> str:
    """What the host's memory hangs on, where it is what does not fit."""
    rows = [row.name for row in estimate.host.ledger if row.name != "processes"][:2]
    less = ["fewer processes a node, or more nodes"] if estimate.host.ranks > 1 else []
    less += ["--offload none"] if estimate.strategy.offload != "none" else []
    largest = f"its largest rows are {' and '.join(rows)}" if rows else "processes alone take it"
    return f"\nThe host does not fit: {largest}" + (
        f"; try {', '.join(less)}.\n" if less else ".\n"
    )


def _room(estimate: Estimate) -> str:
    fit = estimate.fit
    if fit.host_capacity_bytes is None or fit.host_headroom_bytes is None:
        return ""
    left = fit.host_headroom_bytes
    words = f"{format_bytes(left)} free" if left >= 0 else f"over by {format_bytes(-left)}"
    return f"; {_WORDS[fit.host_verdict]}of {format_bytes(fit.host_capacity_bytes)}: {words}"


def _ledger(estimate: Estimate) -> RenderableType:
    """The rows sum to the peak."""
    from rigsize.report.console import table  # JSON needs no rich

    host = estimate.host
    made = table(None, f"host, {host.moment}", "bytes", "basis", right=("bytes",))
    for row in host.ledger:
        made.add_row(row.name, format_bytes(row.num_bytes), row.basis)
    made.add_section()
    made.add_row("host peak", format_bytes(host.peak_bytes), "")
    return made


def host_document(estimate: Estimate) -> dict[str, Any]:
    """`host` of the contract."""
    host = estimate.host
    return {
        "peak_bytes": host.peak_bytes,
        "low_bytes": host.low_bytes,
        "high_bytes": host.high_bytes,
        "peak_moment": host.moment,
        "processes": host.ranks,
        "moments": [{"name": name, "bytes": total} for name, total in host.moments],
        "ledger": [
            {"name": row.name, "bytes": row.num_bytes, "basis": row.basis} for row in host.ledger
        ],
    }
