"""Attention as one node of the trace.

Which kernel runs depends on the accelerator, so the trace records one `rigsize::attention` and
`rigsize.program.attention` lowers it later by CUDA's rules. Shapes: q [B, H, Sq, D],
k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv], out [B, H, Sq, Dv] laid out as [B, Sq, H, Dv], which is
what flash and memory-efficient attention return (`aten/src/ATen/native/transformers/cuda`).

Texts of one row come as q [N, H, D] and offsets [B + 1] to `_flash_attention_forward`, which is one
`rigsize::packed_attention`: only FlashAttention takes them.
"""

from __future__ import annotations

from typing import Any

import torch

from rigsize.trace.kernels import no_kernel

_library: torch.library.Library | None = None


def register() -> None:
    """Defines the operators and puts them under those that the models call."""
    global _library
    library = torch.library.Library("rigsize", "DEF")
    library.define(
        "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float dropout, bool causal,"
        " bool gqa, bool needs_grad) -> Tensor"
    )
    library.define(
        "packed_attention(Tensor q, Tensor k, Tensor v, Tensor offsets, int longest,"
        " float dropout, bool causal, bool needs_grad) -> Tensor"
    )
    library.define(
        "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out,"
        " bool mask_grad) -> (Tensor, Tensor, Tensor, Tensor)"
    )
    library.impl("attention", _attention_meta, "Meta")
    library.impl("packed_attention", _packed_attention_meta, "Meta")
    library.impl("attention_backward", _attention_backward_meta, "Meta")
    override = torch.library.Library("aten", "IMPL")
    for key in ("AutogradPrivateUse1", "PrivateUse1"):
        override.impl("scaled_dot_product_attention", _scaled_dot_product_attention, key)
        override.impl("_flash_attention_forward", _flash_attention_forward, key)
    for name in ("attention", "packed_attention", "attention_backward"):
        library.impl(name, no_kernel, "PrivateUse1")
    _library = library
    _keep.append(override)


_keep: list[torch.library.Library] = []


def _attention_meta(
    q: torch.Tensor,
    _k: torch.Tensor,
    v: torch.Tensor,
    _mask: torch.Tensor | None,
    _dropout: float,
    _causal: bool,
    _gqa: bool,
    _needs_grad: bool,
) -> torch.Tensor:
    batch, heads, length = q.shape[:3]
    return q.new_empty((batch, length, heads, v.shape[-1])).transpose(1, 2)


def _packed_attention_meta(
    q: torch.Tensor,
    _k: torch.Tensor,
    v: torch.Tensor,
    _offsets: torch.Tensor,
    _longest: int,
    _dropout: float,
    _causal: bool,
    _needs_grad: bool,
) -> torch.Tensor:
    return q.new_empty((*q.shape[:2], v.shape[-1]))


def _like_packed(tensor: torch.Tensor) -> torch.Tensor:
    """A gradient laid out as [B, S, H, D], as the fused backward kernels allocate it."""
    if tensor.dim() == 3:  # [N, H, D] already
        return tensor.new_empty(tensor.shape)
    batch, heads, length, width = tensor.shape
    return tensor.new_empty((batch, length, heads, width)).transpose(1, 2)


def _attention_backward_meta(
    _grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    _out: torch.Tensor,
    mask_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    bias = torch.empty_like(mask) if mask is not None and mask_grad else q.new_empty((0,))
    return _like_packed(q), _like_packed(k), _like_packed(v), bias


class _Attention(torch.autograd.Function):
    """Saves what the fused kernels save: q, k, v, out and a float mask (a boolean one is not)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        causal: bool,
        gqa: bool,
    ) -> torch.Tensor:
        out = torch.ops.rigsize.attention(q, k, v, mask, dropout, causal, gqa, True)
        bias = mask if mask is not None and mask.is_floating_point() else None
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.mask_grad = bias is not None and bias.requires_grad
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, bias, out = ctx.saved_tensors
        dq, dk, dv, dbias = torch.ops.rigsize.attention_backward(
            grad, q, k, v, bias, out, ctx.mask_grad
        )
        return dq, dk, dv, dbias if ctx.mask_grad else None, None, None, None


def _scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,  # noqa: ARG001 - torch's signature; a scale takes no memory
    enable_gqa: bool = False,
) -> torch.Tensor:
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (query, key, value, attn_mask)
    )
    if not needs_grad:
        return torch.ops.rigsize.attention(  # type: ignore[no-any-return]
            query, key, value, attn_mask, dropout_p, is_causal, enable_gqa, False
        )
    return _Attention.apply(  # type: ignore[no-any-return, no-untyped-call]
        query, key, value, attn_mask, dropout_p, is_causal, enable_gqa
    )


class _PackedAttention(torch.autograd.Function):
    """Saves what `_flash_attention_forward` saves beside its own log-sum-exp and random state."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        offsets: torch.Tensor,
        longest: int,
        dropout: float,
        causal: bool,
    ) -> torch.Tensor:
        out = torch.ops.rigsize.packed_attention(q, k, v, offsets, longest, dropout, causal, True)
        ctx.save_for_backward(q, k, v, out, offsets)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, out, _ = ctx.saved_tensors
        dq, dk, dv, _ = torch.ops.rigsize.attention_backward(grad, q, k, v, None, out, False)
        return dq, dk, dv, None, None, None, None


def _flash_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    _offsets_k: torch.Tensor,
    longest: int,
    _longest_k: int,
    dropout: float,
    causal: bool,
    _debug_mask: bool,
    **_no_memory: Any,
) -> tuple[torch.Tensor, ...]:
    """Self-attention of packed texts; what is returned beside the output nobody reads here."""
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    arguments = (query, key, value, offsets, longest, dropout, causal)
    if needs_grad:
        out = _PackedAttention.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        out = torch.ops.rigsize.packed_attention(*arguments, False)
    return (out,) * 5
