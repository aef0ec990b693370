"""The few checks all records share."""

from __future__ import annotations

from collections.abc import Iterable

from rigsize.errors import SpecError, nearest


def one_of(field: str, value: str, allowed: Iterable[str], hint: str = "") -> None:
    """Refuses a word that is not in the list, with the nearest that is."""
    names = tuple(allowed)
    if value not in names:
        raise SpecError(
            field,
            value,
            "unknown value",
            allowed=names,
            nearest=nearest(value, names),
            hint=hint,
        )


def integer(field: str, value: object, low: int, high: int, hint: str = "") -> None:
    """Refuses what is not a whole number between the bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(
            field,
            value,
            "not a number in range",
            allowed=(f"a whole number from {low:,} to {high:,}",),
            hint=hint,
        )


def fraction(field: str, value: object) -> None:
    """Refuses what is not a number above 0 and up to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise SpecError(field, value, "not a share", allowed=("above 0, up to 1",))


def share(field: str, value: object) -> None:
    """Refuses what is not a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise SpecError(field, value, "not a share", allowed=("0, up to below 1",))
