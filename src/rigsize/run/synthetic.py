"""Texts of random ids with the lengths of a histogram, read as tokenised texts are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rigsize.errors import SpecError
from rigsize.spec import Workload
from rigsize.texts.stats import LengthHistogram
from rigsize.texts.tokenised import Example

__all__ = ["MOST_TEXTS", "SyntheticTexts"]

MOST_TEXTS = 1_000_000
"""A histogram of more texts is drawn from."""


class SyntheticTexts:
    """As many texts of each length as the histogram has; the same for the same seed."""

    def __init__(
        self, histogram: LengthHistogram, workload: Workload, config: Any, *, seed: int, least: int
    ) -> None:
        self._workload, self._seed = workload, seed
        text = config.get_text_config()
        self._vocabulary = int(text.vocab_size)
        self._special = _special_ids(text)
        self._safe = next(i for i in range(self._vocabulary + 1) if i not in self._special)
        self._end = text.eos_token_id if isinstance(text.eos_token_id, int) else None
        self.lengths = _lengths(histogram, workload.max_length, seed, least)
        """Tokens of each text, cut to max_length; none shorter than `least`."""

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int) -> Example:
        """The text at `index`, with what its task reads beside it."""
        generator = np.random.default_rng((self._seed, index))
        length, task = int(self.lengths[index]), self._workload.task
        ids = self._ids(generator, length)
        if task == "sequence-classification":
            return Example(ids, label=int(generator.integers(self._workload.num_labels)))
        if task == "token-classification":
            tags = generator.integers(0, self._workload.num_labels, length, dtype=np.int32)
            return Example(ids, second=tags)
        if task in ("embedding", "seq2seq-lm"):
            limit = self._workload.max_target_length or self._workload.max_length
            return Example(ids, second=self._ids(generator, min(length, limit)))
        return Example(ids)

    def _ids(self, generator: np.random.Generator, length: int) -> npt.NDArray[np.int32]:
        ids = generator.integers(0, self._vocabulary, length, dtype=np.int32)
        ids[np.isin(ids, list(self._special))] = self._safe
        if self._end is not None:
            ids[-1] = self._end  # classifiers of encoder-decoders read it
        return ids


def _special_ids(text: Any) -> set[int]:
    values = [value for name, value in text.to_dict().items() if name.endswith("_token_id")]
    return {
        int(v)
        for value in values
        for v in (value if isinstance(value, list) else [value])
        if v is not None
    }


def _lengths(
    histogram: LengthHistogram, longest: int, seed: int, least: int
) -> npt.NDArray[np.int64]:
    pairs = [pair for pair in histogram.cut_to(longest).pairs if pair[0] >= least]
    if not pairs:
        raise SpecError("histogram", histogram.longest, f"no text has {least} tokens or more")
    lengths, counts = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    total = int(counts.sum())
    if total <= MOST_TEXTS:
        return np.repeat(lengths, counts)
    drawn = np.random.default_rng(seed).choice(lengths, MOST_TEXTS, p=counts / total)
    return np.asarray(drawn, dtype=np.int64)
