"""Which texts make which micro-batch: a pure function of seed, epoch and lengths.

Every rank computes the same order, so nothing is exchanged, and a resumed run goes on where the
killed one was. A window is what one optimizer step sees; on any number of ranks it holds the same
texts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rigsize.errors import SpecError

__all__ = ["Order", "Window"]

Indices = npt.NDArray[np.int64]
MEGABATCH = 50
"""Windows that are sorted together by length; transformers' `group_by_length` takes as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The texts of one optimizer step."""

    micro_batches: tuple[tuple[Indices, ...], ...]
    """[micro-step][rank]: indices of texts; none is empty."""

    def of_rank(self, rank: int) -> tuple[Indices, ...]:
        """The micro-batches of one rank."""
        return tuple(ranks[rank] for ranks in self.micro_batches)

    @property
    def texts(self) -> int:
        """On all ranks."""
        return sum(len(part) for ranks in self.micro_batches for part in ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How the texts of a training set are dealt out."""

    lengths: npt.NDArray[Any]
    """Tokens of the texts that take part."""
    indices: Indices
    """Their numbers in the data set."""
    global_batch: int
    """Texts an optimizer step."""
    micro_batch: int
    """Texts a rank at a time."""
    ranks: int = 1
    seed: int = 0
    tokens_per_batch: int | None = None
    """Budget of a micro-batch; then as many micro-steps are made as it takes."""
    group_by_length: bool = False

    def __post_init__(self) -> None:
        if len(self.indices) < self.ranks:
            raise SpecError("data", len(self.indices), f"fewer texts than ranks ({self.ranks})")
        if self.global_batch % self.ranks:
            raise SpecError(
                "global-batch",
                self.global_batch,
                f"cannot be dealt out evenly to {self.ranks:,} ranks",
                allowed=(f"a multiple of {self.ranks:,}",),
            )
        budget = self.tokens_per_batch
        if budget is not None and int(self.lengths.max()) > budget:
            raise SpecError(
                "tokens-per-batch",
                budget,
                f"the longest text has {int(self.lengths.max()):,} tokens",
                hint="a larger budget, or a smaller --max-length",
            )

    @property
    def windows(self) -> int:
        """Optimizer steps an epoch.

        The last may be smaller; what is left of it over whole rounds of the ranks is left out.
        """
        whole, rest = divmod(len(self.indices), self.global_batch)
        return whole + (rest >= self.ranks)

    def epoch(self, number: int, start: int = 0) -> Iterator[Window]:
        """The windows of an epoch from `start` on."""
        order = self._shuffled(number)
        for window in range(start, self.windows):
            yield self._window(order[window * self.global_batch : (window + 1) * self.global_batch])

    def _shuffled(self, epoch: int) -> Indices:
        """Places in `indices`, shuffled; with groups, windows of like lengths in random order."""
        generator = np.random.default_rng((self.seed, epoch))
        places = generator.permutation(len(self.indices))
        if not self.group_by_length:
            return places
        size = self.global_batch
        grouped = []
        for start in range(0, len(places), MEGABATCH * size):
            piece = places[start : start + MEGABATCH * size]
            grouped.append(piece[np.argsort(-self.lengths[piece], kind="stable")])
        sorted_places = np.concatenate(grouped)
        whole = len(places) // size
        windows = [sorted_places[i * size : (i + 1) * size] for i in generator.permutation(whole)]
        return np.concatenate([*windows, sorted_places[whole * size :]])

    def _window(self, places: Indices) -> Window:
        places = places[: len(places) - len(places) % self.ranks]
        dealt = self._by_tokens(places) if self.tokens_per_batch else self._by_count(places)
        ranks = self.ranks
        assert len(dealt) % ranks == 0, "every rank has a micro-batch at every micro-step"
        steps = [dealt[i : i + ranks] for i in range(0, len(dealt), ranks)]
        # The largest comes last, when gradients are there: the step that a prediction answers for.
        steps.sort(key=lambda step: max(int(self.lengths[part].sum()) for part in step))
        return Window(
            micro_batches=tuple(
                tuple(self.indices[np.sort(part)] for part in step) for step in steps
            )
        )

    def _by_count(self, places: Indices) -> list[Indices]:
        """Longest together, so that a micro-batch pads little; the window stays what it is."""
        if self.group_by_length:
            places = places[np.argsort(-self.lengths[places], kind="stable")]
        parts = -(-len(places) // (self.micro_batch * self.ranks)) * self.ranks
        return list(np.array_split(places, parts))

    def _by_tokens(self, places: Indices) -> list[Indices]:
        """As few micro-steps as the budget allows, every rank equally loaded.

        Longest first into the emptiest bin (Graham 1969, LPT).
        """
        budget = self.tokens_per_batch or 0  # at most as many bins as texts: none is longer
        lengths = self.lengths[places]
        micro_steps = max(1, -(-int(lengths.sum()) // (budget * self.ranks)))
        while True:
            bins = _balanced(lengths, micro_steps * self.ranks)
            if all(lengths[one].sum() <= budget for one in bins):
                return [places[one] for one in bins]
            micro_steps += 1


def _balanced(lengths: npt.NDArray[Any], count: int) -> list[Indices]:
    """The numbers of the lengths in `count` bins of about equal sums."""
    heap = [(0, number) for number in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for place in np.argsort(-lengths, kind="stable"):
        total, number = heapq.heappop(heap)
        bins[number].append(int(place))
        heapq.heappush(heap, (total + int(lengths[place]), number))
    return [np.array(one, dtype=np.int64) for one in bins if one]
