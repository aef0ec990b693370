"""Random token ids that every architecture accepts, with padding where the workload has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rigsize.spec import Workload
from rigsize.trace.model import BuildOptions, make_batch

__all__ = ["PADDED_POSITIONS", "batch_sizes", "random_batch"]

PADDED_POSITIONS = 1
"""One is enough: transformers keeps the whole mask, for every text, if any position is padded."""
_SPECIAL = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "decoder_start_token_id",
)


def batch_sizes(workload: Workload, micro_batch: int) -> dict[str, int]:
    """B texts of S tokens; T target tokens, as many as S where nobody said."""
    S = workload.max_length
    sizes = {"B": micro_batch, "S": S}
    if workload.task == "seq2seq-lm":
        sizes["T"] = workload.max_target_length or S
    return sizes


def random_batch(
    config: Any, options: BuildOptions, sizes: Mapping[str, int], *, padded: bool, seed: int
) -> dict[str, torch.Tensor]:
    """A batch on the CPU: valid ids, an end-of-text at the end of every text, valid labels.

    BART's and T5's classifiers read the last end-of-text and want as many in every row; XLM-R
    derives positions from the padding id, so that one must not turn up in the middle.
    """
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(seed)
    batch = make_batch(options, sizes, "cpu", padded=padded)
    for name, tensor in batch.items():
        if name == "attention_mask":
            tensor.fill_(1)
        elif name == "labels" and options.task in _FEW_LABELS:
            tensor.random_(0, options.num_labels, generator=generator)
        elif name == "labels" and options.task == "embedding":
            # Pairs side by side; a lone row has no other to be the positive.
            tensor.copy_(torch.arange(len(tensor)).roll(-1))
        else:
            tensor.random_(0, text.vocab_size, generator=generator)
            _avoid_special(tensor, text)
    _end_texts(batch["input_ids"], text)
    if padded:
        _pad(batch, text)
    return batch


_FEW_LABELS = ("sequence-classification", "token-classification")


def _special_ids(text: Any) -> set[int]:
    found: set[int] = set()
    for name in _SPECIAL:
        value = getattr(text, name, None)
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return found


def _avoid_special(ids: torch.Tensor, text: Any) -> None:
    special = _special_ids(text)
    safe = next((i for i in range(text.vocab_size) if i not in special), 0)
    for token in special:
        ids[ids == token] = safe


def _end_texts(input_ids_BS: torch.Tensor, text: Any) -> None:
    eos = getattr(text, "eos_token_id", None)
    if isinstance(eos, list):
        eos = eos[0] if eos else None
    if eos is not None and 0 <= eos < text.vocab_size:
        input_ids_BS[:, -1] = eos


def _pad(batch: dict[str, torch.Tensor], text: Any) -> None:
    """The first text ends one token early; its end-of-text moves with it."""
    ids_BS, mask_BS = batch["input_ids"], batch["attention_mask"]
    if ids_BS.shape[1] > 1:
        ids_BS[0, -2] = ids_BS[0, -1]
    ids_BS[0, -PADDED_POSITIONS:] = getattr(text, "pad_token_id", None) or 0
    mask_BS[0, -PADDED_POSITIONS:] = 0
