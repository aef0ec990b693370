"""Sizes as expressions in the batch: fitted to sampled traces, exact or refused.

Symbols: B texts, S tokens a text, T target tokens (sequence-to-sequence only), M rows that the
head reads, N tokens of an unpadded row, C keys that a decoding step attends to, its own with them;
what a run has not is 0. An expression is a sum of integer
multiples of monomials; nearly every storage of a transformer is one monomial. A fit has as few
terms as possible and must hold at every sampled point, so a single term is proved by all points but
one. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

MONOMIALS: dict[str, Callable[[int, int, int, int, int, int], int]] = {
    "1": lambda B, S, T, M, N, C: 1,
    "B": lambda B, S, T, M, N, C: B,
    "S": lambda B, S, T, M, N, C: S,
    "BS": lambda B, S, T, M, N, C: B * S,
    "BSS": lambda B, S, T, M, N, C: B * S * S,
    "SS": lambda B, S, T, M, N, C: S * S,
    "BB": lambda B, S, T, M, N, C: B * B,
    "T": lambda B, S, T, M, N, C: T,
    "BT": lambda B, S, T, M, N, C: B * T,
    "BTT": lambda B, S, T, M, N, C: B * T * T,
    "BST": lambda B, S, T, M, N, C: B * S * T,
    "TT": lambda B, S, T, M, N, C: T * T,
    "ST": lambda B, S, T, M, N, C: S * T,
    # Kernels and masks that pad a length: to 8 elements, to 64 or 128 positions.
    "B.S8": lambda B, S, T, M, N, C: B * _up(S, 8),
    "BS.S8": lambda B, S, T, M, N, C: B * S * _up(S, 8),
    "B.S64": lambda B, S, T, M, N, C: B * _up(S, 64),
    "B.S128": lambda B, S, T, M, N, C: B * _up(S, 128),
    "B.S128.S128": lambda B, S, T, M, N, C: B * _up(S, 128) ** 2,
    # A piece of the chunked loss, which pads the rows to pieces of one length; before the rows as
    # a whole, because a piece's bytes are often whole multiples of them.
    "M/8": lambda B, S, T, M, N, C: 0 if M % CHUNKS else M // CHUNKS,
    "M": lambda B, S, T, M, N, C: M,
    "N": lambda B, S, T, M, N, C: N,
    "C": lambda B, S, T, M, N, C: C,
    "BC": lambda B, S, T, M, N, C: B * C,
    "CC": lambda B, S, T, M, N, C: C * C,
    "BSC": lambda B, S, T, M, N, C: B * S * C,
    "C8": lambda B, S, T, M, N, C: _up(C, 8),
    "B.C8": lambda B, S, T, M, N, C: B * _up(C, 8),
}
CHUNKS = 8
"""Pieces of the chunked loss (`run.heads.CHUNKS`, which imports torch)."""
SYMBOLS = ("B", "S", "T", "M", "N", "C")
MAX_TERMS = 3

Expression = tuple[tuple[int, str], ...]
"""((coefficient, monomial), ...)."""
Point = Mapping[str, int]


class NotFitted(ValueError):
    """No expression over the monomials holds at every sampled point."""


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def monomials_at(point: Point) -> dict[str, int]:
    """The value of every monomial at one point {B, S, T, M, N, C}."""
    B, S, T, M, N, C = (point.get(symbol, 0) for symbol in SYMBOLS)
    return {name: value(B, S, T, M, N, C) for name, value in MONOMIALS.items()}


def evaluate(expression: Expression, values: Mapping[str, int]) -> int:
    """The expression at the point whose monomials are `values`."""
    return sum(coefficient * values[name] for coefficient, name in expression)


def fit(samples: Sequence[int], points: Sequence[Mapping[str, int]]) -> Expression:
    """The expression with the fewest terms that gives `samples[i]` at `points[i]`.

    `points` are already turned into monomial values; of a single one the size is a constant.
    Raises NotFitted.
    """
    if not any(samples):
        return ()
    if len(points) == 1:
        return ((samples[0], "1"),)
    for terms in range(1, min(MAX_TERMS, len(points) - 1) + 1):
        for names in itertools.combinations(_distinct(points), terms):
            found = _solve(samples, points, names)
            if found is not None:
                return found
    raise NotFitted(f"sizes {list(samples)}")


def _distinct(points: Sequence[Mapping[str, int]]) -> list[str]:
    """Monomials that differ at the sampled points, the simplest of equals first."""
    seen: set[tuple[int, ...]] = set()
    names = []
    for name in MONOMIALS:
        column = tuple(point[name] for point in points)
        if any(column) and column not in seen:
            seen.add(column)
            names.append(name)
    return names


def _solve(
    samples: Sequence[int], points: Sequence[Mapping[str, int]], names: tuple[str, ...]
) -> Expression | None:
    """Whole coefficients other than 0 that hold at every point; None if there are none."""
    rows = [[*(p[n] for n in names), s] for p, s in zip(points, samples, strict=True)]
    if not _diagonal(rows, len(names)) or any(row[-1] for row in rows[len(names) :]):
        return None
    expression = []
    for column, name in enumerate(names):
        coefficient, rest = divmod(rows[column][-1], rows[column][column])
        if rest or not coefficient:
            return None
        expression.append((coefficient, name))
    return tuple(expression)


def _diagonal(rows: list[list[int]], size: int) -> bool:
    """Gauss and Jordan in whole numbers; False if the columns depend on one another.

    All rows take part: the first few may be multiples of one another where the columns are not.
    """
    for column in range(size):
        pivot = next((r for r in range(column, len(rows)) if rows[r][column]), None)
        if pivot is None:
            return False
        rows[column], rows[pivot] = rows[pivot], rows[column]
        top = rows[column]
        for r, row in enumerate(rows):
            if r != column and row[column]:
                factor = row[column]
                rows[r] = [x * top[column] - factor * y for x, y in zip(row, top, strict=True)]
    return True
