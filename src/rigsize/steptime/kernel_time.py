"""What a kernel model answers: seconds, how sure, and on what ground."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rigsize.provenance import Basis

__all__ = ["KernelTime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """The time of one kernel on one device, without the host's cost of launching it."""

    seconds: float
    """The middle estimate."""
    sigma: float
    """Standard deviation of log(measured / seconds): an interval is log-normal."""
    basis: Basis
    """measured: interpolated in this chip's own table. derived: a roofline calibrated on tables
    of this or other chips. assumed: a constant nobody measured on such a chip decides."""
    note: str = ""
    """What was assumed, in words; empty for a plain table answer."""
    misaligned: bool = False
    """Whether `MISALIGNED` has been multiplied in, so that an interval can vary it."""

    def times(self, factor: float) -> KernelTime:
        """The same answer for work that takes `factor` times as long."""
        return replace(self, seconds=self.seconds * factor)
