"""A regular grid of measurements, interpolated between and filled where a point is missing.

The value at a point is a local linear fit over the surrounding grid points in log2 coordinates,
weighted exp(-q/2) / q**1.5 with q the squared scaled distance. The weight is infinite at a grid
point, so a measured point answers with its own measurement, and the answer has no jump there.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

__all__ = ["Grid"]

# Ridge on the slopes, in units of the weights' sum: keeps a fit on few points from tilting.
RIDGE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Values over the product of sorted axes, in C order."""

    axes: tuple[tuple[int, ...], ...]
    """The sizes along each axis, ascending."""
    values: tuple[int | None, ...]
    """log(measured / model) in units of 1e-4; None where nobody measured."""
    metric: tuple[tuple[float, ...], ...]
    """Rows that turn offsets in factors of two into the scaled directions in which distance is
    taken and slopes are fitted; at distance 1 a weight has fallen by e**-.5."""
    reach: int = 1
    """Grid points taken to each side of the answer."""

    def at(self, point: Sequence[float]) -> float:
        """The logarithm at `point`; beyond the grid, that of its nearest face."""
        where = [min(max(x, axis[0]), axis[-1]) for x, axis in zip(point, self.axes, strict=True)]
        for step in range(self.reach, self.reach + 3):
            near = list(self._around(where, step))
            exact = next((value for offsets, value in near if not any(offsets)), None)
            if exact is not None:
                return exact
            if len(near) > 2 * len(where):
                return _local_linear([(self._scaled(offsets), value) for offsets, value in near])
        raise ValueError(f"no measurement near {where}")

    def _around(
        self, where: Sequence[float], step: int
    ) -> Iterator[tuple[tuple[float, ...], float]]:
        """Offsets in log2 and values of the known points around `where`."""
        offsets, shifts, stride = [], [], 1
        for x, axis in zip(reversed(where), reversed(self.axes), strict=True):
            low = max(bisect_right(axis, x) - 1 - step, 0)
            high = min(bisect_left(axis, x) + step, len(axis) - 1)
            indices = range(low, high + 1)
            offsets.append([math.log2(axis[i] / x) for i in indices])
            shifts.append([i * stride for i in indices])
            stride *= len(axis)
        for ds, at in zip(product(*reversed(offsets)), product(*reversed(shifts)), strict=True):
            value = self.values[sum(at)]
            if value is not None:
                yield ds, value * 1e-4

    def _scaled(self, offsets: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            sum(a * d for a, d in zip(row, offsets, strict=True) if a) for row in self.metric
        )


def _local_linear(near: list[tuple[tuple[float, ...], float]]) -> float:
    """The intercept of the weighted linear fit."""
    weights = []
    for offsets, _ in near:
        q = sum(d * d for d in offsets)
        weights.append(math.exp(-0.5 * min(q, 400.0)) / max(q, 1e-12) ** 1.5)
    total = sum(weights)
    size = len(near[0][0]) + 1
    matrix = [[0.0] * (size + 1) for _ in range(size)]
    for (offsets, value), weight in zip(near, weights, strict=True):
        row = (1.0, *offsets, value)
        for i in range(size):
            share = weight / total * row[i]
            line = matrix[i]
            for j in range(size + 1):
                line[j] += share * row[j]
    for i in range(1, size):
        matrix[i][i] += RIDGE
    return _solve_first(matrix)


def _solve_first(matrix: list[list[float]]) -> float:
    """The first unknown of a symmetric positive system, eliminating from the last."""
    for i in range(len(matrix) - 1, 0, -1):
        for row in range(i):
            factor = matrix[row][i] / matrix[i][i]
            for column in range(len(matrix[0])):
                matrix[row][column] -= factor * matrix[i][column]
    return matrix[0][-1] / matrix[0][0]
