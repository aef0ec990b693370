"""The peak of each moment of a run, so that "out of memory at step 40" has a name.

A moment's device peak is that of the run so far: the allocator keeps what earlier moments took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.hardware.accelerators import Band
from rigsize.memory.replay import BESIDE_STEPS, Replay

if TYPE_CHECKING:
    from rigsize.program.build import Program

__all__ = ["BOUNDS", "Peak", "allocated_beside", "peaks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One moment."""

    moment: str
    """loading, first step, later steps, evaluation, export; or a batch, in words."""
    allocated_peak_bytes: int
    device_peak_bytes: int | None
    """With the context; None on cpu."""
    basis: str
    is_bound: bool = False
    """From above: the moment itself takes less."""


def allocated_beside(program: Program, played: Replay) -> dict[str, int]:
    """Bytes at the peak of each moment beside the steps, requested, without a replay.

    What is alive between steps, and the highest sum of what the moment itself allocates.
    """
    found, sizes = {}, program.timeline.sizes
    for name in BESIDE_STEPS:
        alive = highest = 0
        for operation in program.slices.get(name, ()):
            alive += sizes[operation] if operation >= 0 else -sizes[~operation]
            highest = max(highest, alive)
        if highest:
            found[name] = played.at_rest_bytes + highest
    return found


_BASES = {"loading": "traced", "first step": "traced", "later steps": "traced"}
BOUNDS = ("evaluation",)
"""Moments whose peaks are from above (`program.beside_steps`)."""


def peaks_of(played: Replay, beside: Band | None) -> tuple[Peak, ...]:
    """The moments that the replay saw, in order; `beside` is what is outside the allocator."""
    return tuple(
        Peak(
            moment=moment,
            allocated_peak_bytes=allocated,
            device_peak_bytes=None if beside is None else reserved + beside.mid,
            basis=_BASES.get(moment, "derived"),
            is_bound=moment in BOUNDS,
        )
        for moment, (allocated, reserved) in played.moments.items()
    )
