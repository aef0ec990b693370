"""Slices of published runs: many rows of one source, predicted row by row. No torch.

A slice is a file of `validation/published/`: what was measured and how, defaults, the rows that a
Strategy expresses, and the published rows that none does. Where a source leaves out one setting
that all of its rows share (the length of the longest batch), it is solved from one row, which is
marked fitted and proves nothing, and held for all others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError
from rigsize.evidence.cases import Case, parse_case

__all__ = ["LeftOut", "PublishedSlice", "Solved", "at", "load_slice", "solve"]

_COARSE = 16
"""Steps of the first search for a length; the second looks at every one between two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A length that the source leaves out, between what it says of it."""

    row: str
    """The case that it is solved from."""
    low: int
    high: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Published rows that no Strategy expresses."""

    rows: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSlice:
    """The rows of one source."""

    name: str
    source: str
    """Where the figures can be looked up again, with their licence."""
    measures: str
    """Which figure it is, and what the measured program does."""
    hugging_face_code: bool
    """Whether the measured model is transformers' own: errors of others are counted apart."""
    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...]
    solved: Solved | None = None
    reasons: tuple[str, ...] = ()
    """What the prediction is known to leave out, and what misses are put down to."""


def load_slice(file: Path) -> PublishedSlice:
    """The slice of one file; SpecError where it cannot be read."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError("slice", str(file), f"cannot be read ({error})") from None
    try:
        head = dict(document["slice"])
        solved, reasons = head.pop("solved", None), head.pop("reasons", [])
        found = PublishedSlice(
            **head,
            cases=tuple(_case(document.get("defaults", {}), row) for row in document["case"]),
            left_out=tuple(
                LeftOut(rows=tuple(row["rows"]), why=row["why"])
                for row in document.get("left_out", [])
            ),
            solved=Solved(**solved) if solved else None,
            reasons=tuple(reasons),
        )
    except (KeyError, TypeError) as error:
        raise SpecError("slice", str(file), f"not a slice ({error})") from None
    if found.solved and found.solved.row not in [case.id for case in found.cases]:
        raise SpecError("slice", found.solved.row, "no such row to solve a length from")
    return found


def _case(defaults: Mapping[str, Any], row: Mapping[str, Any]) -> Case:
    spec = {**defaults.get("spec", {}), **row.get("spec", {})}
    merged = {**defaults, **row} | ({"spec": spec} if "not_answerable" not in row else {})
    return parse_case(merged)


def at(case: Case, length: int) -> Case:
    """The case with texts of another length."""
    assert case.workload is not None
    return replace(case, workload=replace(case.workload, max_length=length))


def solve(solved: Solved, case: Case, predicted: Callable[[Case], int | None]) -> int:
    """The length at which the prediction for `case` comes nearest to what was measured."""

    def off(length: int) -> float:
        found = predicted(at(case, length))
        return float("inf") if found is None else abs(found - case.measured_bytes)

    coarse = min(_between(solved.low, solved.high, _COARSE), key=off)
    near = _between(max(solved.low, coarse - _COARSE), min(solved.high, coarse + _COARSE), 1)
    return min(near, key=off)


def _between(low: int, high: int, step: int) -> Sequence[int]:
    return [*range(low, high, step), high]
