"""The peak of each moment of a run, so that "out of memory at step 40" has a name.

A moment's device peak is that of the run so far: the allocator keeps what earlier moments took.
"""

from __future__ import annotations

from dataclasses import dataclass

from rigsize.hardware.accelerators import Band
from rigsize.memory.replay import Replay

__all__ = ["Peak", "peaks_of"]


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


_BASES = {"loading": "traced", "first step": "traced", "later steps": "traced"}


def peaks_of(played: Replay, beside: Band | None) -> tuple[Peak, ...]:
    """The moments that the replay saw, in order; `beside` is what is outside the allocator."""
    return tuple(
        Peak(
            moment=moment,
            allocated_peak_bytes=allocated,
            device_peak_bytes=None if beside is None else reserved + beside.mid,
            basis=_BASES.get(moment, "derived"),
            is_bound=moment == "evaluation",
        )
        for moment, (allocated, reserved) in played.moments.items()
    )
