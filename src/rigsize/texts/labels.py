"""Class labels: names or numbers as files have them, to ids from 0, mistakes told with their rows.

All labels are read once before anything is tokenised: a mistake in the last row is told at once
and not after an hour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rigsize.errors import SpecError

__all__ = ["IGNORED", "LabelCounts", "LabelScheme", "label_scheme"]

IGNORED = -100
"""The id that torch's cross entropy leaves out; files may hold it among tags."""
_MOST_LABELS = 100_000
_ROWS_SHOWN = 5
_INTEGER = re.compile(r"[+-]?\d{1,9}")

_Value = int | str | None
"""A label as read: a number, a name, or None where there is none."""


@dataclass(slots=True)
class _Seen:
    count: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.first_rows) < _ROWS_SHOWN:
            self.first_rows.append(number)


@dataclass(slots=True)
class LabelCounts:
    """Each different label of a file, how often and in which rows first."""

    column: str
    seen: dict[_Value, _Seen] = field(default_factory=dict)

    def add(self, number: int, label: Any) -> None:
        """Counts the label of row `number`, or each tag of a list."""
        for one in label if isinstance(label, list | tuple) else (label,):
            self._of(parsed_label(one)).add(number)

    def _of(self, value: _Value) -> _Seen:
        if value not in self.seen and len(self.seen) == _MOST_LABELS:
            problem = f"more than {_MOST_LABELS:,} different labels in this column"
            raise SpecError("label-column", self.column, problem)
        return self.seen.setdefault(value, _Seen())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScheme:
    """From labels as read to ids."""

    names: tuple[str, ...]
    """By id; the numbers themselves where the file has numbers."""
    ids: dict[_Value, int]

    def id_of(self, label: Any) -> int:
        """The id of a label that `label_scheme` has seen."""
        return self.ids[parsed_label(label)]


def parsed_label(label: Any) -> _Value:
    """A label as a number or a name: "1", 1.0 and True are 1; "", null and NaN are none."""
    if isinstance(label, float):
        whole = math.isfinite(label) and label == int(label)
        return int(label) if whole else None if math.isnan(label) else repr(label)
    if isinstance(label, int):
        return int(label)
    text = "" if label is None else str(label).strip()
    return int(text) if _INTEGER.fullmatch(text) else text or None


def label_scheme(
    counts: LabelCounts, *, names: Sequence[str] | None = None, num_labels: int | None = None
) -> LabelScheme:
    """The ids of all labels that were counted; SpecError with row numbers where one has none.

    Args:
        counts: of the whole file.
        names: by id, where a model or another file decides them.
        num_labels: classes of the model's head, where there is one already.
    """
    _refuse(counts, [v for v in counts.seen if v is None], "missing", ())
    if names is not None:
        return _by_names(counts, tuple(names), num_labels)
    found = [value for value in counts.seen if value is not None and value != IGNORED]
    if all(isinstance(value, int) for value in found):
        return _by_numbers(counts, [int(value) for value in found], num_labels)
    return _by_own_names(counts, num_labels)


def _by_numbers(counts: LabelCounts, found: list[int], num_labels: int | None) -> LabelScheme:
    size = num_labels or max((value + 1 for value in found), default=0)
    bad = [value for value in found if not 0 <= value < size]
    _refuse(counts, bad, "out of range", (f"0 to {size - 1:,}", "names"))
    if size > _MOST_LABELS:
        problem = f"as labels these are {size:,} classes: the numbers must count from 0"
        raise SpecError("label-column", counts.column, problem)
    names = tuple(str(value) for value in range(size))
    return LabelScheme(names=names, ids=_with_ignored({value: value for value in found}))


def _by_own_names(counts: LabelCounts, num_labels: int | None) -> LabelScheme:
    names = sorted(str(value) for value in counts.seen if value != IGNORED)
    if num_labels is not None and len(names) > num_labels:
        rarest = min(counts.seen, key=lambda value: counts.seen[value].count)
        problem = (
            f"{len(names):,} different labels, but num-labels is {num_labels:,}; "
            f"the rarest is {rarest!r} ({_rows(counts.seen[rarest])})"
        )
        raise SpecError("label-column", counts.column, problem)
    by_name = {name: number for number, name in enumerate(names)}
    ids: dict[_Value, int] = {v: by_name[str(v)] for v in counts.seen if v != IGNORED}
    return LabelScheme(names=tuple(names), ids=_with_ignored(ids))


def _by_names(counts: LabelCounts, names: tuple[str, ...], num_labels: int | None) -> LabelScheme:
    by_name = {name: number for number, name in enumerate(names)}
    ids: dict[_Value, int] = {IGNORED: IGNORED}
    for value in counts.seen:
        if str(value) in by_name:
            ids[value] = by_name[str(value)]
        elif isinstance(value, int) and 0 <= value < len(names):
            ids[value] = value
    _refuse(counts, [value for value in counts.seen if value not in ids], "unknown", names)
    size = len(names) if num_labels is None else num_labels
    beyond = [value for value, number in ids.items() if number >= size]
    _refuse(counts, beyond, "beyond the head's classes", names[:size])
    return LabelScheme(names=names, ids=ids)


def _with_ignored(ids: dict[_Value, int]) -> dict[_Value, int]:
    return {**ids, IGNORED: IGNORED}


def _refuse(
    counts: LabelCounts, bad: Iterable[_Value], problem: str, allowed: tuple[str, ...]
) -> None:
    bad = list(bad)
    if not bad:
        return
    shown = "; ".join(_described(counts, bad[:3]))
    rest = f"; and {len(bad) - 3:,} other labels" if len(bad) > 3 else ""
    raise SpecError("label", bad[0], f"{problem} in {shown}{rest}", allowed=allowed)


def _described(counts: LabelCounts, values: Sequence[_Value]) -> Iterator[str]:
    for number, value in enumerate(values):
        rows = _rows(counts.seen[value])
        yield rows if number == 0 else f"{value!r} in {rows}"


def _rows(seen: _Seen) -> str:
    first = ", ".join(f"{number:,}" for number in dict.fromkeys(seen.first_rows))
    rest = seen.count - len(seen.first_rows)
    return f"row {first}" + (f" and {rest:,} more" if rest else "")
