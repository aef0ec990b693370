"""Dates as sources write them: to the day, the month or the year."""

from __future__ import annotations

from datetime import date

__all__ = ["first_day"]


def first_day(text: str) -> date | None:
    """The earliest day that `2026`, `2026-06` or `2026-06-18` names; None of nothing.

    Raises ValueError for a day that there is not.
    """
    if not text:
        return None
    year, month, day = (*text.split("-"), "1", "1")[:3]
    return date(int(year), int(month), int(day))
