"""From texts to a micro-batch: padding, labels, masked positions, the rows that the head reads.

Legend: B rows, S length, T target length, N tokens of an unpadded row, M selected rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rigsize.run.heads import CHUNKS, IGNORED
from rigsize.run.packing import Packing, first_position, pack
from rigsize.spec import Strategy, Workload
from rigsize.texts.tokenised import Example
from rigsize.trace.model import BuildOptions, selects_rows

__all__ = ["Collator", "MicroBatch", "Sizes", "Vocabulary", "masked_positions"]

Ids = npt.NDArray[Any]
KEPT_SHARE, RANDOM_SHARE = 0.1, 0.1
"""Of the masked tokens: left as they are, replaced by any. Devlin et al. 2018 (BERT), 3.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a micro-batch is, in the variables of a trace, and what is real in it."""

    B: int
    S: int
    T: int = 0
    M: int = 0
    N: int = 0
    real_tokens: int
    """Without padding, targets included."""
    texts: int
    """Examples; an embedding pair is one and has two rows."""
    labelled: int
    """What the loss is the mean over: rows, or tokens with a label."""
    padded: bool
    """Whether any position is padding."""

    @property
    def computed_tokens(self) -> int:
        """Positions that the model runs over."""
        return (self.N or self.B * self.S) + self.B * self.T

    @property
    def point(self) -> dict[str, int]:
        """As `trace.sizes` takes it."""
        return {"B": self.B, "S": self.S, "T": self.T, "M": self.M, "N": self.N}


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The arguments of the model and how large they are."""

    inputs: dict[str, Any]
    sizes: Sizes

    def to(self, device: torch.device) -> dict[str, Any]:
        """The arguments on a device."""
        return {
            name: value.to(device) if isinstance(value, torch.Tensor | Packing) else value
            for name, value in self.inputs.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a collator must know of tokenizer and model."""

    size: int
    """Ids that the model has."""
    pad_id: int
    mask_id: int | None = None
    special_ids: frozenset[int] = frozenset()
    """Never masked."""


def masked_positions(
    ids: Ids, vocabulary: Vocabulary, share: float, key: tuple[int, int, int]
) -> tuple[Ids, Ids]:
    """(positions, ids with these replaced) of one text; the same for the same key.

    max(1, round(share x length)) of the tokens that are not special, so that what is predicted
    hangs neither on the batch nor on the rank. `key` is (seed, epoch, number of the text).
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    free = np.flatnonzero(~np.isin(ids, list(vocabulary.special_ids)))
    count = min(len(free), max(1, round(share * len(ids))))
    chosen = np.sort(generator.choice(free, size=count, replace=False))
    replaced, fate = ids.copy(), generator.random(count)
    replaced[chosen[fate >= KEPT_SHARE]] = vocabulary.mask_id
    random = (fate >= KEPT_SHARE) & (fate < KEPT_SHARE + RANDOM_SHARE)
    replaced[chosen[random]] = generator.integers(0, vocabulary.size, int(random.sum()))
    return chosen, replaced


@dataclass(frozen=True, slots=True)
class _Row:
    """One row's ids, and the label of each of them or of the whole."""

    ids: Ids
    labels: Ids | int
    target: Ids | None = None


class Collator:
    """Makes micro-batches of one kind; deterministic."""

    def __init__(
        self,
        workload: Workload,
        strategy: Strategy,
        options: BuildOptions,
        config: Any,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
        reads_last: bool = False,
    ) -> None:
        self.workload, self.strategy, self.options = workload, strategy, options
        self.config, self.vocabulary, self.seed = config, vocabulary, seed
        self.reads_last = reads_last
        """The classification head reads a text's last token (decoders) instead of its first."""

    def __call__(
        self, indices: Sequence[int] | Ids, examples: Sequence[Example], epoch: int
    ) -> MicroBatch:
        """The micro-batch of these texts; `indices` are their numbers in the data set."""
        rows = [
            row
            for index, example in zip(indices, examples, strict=True)
            for row in self._rows(int(index), example, epoch)
        ]
        if self.workload.padding == "unpadded":
            return self._unpadded(rows, len(examples))
        return self._padded(rows, len(examples))

    # -- rows ---------------------------------------------------------------------------------

    def _rows(self, index: int, example: Example, epoch: int) -> list[_Row]:
        task, ids = self.workload.task, example.input_ids
        if task == "sequence-classification":
            assert example.label is not None
            return [_Row(ids, example.label)]
        if task == "masked-lm":
            key = (self.seed, epoch, index)
            chosen, replaced = masked_positions(ids, self.vocabulary, self.workload.mask_share, key)
            labels = np.full(len(ids), IGNORED, dtype=np.int64)
            labels[chosen] = ids[chosen]
            return [_Row(replaced, labels)]
        if task == "causal-lm":
            return [_Row(ids, ids.astype(np.int64))]
        assert example.second is not None
        if task == "embedding":
            return [_Row(ids, 0), _Row(example.second, 0)]
        if task == "token-classification":
            return [_Row(ids, example.second.astype(np.int64))]
        return [_Row(ids, 0, example.second)]

    # -- padded -------------------------------------------------------------------------------

    def _padded(self, rows: list[_Row], texts: int) -> MicroBatch:
        lengths = [len(row.ids) for row in rows]
        fixed = self.workload.padding == "fixed"
        S = self.workload.max_length if fixed else max(lengths)
        B, padded = len(rows), min(lengths) < S
        inputs: dict[str, Any] = {
            "input_ids": _grid([row.ids for row in rows], S, self.vocabulary.pad_id)
        }
        if padded:
            mask = torch.arange(S) < torch.tensor(lengths)[:, None]
            inputs["attention_mask"] = mask.to(torch.int64)
        labels, T = self._padded_labels(rows, S, fixed)
        if selects_rows(self.options):
            return self._selected(inputs, rows, labels.reshape(-1), S, texts, padded)
        inputs["labels"] = labels
        target_tokens = sum(len(row.target) for row in rows if row.target is not None)
        sizes = Sizes(
            B=B,
            S=S,
            T=T,
            real_tokens=sum(lengths) + target_tokens,
            texts=texts,
            labelled=self._labelled(labels, rows),
            padded=padded,
        )
        return MicroBatch(inputs, sizes)

    def _padded_labels(self, rows: list[_Row], S: int, fixed: bool) -> tuple[torch.Tensor, int]:
        """(labels, T)."""
        task = self.workload.task
        if task == "sequence-classification":
            return torch.tensor([row.labels for row in rows]), 0
        if task == "embedding":
            return _partners(len(rows)), 0
        if task == "seq2seq-lm":
            targets = [row.target for row in rows if row.target is not None]
            limit = self.workload.max_target_length or self.workload.max_length
            T = limit if fixed else max(map(len, targets))
            return _grid(targets, T, IGNORED), T
        return _grid([np.asarray(row.labels) for row in rows], S, IGNORED), 0

    def _labelled(self, labels: torch.Tensor, rows: list[_Row]) -> int:
        if self.workload.task == "causal-lm":
            return sum(len(row.ids) - 1 for row in rows)  # nothing predicts a text's first token
        return int((labels != IGNORED).sum())

    # -- unpadded -------------------------------------------------------------------------------

    def _unpadded(self, rows: list[_Row], texts: int) -> MicroBatch:
        lengths = [len(row.ids) for row in rows]
        start = first_position(self.config)
        inputs: dict[str, Any] = {
            "input_ids": _flat([row.ids for row in rows]).unsqueeze(0),
            "position_ids": _flat([np.arange(n) + start for n in lengths]).unsqueeze(0),
            "packing": pack(lengths),
        }
        task, S = self.workload.task, max(lengths)
        if task == "sequence-classification":
            offsets = inputs["packing"].offsets.to(torch.int64)
            inputs["positions"] = offsets[1:] - 1 if self.reads_last else offsets[:-1]
            labels = torch.tensor([row.labels for row in rows])
        elif task == "embedding":
            labels = _partners(len(rows))
        else:
            labels = _flat([np.asarray(row.labels) for row in rows])
            if selects_rows(self.options):
                return self._selected(inputs, rows, labels, S, texts, False)
            labels = labels.unsqueeze(0)
        inputs["labels"] = labels
        sizes = Sizes(
            B=len(rows),
            S=S,
            M=len(rows) if "positions" in inputs else 0,
            N=sum(lengths),
            real_tokens=sum(lengths),
            texts=texts,
            labelled=int((labels != IGNORED).sum()),
            padded=False,
        )
        return MicroBatch(inputs, sizes)

    # -- selected rows ------------------------------------------------------------------------

    def _selected(
        self,
        inputs: dict[str, Any],
        rows: list[_Row],
        labels: torch.Tensor,
        S: int,
        texts: int,
        padded: bool,
    ) -> MicroBatch:
        """Positions and labels of the rows that predict something, from a label for every row."""
        if self.workload.task == "causal-lm":
            unpadded = "packing" in inputs
            labels = _shifted(labels, [len(row.ids) if unpadded else S for row in rows])
        positions = (labels != IGNORED).nonzero().view(-1)
        labels = labels[positions]
        labelled = len(labels)
        if self.options.loss == "chunked":
            more = -labelled % CHUNKS
            positions = torch.cat([positions, positions.new_zeros(more)])
            labels = torch.cat([labels, labels.new_full((more,), IGNORED)])
        inputs["positions"], inputs["labels"] = positions, labels
        real = sum(len(row.ids) for row in rows)
        sizes = Sizes(
            B=len(rows),
            S=S,
            M=len(positions),
            N=real if "packing" in inputs else 0,
            real_tokens=real,
            texts=texts,
            labelled=labelled,
            padded=padded,
        )
        return MicroBatch(inputs, sizes)


def _shifted(labels: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Row i predicts token i + 1 of its own text; the last of a text predicts nothing."""
    shifted = torch.cat([labels[1:], labels.new_full((1,), IGNORED)])
    shifted[torch.tensor(lengths).cumsum(0) - 1] = IGNORED
    return shifted


def _partners(rows: int) -> torch.Tensor:
    """Pairs lie side by side: the positive of row 0 is row 1, and the other way round."""
    return torch.arange(rows) ^ 1


def _grid(pieces: Sequence[Ids], width: int, filler: int) -> torch.Tensor:
    grid = np.full((len(pieces), width), filler, dtype=np.int64)
    for row, piece in zip(grid, pieces, strict=True):
        row[: len(piece)] = piece
    return torch.from_numpy(grid)


def _flat(pieces: Sequence[Ids]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))
