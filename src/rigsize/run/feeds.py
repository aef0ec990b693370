"""What the steps of a measurement are fed with: one full batch, or the windows of texts.

A window is the micro-batches of one optimizer step. Of all windows of an epoch the one that has
the micro-batch with the most positions to compute comes second: the first step makes the
optimizer's states, so the second is the first that can reach the peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rigsize.point import pads
from rigsize.run.batch import batch_sizes, random_batch
from rigsize.run.heads import IGNORED
from rigsize.run.job import Job, build_options
from rigsize.run.record import Texts
from rigsize.run.synthetic import SyntheticTexts
from rigsize.spec import Workload
from rigsize.texts.tokenised import Example, TokenisedTexts, prepare
from rigsize.train.collate import Collator, MicroBatch, Sizes, Vocabulary
from rigsize.train.model import reads_last
from rigsize.train.order import Order, Window
from rigsize.train.parallel import World

__all__ = ["Feed", "make_feed"]

MOST_WINDOWS = 32
"""Different windows that are kept; a longer run goes round."""
_SCANNED_WINDOWS = 200_000
_LEAST_TOKENS = {"causal-lm": 2, "masked-lm": 2}
"""A shorter text has nothing that could be predicted."""


class _Source(Protocol):
    @property
    def lengths(self) -> npt.NDArray[Any]: ...

    def example(self, index: int) -> Example: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The micro-batches of a run, on the host."""

    windows: tuple[tuple[MicroBatch, ...], ...]
    """One a step, cycled."""
    resident: bool
    """One micro-batch for all steps, on the device from the start."""
    texts: Texts
    examples: int | None
    """Texts an epoch, where the data or the user said so."""

    def step(self, number: int) -> tuple[MicroBatch, ...]:
        """The micro-batches of step `number`, from 0."""
        return self.windows[number % len(self.windows)]

    @property
    def largest(self) -> Sizes:
        """Of the micro-batch with the most positions to compute; of equals, with the most rows."""
        every = (batch.sizes for window in self.windows for batch in window)
        return max(every, key=lambda sizes: (sizes.computed_tokens, sizes.M))


def make_feed(job: Job, config: Any, world: World) -> Feed:
    """Full-length random texts, synthetic ones of a histogram, or real ones.

    Raises SpecError for data that cannot be used.
    """
    options = job.options
    if options.data is None and options.histogram is None:
        return _full_length(job, config)
    vocabulary = _vocabulary(config)
    source: _Source
    least = _LEAST_TOKENS.get(job.workload.task, 1)
    if options.histogram is not None:
        source = SyntheticTexts(options.histogram, job.workload, config, seed=job.seed, least=least)
        kind, name = "histogram", options.histogram_source
    else:
        texts = _prepared(job)
        source, vocabulary = texts, _vocabulary(config, texts)
        kind, name = "data", options.data.path if options.data else ""
    order = _order(job, source, least, world)
    collator = Collator(
        job.workload,
        job.strategy,
        build_options(job),
        config,
        vocabulary,
        seed=job.seed,
        reads_last=reads_last(job.source),
    )
    return _windows(job, source, order, collator, world, kind, name)


def _full_length(job: Job, config: Any) -> Feed:
    workload = job.workload
    sizes = batch_sizes(workload, job.strategy)
    inputs = random_batch(
        config, build_options(job), sizes, padded=pads(workload, job.strategy), seed=job.seed
    )
    made = MicroBatch(inputs, _sizes_of(inputs, sizes))
    return Feed(
        windows=((made,) * job.strategy.accumulation,),
        resident=True,
        texts=Texts(
            kind="full-length",
            mean_length=made.sizes.real_tokens / sizes["B"],
            micro_batches=1,
            padded=made.sizes.padded,
            worst=_described(made.sizes),
        ),
        examples=workload.examples,
    )


def _sizes_of(inputs: dict[str, Any], sizes: dict[str, int]) -> Sizes:
    """Those that were asked for, and what of them is real."""
    mask, labels = inputs.get("attention_mask"), inputs.get("labels")
    B, T = sizes["B"], sizes.get("T", 0)
    computed = inputs["input_ids"].numel()
    real = computed if mask is None else int(mask.sum())
    return Sizes(
        B=B,
        S=sizes["S"],
        T=T,
        M=len(inputs["positions"]) if "positions" in inputs else 0,
        N=sizes.get("N", 0),
        real_tokens=real + B * T,
        texts=B,
        labelled=1 if labels is None else int((labels != IGNORED).sum()),
        padded=mask is not None,
    )


