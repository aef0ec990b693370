"""Sums and multiples of intervals, bound by bound: as if all were late together.

That is the cautious way to add them; independent parts would give a narrower sum.
"""

from __future__ import annotations

from collections.abc import Iterable

from rigsize.steptime.step import Quantiles

__all__ = ["per_second", "scaled", "total_of"]


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
