"""Who holds the bytes at the peak, and when the peak is."""

from __future__ import annotations

from rigsize.estimated import MemoryEstimate
from rigsize.hardware.accelerators import Accelerator
from rigsize.memory.ledger import LedgerRow
from rigsize.memory.outside import communication, outside
from rigsize.memory.replay import Replay
from rigsize.program.build import Program

__all__ = ["describe_moment", "ledger", "memory_of"]


def memory_of(program: Program, played: Replay, accelerator: Accelerator) -> MemoryEstimate:
    """What the replay saw, with the device's own beside it; the rows sum to the device peak."""
    rows = ledger(program, played)
    moment = describe_moment(program, played)
    if accelerator.is_cpu:
        total = played.allocated_peak_bytes
        return MemoryEstimate(
            allocated_peak_bytes=total,
            reserved_peak_bytes=None,
            device_peak_bytes=None,
            low_bytes=total,
            high_bytes=total,
            peak_moment=moment,
            ledger=tuple(rows),
        )
    context, added = accelerator.context_bytes, communication(program.mesh, accelerator)
    beside = outside(program.mesh, accelerator)
    reserved = played.reserved_peak_bytes
    cached = reserved - played.live_requested_bytes
    rows.append(LedgerRow(name="allocator", num_bytes=cached, basis="derived"))
    rows.append(LedgerRow(name="context", num_bytes=context.value.mid, basis=context.basis))
    if added is not None:
        rows.append(LedgerRow(name="communication", num_bytes=added.value.mid, basis=added.basis))
    return MemoryEstimate(
        allocated_peak_bytes=played.allocated_peak_bytes,
        reserved_peak_bytes=reserved,
        device_peak_bytes=reserved + beside.mid,
        low_bytes=reserved + beside.low,
        high_bytes=reserved + beside.high,
        peak_moment=moment,
        ledger=tuple(rows),
    )


_STRONGEST_FIRST = ("traced", "derived", "assumed")


def ledger(program: Program, played: Replay) -> list[LedgerRow]:
    """What lives at the peak by category, as requested, largest first.

    A row is no better founded than the weakest of its storages.
    """
    totals: dict[str, int] = {}
    bases: dict[str, str] = {}
    timeline = program.timeline
    for storage in played.live:
        place = timeline.places[storage]
        totals[place.category] = totals.get(place.category, 0) + timeline.sizes[storage]
        bases[place.category] = max(
            bases.get(place.category, "traced"), place.basis, key=_STRONGEST_FIRST.index
        )
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return [LedgerRow(name=n, num_bytes=b, basis=bases[n]) for n, b in ranked]


def describe_moment(program: Program, played: Replay) -> str:
    """`backward of step 2, at _log_softmax_backward_data`."""
    peak = played.peak
    operation = program.slices[peak.slice][peak.index]
    place = program.timeline.places[operation if operation >= 0 else ~operation]
    phase = {"optimizer": "optimizer step"}.get(peak.phase, peak.phase)
    where = f" in {place.module}" if place.module else ""
    at = f"at {place.op or place.category}{where}"
    if "end" in program.slices:
        return f"{_pass_of(peak.slice)}, {at}"
    micro = ", a later micro-step" if peak.slice in ("accumulate", "last") else ""
    return f"{phase} of step {peak.step + 1}{micro}, {at}"


def _pass_of(name: str) -> str:
    """A slice of `program.generation` in words."""
    kind, _, keys = name.partition(".")
    return f"decoding step with {int(keys):,} keys" if kind == "decode" else "prefill"
