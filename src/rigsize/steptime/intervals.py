"""Three points of a distribution: sums and multiples of them, and what no kernel's table tells.

Sums are taken bound by bound, as if all were late together: the cautious way; independent parts
would give a narrower sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rigsize.provenance import Sourced

__all__ = ["PROGRAM_P90", "Quantiles", "narrowed", "per_second", "scaled", "total_of", "widened"]

PROGRAM_P90 = Sourced(
    value=1.48,
    source="what a program loses to the tables, whose kernels are current and timed alone: older"
    " kernels, a framework's overheads, waits of its ranks. One factor on a whole step, its 90 %"
    " point; split-conformal over ten slices of published runs, a slice's rows sharing one vote"
    " (validation/times_spread.py --fit names them; they prove nothing of intervals)",
    as_of="2026-11-28",
    basis="fitted",
)
"""One-sided: published steps are slower than kernels alone far more often than faster."""


class Quantiles(NamedTuple):
    """Three points of a distribution, in one unit."""

    p10: float
    p50: float
    p90: float


def widened(value: Quantiles, factor_p90: float = PROGRAM_P90.value) -> Quantiles:
    """With an independent factor of median one whose 90 % point is `factor_p90`, upwards only.

    Logarithms of independent factors add in squares at a given point of normal distributions.
    """
    if not value.p50:
        return value
    above = math.hypot(math.log(value.p90 / value.p50), math.log(factor_p90))
    return value._replace(p90=value.p50 * math.exp(above))


def narrowed(value: Quantiles, factor_p90: float = PROGRAM_P90.value) -> Quantiles:
    """What was there before `widened`."""
    whole, part = math.log(value.p90 / value.p50), math.log(factor_p90)
    return value._replace(p90=value.p50 * math.exp(math.sqrt(max(0.0, whole**2 - part**2))))


def total_of(parts: Iterable[Quantiles]) -> Quantiles:
    """The sum at each bound."""
    found = tuple(parts)
    return Quantiles(*(sum(one[bound] for one in found) for bound in range(3)))


def scaled(value: Quantiles, factor: float) -> Quantiles:
    """Each bound times a factor that is not negative."""
    return Quantiles(*(bound * factor for bound in value))


def per_second(amount: float, seconds: Quantiles) -> Quantiles:
    """An amount over a time: the long time gives the low rate."""
    return Quantiles(amount / seconds.p90, amount / seconds.p50, amount / seconds.p10)
