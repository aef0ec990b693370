"""How well p10 to p90 hold published times, and the one factor that is fitted to them.

    python -m validation.check_times FILE --fit

derives `rigsize.steptime.intervals.PROGRAM_P90` again from the slices of SPREAD_FITTED, with what
comes of it when each of them is left out.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rigsize.steptime.intervals import PROGRAM_P90, Quantiles, narrowed, widened

__all__ = ["SPREAD_FITTED", "Point", "fit_lines", "fitted_factor", "holds_percent", "spread_words"]

SPREAD_FITTED = (
    "dle-bert-inference",
    "dle-bert-pretrain-v100",
    "foundry-h100",
    "fsdp-qlora-cloud",
    "litgpt-inference",
    "neusight-dist",
    "neusight-inf",
    "qwen1-inference",
    "qwen2-inference-hf",
    "torchtitan-a100-2024",
)
"""None is a proof slice; qwen2.5-inference-hf is left out, its median was fitted."""
_UP = 0.9
_POINTS = (0.1, 0.5, 0.9)


class Point(NamedTuple):
    """A published time and its interval."""

    group: str
    """Its slice."""
    seconds: float
    step_s: Quantiles

    @property
    def held(self) -> bool:
        """Whether it lies between p10 and p90."""
        return self.step_s.p10 <= self.seconds <= self.step_s.p90

    @property
    def pinball(self) -> float:
        """Mean pinball loss at the three points, of the logarithm; times 100, about per cent."""
        off = [math.log(self.seconds / bound) for bound in self.step_s]
        losses = [max(p * x, (p - 1) * x) for p, x in zip(_POINTS, off, strict=True)]
        return 100 * sum(losses) / len(losses)

    @property
    def missing(self) -> float:
        """Logarithm of the factor that would bring its p90, as drawn, up to it; 0 for none."""
        drawn = narrowed(self.step_s)
        off, above = (math.log(t / drawn.p50) for t in (self.seconds, drawn.p90))
        return math.sqrt(off**2 - above**2) if off > above else 0.0


def holds_percent(points: Sequence[Point]) -> float:
    """Share of the rows between p10 and p90."""
    return 100 * sum(point.held for point in points) / len(points)


def _spread(points: Sequence[Point]) -> str:
    width = statistics.median(point.step_s.p90 / point.step_s.p10 for point in points)
    loss = statistics.mean(point.pinball for point in points)
    return f"{holds_percent(points):.0f} % held, p90/p10 {width:.2f}, pinball {loss:.1f} %"


def spread_words(points: Sequence[Point]) -> str:
    """Coverage, median width and pinball loss, with the fitted factor and without."""
    before = [point._replace(step_s=narrowed(point.step_s)) for point in points]
    return f"Intervals: {_spread(points)}; without the fitted factor {_spread(before)}."


def fitted_factor(points: Sequence[Point]) -> float:
    """The 90 % point of what is missing, each slice one vote however many rows it has."""
    rows = Counter(point.group for point in points)
    need, voted = _UP * len(rows), 0.0
    for point in sorted(points, key=lambda point: point.missing):
        voted += 1 / rows[point.group]
        if voted >= need - 1e-9:
            return math.exp(point.missing)
    raise ValueError("no rows of the slices that the factor is fitted on")


def fit_lines(points: Sequence[Point]) -> Iterator[str]:
    """The factor, and how the rows of each slice hold under the factor of the others."""
    points = [point for point in points if point.group in SPREAD_FITTED]
    if not points:
        return
    rows = Counter(point.group for point in points)
    yield (
        f"PROGRAM_P90 of {len(rows)} slices, {len(points)} rows: {fitted_factor(points):.3f}"
        f" (packaged {PROGRAM_P90.value})"
    )
    if len(rows) < 2:
        return
    for name in rows:
        factor = fitted_factor([point for point in points if point.group != name])
        mine = [
            point._replace(step_s=widened(narrowed(point.step_s), factor))
            for point in points
            if point.group == name
        ]
        yield f"- without {name}: {factor:.3f}; its {rows[name]} rows then: {_spread(mine)}"
