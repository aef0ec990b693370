"""A figure together with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

__all__ = ["BASES", "Basis", "Sourced"]

Basis = Literal["traced", "measured", "datasheet", "published", "derived", "fitted", "assumed"]
"""`fitted`: tuned on published or measured runs, which prove nothing of what it predicts."""
BASES: tuple[str, ...] = get_args(Basis)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced(Generic[T]):
    """A value that says who claims it; one without a source is refused."""

    value: T
    source: str
    """Where it can be looked up again."""
    as_of: str
    """The date, YYYY-MM-DD, on which the source was read or the value chosen."""
    basis: Basis
    """How the value came about."""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError(f"a value without a source: {self.value!r}")
        if not self.as_of.strip():
            raise ValueError(f"a value without a date: {self.value!r} ({self.source})")
        if self.basis not in BASES:
            raise ValueError(f"basis {self.basis!r} is none of {', '.join(BASES)}")
