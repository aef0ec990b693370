"""The batches that texts of known lengths make: the worst, and a usual one. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rigsize.spec import Strategy, Workload
from rigsize.texts.stats import LengthHistogram

__all__ = ["Batch", "longest_text", "usual_batch", "worst_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch as the records that ask for it."""

    workload: Workload
    """With the longest text of the batch as its length."""
    strategy: Strategy
    """With the tokens of all its texts as the budget, where texts are unpadded."""
    words: str


def longest_text(lengths: LengthHistogram, workload: Workload) -> int:
    """Tokens of the longest text, cut to the limit: what any batch may be padded to."""
    return min(lengths.longest, workload.max_length)


def worst_batch(lengths: LengthHistogram, workload: Workload, strategy: Strategy) -> Batch:
    """The longest texts together: one of them is enough where a batch is padded to it."""
    cut, size = lengths.cut_to(workload.max_length), strategy.micro_batch
    longest = cut.longest
    words = f"the longest of {lengths.texts:,} texts has {longest:,} tokens"
    if workload.padding == "unpadded":
        tokens = _within(strategy, cut.longest_together(size))
        words += f", the {size:,} longest {tokens:,} together"
        strategy = replace(strategy, tokens_per_batch=tokens)
    return Batch(workload=replace(workload, max_length=longest), strategy=strategy, words=words)


def usual_batch(lengths: LengthHistogram, workload: Workload, strategy: Strategy) -> Batch:
    """The expected longest of as many texts drawn at random, and their expected tokens."""
    cut, size = lengths.cut_to(workload.max_length), strategy.micro_batch
    longest = math.ceil(cut.expected_longest(min(size, cut.texts)))
    words = f"a usual batch, its longest text of {longest:,} tokens"
    if workload.padding == "unpadded":
        tokens = _within(strategy, math.ceil(size * cut.mean))
        words = f"a usual batch of {tokens:,} tokens"
        strategy = replace(strategy, tokens_per_batch=max(tokens, size))
    return Batch(workload=replace(workload, max_length=longest), strategy=strategy, words=words)


def _within(strategy: Strategy, tokens: int) -> int:
    """A budget bounds a row, and is filled as far as there are texts."""
    budget = strategy.tokens_per_batch
    return tokens if budget is None else min(budget, tokens)
