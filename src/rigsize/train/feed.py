"""Windows of micro-batches for one rank, the next one made while this one runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from rigsize.texts.tokenised import TokenisedTexts
from rigsize.train.collate import Collator, MicroBatch, Sizes
from rigsize.train.order import Order, Window
from rigsize.train.parallel import World

__all__ = ["Feed", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one optimizer step runs on, on this rank."""

    epoch: int
    window: int
    """Of the epoch, from 0."""
    micro_batches: tuple[MicroBatch, ...]
    texts: int
    """On all ranks."""

    @property
    def labelled(self) -> int:
        """What this rank's losses are means over."""
        return sum(batch.sizes.labelled for batch in self.micro_batches)

    @property
    def largest(self) -> Sizes:
        """Of the micro-batch with the most positions to compute."""
        return max((b.sizes for b in self.micro_batches), key=lambda s: s.computed_tokens)

    def shares(self, labelled_everywhere: float, ranks: int) -> list[float]:
        """Each micro-batch's part of the window's mean loss.

        DDP and FSDP2 divide gradients by the number of ranks, which is taken back here.
        """
        return [batch.sizes.labelled * ranks / labelled_everywhere for batch in self.micro_batches]


class Feed:
    """The steps of a run, from any point on."""

    def __init__(self, texts: TokenisedTexts, order: Order, collator: Collator, world: World):
        self._texts, self._order, self._collator = texts, order, collator
        self._rank = world.rank

    def steps(self, epoch: int, window: int) -> Iterator[Step]:
        """From this window of this epoch on, epoch after epoch, without end."""
        with ThreadPoolExecutor(1, "rigsize-feed") as worker:
            waiting: Future[Step] | None = None
            for number, index, planned in self._windows(epoch, window):
                made = worker.submit(self._step, number, index, planned)
                if waiting is not None:
                    yield waiting.result()
                waiting = made

    def _windows(self, epoch: int, window: int) -> Iterator[tuple[int, int, Window]]:
        while True:
            for index, planned in enumerate(self._order.epoch(epoch, window), start=window):
                yield epoch, index, planned
            epoch, window = epoch + 1, 0

    def _step(self, epoch: int, index: int, planned: Window) -> Step:
        batches = tuple(
            self._collator(part, [self._texts.example(int(i)) for i in part], epoch)
            for part in planned.of_rank(self._rank)
        )
        return Step(epoch=epoch, window=index, micro_batches=batches, texts=planned.texts)
