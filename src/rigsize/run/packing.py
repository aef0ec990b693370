"""Unpadded batches: the texts of a micro-batch in one row, attention within each text alone.

A model sees `input_ids` [1, N] and explicit `position_ids`; every operator but attention works on
the N real tokens. Attention gets a `Packing` through the model's keyword arguments: flash attention
takes it as it stands, elsewhere queries, keys and values are laid out on a grid [B, S] for that one
call. No position of another text is ever seen, so the loss is the padded batch's.

Legend: N tokens in all, B texts, S the longest of them, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from rigsize.errors import UnsupportedCombination
from rigsize.models.packable import POSITIONS_BEHIND_PADDING, can_share_row

__all__ = ["INTERFACE", "Packing", "check_packable", "first_position", "pack", "register"]

INTERFACE = "rigsize_unpadded"
"""The name of the attention interface in transformers' registry."""
FLASH_CAPABILITY = (8, 0)
"""FlashAttention 2 needs Ampere: pytorch/pytorch, aten/.../flash_attn/flash_api.cpp."""
FLASH_HEAD_MULTIPLE, MOST_FLASH_HEAD = 8, 256
"""Head widths that `mha_varlen_fwd` takes (same file); SDPA pads others, the operator does not."""
_UNANSWERED = ("softcap", "s_aux", "position_bias", "cache")
"""Arguments of an attention interface that change what is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the texts of one row lie."""

    offsets: torch.Tensor
    """[B + 1] int32: the first token of each text, and N."""
    grid: torch.Tensor
    """[N] int64: the cell of each token on the grid [B, S]."""
    texts: int
    """B."""
    longest: int
    """S."""
    flash: bool = True
    """Whether FlashAttention runs where it can; a trace for a card without it says no."""

    def to(self, device: torch.device | str) -> Packing:
        """The same on another device."""
        return replace(self, offsets=self.offsets.to(device), grid=self.grid.to(device))


def pack(lengths: list[int]) -> Packing:
    """The Packing of texts of these lengths, one after another."""
    longest = max(lengths)
    sizes = torch.tensor(lengths)
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    offsets[1:] = sizes.cumsum(0)
    within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(sizes)
    rows = torch.arange(len(lengths)).repeat_interleave(sizes)
    return Packing(
        offsets=offsets, grid=rows * longest + within, texts=len(lengths), longest=longest
    )


def first_position(config: Any) -> int:
    """The position id of a text's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_BEHIND_PADDING else 0


def check_packable(config: Any, task: str) -> None:
    """Refuses architectures for which several texts in one row are not several texts."""
    kind = config.model_type
    values = {
        "model_type": kind,
        "is_encoder_decoder": getattr(config, "is_encoder_decoder", False),
    }
    if not can_share_row(values):
        raise UnsupportedCombination(
            "padding",
            "unpadded",
            f"{kind} counts positions itself and would run one text into the next",
            allowed=("fixed", "dynamic"),
            nearest="dynamic",
        )
    if task == "seq2seq-lm":
        raise UnsupportedCombination(
            "padding", "unpadded", "not for seq2seq-lm", allowed=("fixed", "dynamic")
        )


def register() -> str:
    """Makes the interface known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(INTERFACE, unpadded_attention)
    AttentionMaskInterface.register(INTERFACE, _no_mask)
    return INTERFACE


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Texts are kept apart by the Packing."""


def unpadded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """An attention interface of transformers: q [1, H, N, D] to [1, N, H, D]."""
    for name in _UNANSWERED:
        if more.get(name) is not None:
            raise UnsupportedCombination(
                "padding", "unpadded", f"its attention uses {name}", allowed=("fixed", "dynamic")
            )
    if packing is not None and sliding_window is not None and packing.longest > sliding_window:
        raise UnsupportedCombination(
            "max-length",
            packing.longest,
            f"unpadded attention keeps no window of {sliding_window} tokens",
            hint="shorter texts, or --padding dynamic",
        )
    if packing is None or attention_mask is not None:
        raise UnsupportedCombination(
            "padding",
            "unpadded",
            f"{type(module).__name__} does not hand the packing on to its attention",
            allowed=("fixed", "dynamic"),
        )
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    run = _flash if packing.flash and takes_flash(query) else _on_grid
    return run(q, k, v, packing, dropout, causal, scaling).unsqueeze(0), None


def takes_flash(query: torch.Tensor) -> bool:
    """Whether torch's FlashAttention runs here; the traced accelerator says so by its dtype."""
    if query.dtype == torch.float32 or query.device.type == "cpu":
        return False
    if query.shape[-1] % FLASH_HEAD_MULTIPLE or query.shape[-1] > MOST_FLASH_HEAD:
        return False
    if query.device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY


def _flash(
    q_NHD: torch.Tensor,
    k_NHD: torch.Tensor,
    v_NHD: torch.Tensor,
    packing: Packing,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Variable-length FlashAttention of torch; `varlen_attn` is this call without dropout."""
    offsets, longest = packing.offsets, packing.longest
    found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_forward(
        q_NHD, k_NHD, v_NHD, offsets, offsets, longest, longest, dropout, causal, False, scale=scale
    )
    return found[0]


def _on_grid(
    q_NHD: torch.Tensor,
    k_NHD: torch.Tensor,
    v_NHD: torch.Tensor,
    packing: Packing,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """SDPA on the grid [B, S]; cells behind a text's end are masked as keys, dropped as rows."""
    B, S = packing.texts, packing.longest
    q, k, v = (_lay_out(tensor, packing) for tensor in (q_NHD, k_NHD, v_NHD))
    if causal:
        # The empty cells come after every token of their text: the causal mask hides them.
        mask = None
    else:
        lengths_B = packing.offsets.diff()
        mask = (torch.arange(S, device=q.device) < lengths_B[:, None]).view(B, 1, 1, S)
    out_BHSD = torch.nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    H, D = out_BHSD.shape[1], out_BHSD.shape[3]
    out_TD = out_BHSD.transpose(1, 2).reshape(B * S, H * D)
    return out_TD.index_select(0, packing.grid).view(-1, H, D)


def _lay_out(tensor_NHD: torch.Tensor, packing: Packing) -> torch.Tensor:
    """[N, H, D] to [B, H, S, D], zero where no token is."""
    N, H, D = tensor_NHD.shape
    cells_TD = tensor_NHD.new_zeros(packing.texts * packing.longest, H * D)
    laid_TD = cells_TD.index_copy(0, packing.grid, tensor_NHD.reshape(N, H * D))
    return laid_TD.view(packing.texts, packing.longest, H, D).transpose(1, 2)
