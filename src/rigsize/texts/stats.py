"""How long texts are: a histogram, and what follows from it about limits and padding.

Only the standard library: an estimate that reads a stored histogram imports nothing for it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError

__all__ = ["COVERED", "PERCENTILES", "LengthHistogram", "PaddingShares", "read_histogram"]

PERCENTILES = ("50", "90", "95", "99", "99.9")
COVERED = "0.9999"
"""The share of texts that the article's limit of 128 tokens is said to fit."""
_LARGEST_FILE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddingShares:
    """The share of a batch's positions that hold no token, by how batches are made."""

    fixed: float
    """Every text padded to the limit."""
    dynamic: float
    """Batches of random texts, each padded to its longest: the expectation."""
    dynamic_sorted: float
    """Batches of texts of like length, each padded to its longest."""
    unpadded: float = 0.0
    """Texts one behind the other."""


@dataclass(frozen=True)
class LengthHistogram:
    """How many texts have which length, in tokens, special ones included, before any cut."""

    pairs: tuple[tuple[int, int], ...]
    """(length, texts), lengths rising, no count of 0."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise SpecError("histogram", "", "no lengths in it")
        before = 0
        for length, count in self.pairs:
            if not before < length or count < 1:
                hint = "pairs of a length from 1 on and a count from 1 on, lengths rising"
                raise SpecError("histogram", f"[{length}, {count}]", "not accepted", hint=hint)
            before = length

    @classmethod
    def of(cls, lengths: Iterable[int]) -> LengthHistogram:
        """The histogram of some lengths."""
        return cls(tuple(sorted(Counter(int(length) for length in lengths).items())))

    @cached_property
    def texts(self) -> int:
        """How many."""
        return sum(count for _, count in self.pairs)

    @cached_property
    def tokens(self) -> int:
        """In all of them."""
        return sum(length * count for length, count in self.pairs)

    @property
    def mean(self) -> float:
        """Tokens a text."""
        return self.tokens / self.texts

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.pairs[-1][0]

    def percentile(self, percent: str) -> int:
        """The shortest length that at least so many percent of the texts do not exceed."""
        return self.covering(str(Fraction(percent) / 100))

    def covering(self, share: str = COVERED) -> int:
        """The shortest limit that leaves at least this share of the texts whole.

        Args:
            share: as text, "0.9999": as a float it would be another number.
        """
        needed = math.ceil(Fraction(share) * self.texts)
        reached = accumulate(count for _, count in self.pairs)
        return next(
            length
            for (length, _), total in zip(self.pairs, reached, strict=True)
            if total >= needed
        )

    def share_cut(self, limit: int) -> float:
        """The share of texts longer than a limit."""
        return sum(count for length, count in self.pairs if length > limit) / self.texts

    def cut_to(self, limit: int) -> LengthHistogram:
        """As it is when longer texts are cut."""
        counts: Counter[int] = Counter()
        for length, count in self.pairs:
            counts[min(length, limit)] += count
        return LengthHistogram(tuple(sorted(counts.items())))

    def padding(self, limit: int, batch_size: int) -> PaddingShares:
        """How much of a batch would be padding, texts cut to the limit."""
        cut = self.cut_to(limit)
        size = min(batch_size, cut.texts)
        padded = sum(longest * members for longest, members in cut._sorted_batches(size))
        return PaddingShares(
            fixed=1 - cut.mean / limit,
            dynamic=max(0.0, 1 - cut.mean / cut.expected_longest(size)),
            dynamic_sorted=1 - cut.tokens / padded,
        )

    def expected_longest(self, size: int) -> float:
        """Of `size` different texts drawn at random.

        All are among the c texts of at most some length in C(c, size) of C(n, size) draws.
        """
        longest = before = 0.0
        reached = 0
        for length, count in self.pairs:
            reached += count
            share = _share_of_draws(reached, self.texts, size)
            longest += length * (share - before)
            before = share
        return longest

    def longest_together(self, size: int) -> int:
        """Tokens of the `size` longest texts, each as often as it takes where there are fewer."""
        left, total = size, 0
        for length, count in reversed(self.pairs):
            taken = min(left, count)
            total, left = total + length * taken, left - taken
        return total + left * self.longest

    def _sorted_batches(self, size: int) -> Iterator[tuple[int, int]]:
        """(longest, texts) of batches filled from the longest text down; the last may be short."""
        room = longest = 0
        for length, count in reversed(self.pairs):
            taken = min(room, count)
            if taken:
                yield longest, taken
            room, count = room - taken, count - taken
            if count:
                yield length, count
                longest, room = length, -count % size

    def to_json(self) -> list[list[int]]:
        """`[[length, texts], ...]`."""
        return [list(pair) for pair in self.pairs]


def _share_of_draws(reached: int, texts: int, size: int) -> float:
    if reached < size:
        return 0.0
    if reached == texts:
        return 1.0
    return math.exp(_log_choose(reached, size) - _log_choose(texts, size))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def read_histogram(path: str | Path) -> LengthHistogram:
    """The histogram in a file of `rigsize data stats --out`, or of bare pairs; SpecError else."""
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise SpecError("histogram", str(path), "too large for a histogram")
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SpecError("histogram", str(path), f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise SpecError("histogram", str(path), "not a JSON document") from None
    pairs = document.get("histogram") if isinstance(document, Mapping) else document
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        hint = "[[length, texts], ...], alone or under the key histogram"
        raise SpecError("histogram", str(path), "no histogram in this file", hint=hint)
    return LengthHistogram(tuple((pair[0], pair[1]) for pair in pairs))


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )
