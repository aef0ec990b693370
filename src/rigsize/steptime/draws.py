"""How far a step may lie from its middle estimate: named causes, drawn together.

Every cause is one factor on all that hangs on it, with median one. A GPU's clock and power, a
constant nobody measured, the host: these are wrong for the whole step at once. Only kernels
interpolated in a table of their own average down, in `prices.Spread`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from rigsize.steptime.constants import MISALIGNED, Span

__all__ = ["COLLECTIVES", "COPIES_RATE", "DEVICE", "HOST_RATE", "HOST_STEP_RATE", "Cause", "draws"]

DEVICE = "this GPU against others of its model"
COLLECTIVES = "collectives"
COPIES_RATE = "PCIe"
HOST_RATE = "the host's speed"
HOST_STEP_RATE = "the host's optimizer"
# A span's ends are taken for the 5 % and 95 % points.
_Z_ENDS = 1.645
_SEED = "rigsize"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A factor with median one: log-normal, or between the ends of a span."""

    name: str
    sigma: float = 0.0
    span: Span | None = None

    def at(self, z: float) -> float:
        """The factor `z` standard deviations off."""
        if self.span is None:
            return math.exp(self.sigma * z)
        low, mid, high = self.span
        end = high if z > 0 else low
        return float((end / mid) ** (abs(z) / _Z_ENDS))


def misaligned_cause(name: str, sigma: float) -> Cause:
    """Products with misaligned rows: the penalty's span, widened by what the product has anyway."""
    low, mid, high = MISALIGNED.value
    wide = math.exp(_Z_ENDS * sigma)
    return Cause(name=name, span=Span(low / wide, mid, high * wide))


@lru_cache(maxsize=64)
def _normals(name: str, count: int) -> tuple[float, ...]:
    """The same numbers for the same cause in every answer, so that answers can be compared."""
    source = random.Random(f"{_SEED} {name}")
    return tuple(source.gauss(0.0, 1.0) for _ in range(count))


def draws(causes: tuple[Cause, ...], count: int) -> Iterator[Mapping[str, float]]:
    """`count` sets of factors, deterministic."""
    columns = [(cause, _normals(cause.name, count)) for cause in causes]
    for index in range(count):
        yield {cause.name: cause.at(column[index]) for cause, column in columns}
