"""The head on selected rows only: masked positions, one row a text, or these in chunks.

The real model's own code runs on both sides of the selection: its backbone once, then the rest of
its `forward` with the backbone replaced by the selected rows, so that transforms, logit scaling and
soft capping stay the architecture's.

Legend: B texts, S length, T = B * S (or N unpadded) positions, M selected rows, H hidden width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from rigsize.errors import UnsupportedCombination

__all__ = ["CHUNKS", "IGNORED", "select_rows"]

CHUNKS = 8
"""Pieces of the chunked loss; the selected rows are padded to a multiple of it."""
IGNORED = -100
"""The label that `cross_entropy` leaves out."""


def select_rows(model: torch.nn.Module, *, predicts_tokens: bool, chunks: int = 1) -> None:
    """Lets `model(..., positions=[M])` run its head on those rows of the flattened batch alone.

    With `predicts_tokens` labels are [M] and the loss is the mean over those that are not IGNORED,
    in `chunks` pieces whose logits are computed again in the backward pass. Otherwise the rows are
    one a text, and the model's own loss is taken. Calls without positions are unchanged.
    """
    prefix = getattr(model, "base_model_prefix", "")
    backbone = getattr(model, prefix, model) if prefix else model
    if backbone is model:
        raise UnsupportedCombination(
            "loss",
            "masked",
            f"{type(model).__name__} has no backbone apart from its head",
            allowed=("all",),
        )
    model.forward = _OnRows(model, prefix, predicts_tokens, chunks)


class _OnRows:
    """What stands in for a model's `forward`."""

    def __init__(
        self, model: torch.nn.Module, prefix: str, predicts_tokens: bool, chunks: int
    ) -> None:
        self._model, self._prefix = model, prefix
        self._original = model.forward
        self._predicts_tokens, self._chunks = predicts_tokens, chunks

    def __call__(
        self,
        positions: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if positions is None:
            return self._original(labels=labels, **inputs)
        out = getattr(self._model, self._prefix)(**inputs)
        hidden = out.last_hidden_state
        rows_MH = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        ids_M = inputs["input_ids"].reshape(-1).index_select(0, positions)
        # What the head does not read may die here, as it does behind `outputs[0]` in the models.
        del out, hidden
        if not self._predicts_tokens:
            return self._rest(rows_MH.unsqueeze(1), ids_M.unsqueeze(1), labels=labels)
        if labels is None:
            return self._rest(rows_MH.unsqueeze(0), ids_M.unsqueeze(0))
        return self._token_loss(rows_MH, ids_M, labels)

    def _rest(self, rows: torch.Tensor, ids: torch.Tensor, **more: Any) -> Any:
        """The model's own forward behind its backbone, on these rows."""
        with _answering(self._model, self._prefix, rows):
            return self._original(input_ids=ids, **more)

    def _token_loss(
        self, rows_MH: torch.Tensor, ids_M: torch.Tensor, labels_M: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        if self._chunks == 1:
            logits_MV = self._logits(rows_MH, ids_M)
            return {
                "loss": torch.nn.functional.cross_entropy(logits_MV.float(), labels_M),
                "logits": logits_MV,
            }
        total = rows_MH.new_zeros((), dtype=torch.float32)
        pieces = zip(
            *(tensor.chunk(self._chunks) for tensor in (rows_MH, ids_M, labels_M)), strict=True
        )
        for piece in pieces:
            total = total + checkpoint(self._summed_loss, *piece, use_reentrant=False)
        return {"loss": total / (labels_M != IGNORED).sum()}

    def _summed_loss(
        self, rows_MH: torch.Tensor, ids_M: torch.Tensor, labels_M: torch.Tensor
    ) -> torch.Tensor:
        logits_MV = self._logits(rows_MH, ids_M)
        return torch.nn.functional.cross_entropy(logits_MV.float(), labels_M, reduction="sum")

    def _logits(self, rows_MH: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._rest(rows_MH.unsqueeze(0), ids_M.unsqueeze(0)).logits
        return logits.squeeze(0)


@contextmanager
def _answering(model: torch.nn.Module, prefix: str, rows: torch.Tensor) -> Iterator[None]:
    """While this lasts the model's backbone answers with the rows, whatever it is asked.

    An entry in the instance's own dictionary hides the submodule of that name.
    """
    pooler = getattr(getattr(model, prefix), "pooler", None)
    model.__dict__[prefix] = lambda *_args, **_kwargs: _Rows(rows, pooler)
    try:
        yield
    finally:
        del model.__dict__[prefix]


class _Rows:
    """The output of a backbone that gave these rows; a pooler runs when it is asked for."""

    past_key_values = hidden_states = attentions = cross_attentions = None

    def __init__(self, rows: torch.Tensor, pooler: torch.nn.Module | None) -> None:
        self.last_hidden_state, self._pooler = rows, pooler

    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            return self.last_hidden_state
        if index == 1 and self._pooler is not None:
            return self.pooler_output
        return ()  # `outputs[1:]` and the like: nothing else was computed

    @property
    def pooler_output(self) -> torch.Tensor | None:
        return None if self._pooler is None else self._pooler(self.last_hidden_state)
