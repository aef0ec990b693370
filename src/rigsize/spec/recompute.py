"""Which activations a backward pass computes again, by name. No torch here.

none        all are saved
block       each block keeps its input alone
selective   each block keeps its matrix products and attention, the rest is computed again
every-N     the first block of every N keeps its input alone, the others all (`every-2`, ...)
"""

from __future__ import annotations

import re

from rigsize.errors import SpecError, nearest

__all__ = ["RECOMPUTES", "check_recompute", "recompute_period"]

RECOMPUTES = ("none", "block", "selective", "every-N")
_EVERY = re.compile(r"every-([1-9][0-9]{0,5})")


def recompute_period(word: str) -> int:
    """N of `every-N`, 1 where every block is recomputed in some way, 0 where none is."""
    found = _EVERY.fullmatch(word)
    return int(found[1]) if found else int(word != "none")


def check_recompute(word: str) -> None:
    """Refuses what is none of RECOMPUTES with a number for N, 2 or more."""
    if word in RECOMPUTES[:-1]:
        return
    if _EVERY.fullmatch(word) is None or recompute_period(word) == 1:
        near = "block" if word == "every-1" else "every-2" if word.startswith("every") else ""
        raise SpecError(
            "recompute",
            word,
            "unknown value",
            allowed=(*RECOMPUTES[:-1], "every-2, every-3 and so on"),
            nearest=near or nearest(word, RECOMPUTES[:-1]),
        )
