"""A claim of the article, what we find, and how to find it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

HOLDS, ROUGHLY, NOT, DEPENDS, OPEN = "holds", "roughly", "does not hold", "depends", "not answered"
VERDICTS = (HOLDS, ROUGHLY, DEPENDS, NOT, OPEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What we find."""

    ours: str
    """Our figure."""
    command: str
    """What prints it."""
    verdict: str
    """One of VERDICTS."""

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS, self.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of the page."""

    says: str
    """The article's claim, in our words."""
    find: Callable[[], Finding]


CLAIMS: list[Claim] = []


def claim(find: Callable[[], Finding]) -> Callable[[], Finding]:
    """Registers a claim in the order of the article; the function's docstring is what it says."""
    says = " ".join(inspect.getdoc(find).split()).rstrip(".")  # type: ignore[union-attr]
    CLAIMS.append(Claim(says=says, find=find))
    return find


def within(value: float, target: float, share: float) -> str:
    """Holds within `share` of the target, roughly within three times it, else it does not."""
    off = abs(value - target) / target
    return HOLDS if off <= share else ROUGHLY if off <= 3 * share else NOT