def _prepared(job: Job) -> TokenisedTexts:
    source, workload, data = job.source, job.workload, job.options.data
    assert data is not None
    return prepare(
        data,
        job.options.tokenizer or source.path or source.name,
        task=workload.task,
        max_length=workload.max_length,
        max_target_length=workload.max_target_length,
        num_labels=workload.num_labels if workload.task.endswith("classification") else None,
    )


def _vocabulary(config: Any, texts: TokenisedTexts | None = None) -> Vocabulary:
    """Ids as the tokenizer has them; of synthetic texts, as the config has them."""
    text = config.get_text_config()
    size, pad = int(text.vocab_size), text.pad_token_id
    special = {} if texts is None else texts.special_ids
    return Vocabulary(
        size=size,
        pad_id=special.get("pad", 0) if pad is None else int(pad),
        mask_id=special.get("mask", size - 1),
        special_ids=frozenset(special.values()),
    )


def _order(job: Job, source: _Source, least: int, world: World) -> Order:
    strategy = job.strategy
    ranks = 1 if world.fake else world.size
    usable = np.flatnonzero(source.lengths >= least)
    return Order(
        lengths=source.lengths[usable],
        indices=usable,
        global_batch=strategy.micro_batch * strategy.accumulation * ranks,
        micro_batch=strategy.micro_batch,
        ranks=ranks,
        seed=job.seed,
        tokens_per_batch=strategy.tokens_per_batch,
    )


def _windows(
    job: Job,
    source: _Source,
    order: Order,
    collator: Collator,
    world: World,
    kind: str,
    name: str,
) -> Feed:
    wanted = min(MOST_WINDOWS, job.steps, order.windows)
    planned = list(islice(order.epoch(0), wanted))
    worst, number = _worst(order, source.lengths, job.workload)
    if number >= len(planned):
        planned[min(1, len(planned) - 1)] = worst
    elif len(planned) > 1:
        planned.insert(1, planned.pop(number))

    def made(part: npt.NDArray[np.int64]) -> MicroBatch:
        batch = collator(part, [source.example(int(i)) for i in part], 0)
        return batch if job.workload.training else _without_labels(batch, collator.vocabulary)

    rank = 0 if world.fake else world.rank
    windows = tuple(tuple(made(part) for part in window.of_rank(rank)) for window in planned)
    feed = Feed(
        windows=windows,
        resident=False,
        texts=Texts(
            kind=kind,
            source=name,
            texts=len(order.indices),
            mean_length=float(order.lengths.mean()),
            micro_batches=sum(map(len, windows)),
            micro_steps=max(map(len, windows)),
        ),
        examples=job.workload.examples or len(order.indices),
    )
    return _naming_the_worst(feed, number)


def _naming_the_worst(feed: Feed, number: int) -> Feed:
    largest = feed.largest
    named = f"window {number + 1} of the epoch: {_described(largest)}"
    return replace(feed, texts=replace(feed.texts, worst=named, padded=largest.padded))


def _described(sizes: Sizes) -> str:
    padded = f"{sizes.B} x {sizes.S} positions"
    positions = f"{sizes.N} tokens of {sizes.B} texts" if sizes.N else padded
    return f"{positions}, {sizes.real_tokens} real tokens"


def _worst(order: Order, lengths: npt.NDArray[Any], workload: Workload) -> tuple[Window, int]:
    """The window with the largest micro-batch of the epoch, and its number."""

    def positions(part: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Of them and, where two have as many, of real ones: more rows may be predicted."""
        real = int(lengths[part].sum())
        if workload.padding == "unpadded":
            return real, real
        longest = workload.max_length if workload.padding == "fixed" else lengths[part].max()
        return len(part) * int(longest), real

    def largest(numbered: tuple[int, Window]) -> tuple[int, int]:
        return max(positions(part) for ranks in numbered[1].micro_batches for part in ranks)

    number, window = max(_scanned(order), key=largest)
    return window, number


def _scanned(order: Order) -> Iterator[tuple[int, Window]]:
    return islice(enumerate(order.epoch(0)), _SCANNED_WINDOWS)


def _without_labels(batch: MicroBatch, vocabulary: Vocabulary) -> MicroBatch:
    """As a forward pass takes it; a decoder reads the targets."""
    inputs = dict(batch.inputs)
    labels: torch.Tensor = inputs.pop("labels")
    if batch.sizes.T:
        inputs["decoder_input_ids"] = labels.masked_fill(labels == IGNORED, vocabulary.pad_id)
    return MicroBatch(inputs, batch.sizes)
