"""Random token ids that every architecture accepts, padded or packed as the workload has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rigsize.point import point_of
from rigsize.run.heads import IGNORED
from rigsize.run.packing import Packing, first_position, pack
from rigsize.spec import Strategy, Workload
from rigsize.trace.model import BuildOptions, make_batch, named_tensors

__all__ = ["PADDED_POSITIONS", "batch_sizes", "random_batch", "text_lengths"]

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


def batch_sizes(workload: Workload, strategy: Strategy | int) -> dict[str, int]:
    """The sizes that an estimate takes the micro-batch to have; a number stands for its texts."""
    chosen = Strategy(micro_batch=strategy) if isinstance(strategy, int) else strategy
    return {symbol: size for symbol, size in point_of(workload, chosen).items() if size}


def random_batch(
    config: Any, options: BuildOptions, sizes: Mapping[str, int], *, padded: bool, seed: int
) -> dict[str, Any]:
    """A batch on the CPU: valid ids, an end-of-text at the end of every text, valid labels.

    BART's and T5's classifiers read the last end-of-text and want as many in every row; XLM-R
    derives positions from the padding id, so that one must not turn up in the middle.
    """
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(seed)
    batch = make_batch(options, sizes, "cpu", padded=padded)
    for name, tensor in named_tensors(batch).items():
        if name == "attention_mask":
            tensor.fill_(1)
        elif name == "labels" and options.task in _FEW_LABELS:
            tensor.random_(0, options.num_labels, generator=generator)
        elif name == "labels" and options.task == "embedding":
            # Pairs side by side; a lone row has no other to be the positive.
            tensor.copy_(torch.arange(len(tensor)).roll(-1))
        elif name in ("input_ids", "labels", "decoder_input_ids"):
            tensor.random_(0, _vocabulary(text), generator=generator)
            _avoid_special(tensor, text)
    ends = torch.tensor([-1])
    if options.unpadded:
        batch["packing"] = replace(pack(text_lengths(sizes)), flash=options.flash)
        batch["position_ids"].copy_(_positions(batch["packing"], first_position(config)))
        ends = batch["packing"].offsets[1:] - 1
    if "positions" in batch:
        _choose_rows(batch, sizes, generator)
    _end_texts(batch["input_ids"], ends, text)
    if "attention_mask" in batch:
        _pad(batch, text)
    return batch


def text_lengths(sizes: Mapping[str, int]) -> list[int]:
    """B lengths that sum to N: the first is the longest, S, the others are as equal as can be."""
    B, S, N = sizes["B"], sizes["S"], sizes["N"]
    if B == 1:
        return [N]
    each, more = divmod(N - S, B - 1)
    return [S, *([each + 1] * more), *([each] * (B - 1 - more))]


def _positions(packing: Packing, first: int) -> torch.Tensor:
    """[1, N]: every text counted from its own first token."""
    return (packing.grid % packing.longest + first).unsqueeze(0)


def _choose_rows(
    batch: dict[str, Any], sizes: Mapping[str, int], generator: torch.Generator
) -> None:
    """Rows at random, row 0 without a label for those beyond what there are; a text's first."""
    positions = batch["positions"]
    if "M" not in sizes:
        positions.copy_(batch["packing"].offsets[:-1])
        return
    chosen = torch.randperm(batch["input_ids"].numel(), generator=generator)[: len(positions)]
    positions.zero_()[: len(chosen)] = chosen.sort().values
    if "labels" in batch:
        batch["labels"][len(chosen) :] = IGNORED


def _vocabulary(text: Any) -> int:
    """Ids that may turn up; CANINE hashes code points and has no table of them."""
    return int(getattr(text, "vocab_size", None) or CODE_POINTS)


CODE_POINTS = 128
"""Of ASCII."""
_FEW_LABELS = ("sequence-classification", "token-classification")


def _special_ids(text: Any) -> set[int]:
    found: set[int] = set()
    for name in _SPECIAL:
        value = getattr(text, name, None)
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return found


def _avoid_special(ids: torch.Tensor, text: Any) -> None:
    special = _special_ids(text)
    safe = next((i for i in range(_vocabulary(text)) if i not in special), 0)
    for token in special:
        ids[ids == token] = safe


def _end_texts(input_ids_BS: torch.Tensor, ends: torch.Tensor, text: Any) -> None:
    eos = getattr(text, "eos_token_id", None)
    if isinstance(eos, list):
        eos = eos[0] if eos else None
    if eos is not None and 0 <= eos < _vocabulary(text):
        input_ids_BS[:, ends] = eos


def _pad(batch: dict[str, Any], text: Any) -> None:
    """The first text ends one token early; its end-of-text moves with it."""
    ids_BS, mask_BS = batch["input_ids"], batch["attention_mask"]
    if ids_BS.shape[1] > 1:
        ids_BS[0, -2] = ids_BS[0, -1]
    ids_BS[0, -PADDED_POSITIONS:] = getattr(text, "pad_token_id", None) or 0
    mask_BS[0, -PADDED_POSITIONS:] = 0
