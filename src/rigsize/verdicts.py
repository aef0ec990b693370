"""Whether a Program fits: a replay on the card over the context's band, and the host beside it."""

from __future__ import annotations

from dataclasses import replace

from rigsize.errors import UnsupportedCombination
from rigsize.estimated import WORST_FIRST, DeviceShare, Fit, MemoryEstimate, Verdict
from rigsize.hardware.accelerators import Accelerator
from rigsize.memory.compiled import as_assumed, least_bytes
from rigsize.memory.host import HostEstimate
from rigsize.memory.outside import outside
from rigsize.memory.peaks import BOUNDS, allocated_beside
from rigsize.memory.replay import Replay, replay, replay_exact
from rigsize.program.build import Program
from rigsize.spec import Cluster
from rigsize.units import format_bytes

__all__ = [
    "beside_steps",
    "compiled",
    "fit_of",
    "fits_on",
    "free_at_rest",
    "with_host",
    "worst",
]


def fits_on(program: Program, accelerator: Accelerator) -> bool:
    """Whether the verdict is `fits`: it holds also at the high end of the context's band."""
    if program.devices:
        return all(fits_on(part, accelerator) for part in program.devices)
    capacity = accelerator.capacity_bytes
    if accelerator.is_cpu or capacity is None:
        raise UnsupportedCombination(
            "gpus",
            accelerator.id,
            "no capacity is known to fit a batch into",
            hint="--host-memory 64GiB says what there is" if accelerator.is_cpu else "",
        )
    return fitting_replay(program, accelerator) is not None


def fitting_replay(program: Program, accelerator: Accelerator) -> Replay | None:
    """The replay on the card, where it ends within it at the high end of the context's band."""
    capacity = accelerator.capacity_bytes
    assert capacity is not None, accelerator.id
    beside = outside(program.mesh, accelerator)
    played = replay(
        program,
        capacity_bytes=capacity - beside.mid,
        beside_steps=True,
        enough_bytes=capacity - beside.high,
    )
    ended = played.out_of_memory is None
    return played if ended and played.reserved_peak_bytes + beside.high <= capacity else None


def worst(
    program: Program, accelerator: Accelerator
) -> tuple[Program, Replay, Verdict, tuple[DeviceShare, ...]]:
    """The Program that decides, its replay and verdict, and every device where there are more."""
    if not program.devices:
        return program, *_play(program, accelerator), ()
    played = [_play(part, accelerator) for part in program.devices]
    shares = tuple(
        DeviceShare(
            device=number,
            weight_bytes=_weights(part),
            allocated_peak_bytes=replayed.allocated_peak_bytes,
            reserved_peak_bytes=replayed.reserved_peak_bytes,
            verdict=verdict,
        )
        for number, (part, (replayed, verdict)) in enumerate(
            zip(program.devices, played, strict=True)
        )
    )
    fullest = min(
        shares, key=lambda s: (WORST_FIRST.index(s.verdict), -s.reserved_peak_bytes)
    ).device
    return program.devices[fullest], *played[fullest], shares


def _weights(program: Program) -> int:
    timeline = program.timeline
    return sum(
        timeline.sizes[o]
        for o in program.slices["load"]
        if o >= 0 and timeline.places[o].category.startswith("weights")
    )


def _play(program: Program, accelerator: Accelerator) -> tuple[Replay, Verdict]:
    """The replay to report, through what is beside the steps; the verdict over the context's band.

    Both are asked for: `beside_steps` judges by its moments, `estimate.peaks` lists them.
    """
    if accelerator.is_cpu:
        return replay_exact(program, beside_steps=True), "unknown"
    capacity = accelerator.capacity_bytes
    if capacity is None:
        return replay(program, beside_steps=True), "unknown"
    beside = outside(program.mesh, accelerator)
    played = replay(program, capacity_bytes=capacity - beside.mid, beside_steps=True)
    if played.out_of_memory:
        lenient = replay(program, capacity_bytes=capacity - beside.low, beside_steps=True)
        verdict: Verdict = "does_not_fit" if lenient.out_of_memory else "tight"
        if verdict == "does_not_fit":
            return replay(program, beside_steps=True), verdict
        return lenient, verdict
    return played, "fits" if played.reserved_peak_bytes + beside.high <= capacity else "tight"


def compiled(
    memory: MemoryEstimate, verdict: Verdict, program: Program, accelerator: Accelerator
) -> tuple[MemoryEstimate, Verdict]:
    """The eager figures as a bound from above, and what no compiler removes as one from below."""
    low = least_bytes(memory.ledger)
    if not accelerator.is_cpu:
        beside = outside(program.mesh, accelerator)
        low -= beside.mid - beside.low
    capacity = accelerator.capacity_bytes
    if verdict == "does_not_fit" and capacity is not None and low <= capacity:
        verdict = "tight"
    bounded = replace(
        memory, low_bytes=min(low, memory.low_bytes), ledger=as_assumed(memory.ledger)
    )
    return bounded, verdict


def fit_of(verdict: Verdict, program: Program, played: Replay, accelerator: Accelerator) -> Fit:
    """The card's verdict with its capacity and what is left of it, in bytes."""
    capacity = accelerator.capacity_bytes
    if verdict == "unknown" or capacity is None:
        return Fit(verdict=verdict, capacity_bytes=capacity, headroom_bytes=None)
    used = played.reserved_peak_bytes + outside(program.mesh, accelerator).mid
    return Fit(verdict=verdict, capacity_bytes=capacity, headroom_bytes=capacity - used)


def with_host(fit: Fit, host: HostEstimate, cluster: Cluster) -> Fit:
    """The verdict of card and host together."""
    capacity = cluster.host_memory_bytes
    if capacity is None:
        return fit
    on_cpu = cluster.accelerator.is_cpu
    verdict: Verdict = "fits" if host.high_bytes <= capacity else "tight"
    if host.low_bytes > capacity:
        verdict = "does_not_fit"
    return replace(
        fit,
        verdict=verdict if on_cpu else min(fit.verdict, verdict, key=WORST_FIRST.index),
        card_verdict=fit.verdict,
        host_verdict=verdict,
        host_capacity_bytes=capacity,
        host_headroom_bytes=capacity - host.peak_bytes,
    )


def beside_steps(
    program: Program, played: Replay, verdict: Verdict, accelerator: Accelerator
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict with evaluation and export, and what to say where one has no room.

    Asked only where their own sum is above the steps' peak, which is rare: a step's forward pass
    keeps as much, and its backward pass adds gradients.
    """
    capacity, room = accelerator.capacity_bytes, played.capacity_bytes
    if verdict not in ("fits", "tight") or capacity is None or room is None:
        return verdict, ()
    above = allocated_beside(program, played)
    above = {n: size for n, size in above.items() if size > played.allocated_peak_bytes}
    if not above:
        return verdict, ()
    high = outside(program.mesh, accelerator).high
    moments = played.moments
    missing = [n for n in above if n not in moments or moments[n][1] + high > capacity]
    said = tuple(
        f"the steps fit, {name} beside them may not: it allocates"
        f" {'at most ' if name in BOUNDS else ''}{format_bytes(above[name])}"
        for name in missing
    )
    return ("tight" if missing else verdict), said


def free_at_rest(program: Program, played: Replay, accelerator: Accelerator) -> int | None:
    """Of the card between steps, where its capacity is known and the steps fit."""
    capacity = accelerator.capacity_bytes
    if capacity is None or accelerator.is_cpu:
        return None
    return capacity - outside(program.mesh, accelerator).mid - played.at_rest_bytes
