"""The part of a Record that `rigsize calibrate` writes: every sample it took. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from rigsize.errors import SpecError

__all__ = ["SAMPLE_KINDS", "Calibrated", "Sample"]

SAMPLE_KINDS = (
    "dispatch",
    "launch",
    "gemm",
    "misaligned",
    "aligned",
    "memory",
    "attention",
    "copy",
    "collective",
    "cpu_adam",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One thing, timed several times."""

    kind: str
    """One of SAMPLE_KINDS."""
    key: str
    """gemm, misaligned, aligned: dtype. memory: `steptime.MemoryClass`. attention: dtype. copy:
    to_device or to_host. collective: its name. cpu_adam: loop or fused. dispatch, launch: phase."""
    detail: str = ""
    """gemm, misaligned, aligned: layout. attention: forward or backward, and causal."""
    sizes: tuple[int, ...]
    """gemm and its like: (m, n, k). memory: (bytes read and written,). attention: (B, S, heads,
    head size). copy: (bytes,). collective: (bytes, ranks). cpu_adam: (parameters,). dispatch:
    (operators,). launch: (operators, kernels)."""
    times_s: tuple[float, ...]
    """Seconds of one call in each repetition, the warm-up left out."""

    def __post_init__(self) -> None:
        if self.kind not in SAMPLE_KINDS:
            raise SpecError("sample", self.kind, "unknown kind", allowed=SAMPLE_KINDS)
        if not self.times_s or min(self.times_s) <= 0:
            raise SpecError("times_s", self.times_s, "no positive times")

    @property
    def median_s(self) -> float:
        """Seconds."""
        return statistics.median(self.times_s)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 of fewer than two repetitions."""
        if len(self.times_s) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times_s, n=4, method="inclusive")
        return (high - low) / self.median_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What was measured of a machine, and what was not."""

    accelerator: str
    """The id of the device's row, or its own name where the table has none."""
    quick: bool
    samples: tuple[Sample, ...]
    wall_s: float
    """Seconds that all of it took."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """Why, by what."""
