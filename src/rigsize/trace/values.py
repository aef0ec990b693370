"""Operators whose result depends on the values of tokens, answered as every batch here has them.

A trace has sizes and no values. Where transformers only checks a value, or picks the one
end-of-text of each text, the answer is the same for every batch that `run.batch` or
`train.collate` makes; where a value decides a size (BLT's patches), there is no answer, and tracing
fails with torch's own error.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["answered", "checked_value", "with_rows"]

_CHECKED = {
    "flaubert": True,
    "fsmt": True,
    "gemma3n": True,
    "gemma3n_text": True,
    "ibert": True,
    "prophetnet": True,
    "xlm": True,
}
"""What architectures that only look at a value are told: no text is longer than its row (XLM,
FlauBERT), some position is padded (FSMT), numbers are sane (Gemma 3n, I-BERT, ProphetNet)."""
_INDEXED = ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put")


def checked_value(model_type: str) -> bool | None:
    """What a yes-or-no question about token values is answered; None where there is no answer."""
    return _CHECKED.get(model_type)


def answered(name: str, args: tuple[Any, ...], checked: bool | None) -> Any:
    """What an operator gives in place of running it; NotImplemented where it is to run.

    `unique_consecutive` counts the end-of-texts of each text (BART's and T5's classifiers): one.
    """
    if name == "aten::unique_consecutive":
        counts = torch.empty_like(args[0])  # as many as there may be, narrowed to what there are
        return counts[:1], args[0].new_empty(0), args[0].new_empty(0)
    if name == "aten::_local_scalar_dense" and checked is not None:
        return checked if args[0].dtype == torch.bool else 0
    return NotImplemented


def with_rows(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an indexing by a mask [B, S] that is true once a text: by B rows instead.

    CUDA makes the same two columns of indices with `nonzero`, whose scratch is left out.
    """
    if name not in _INDEXED or len(args[1]) != 1 or not _is_mask(args[1][0]):
        return args
    mask_BS = args[1][0]
    rows_B2 = torch.empty((mask_BS.shape[0], 2), dtype=torch.int64, device=mask_BS.device)
    return (args[0], list(rows_B2.unbind(1)), *args[2:])


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim() == 2
