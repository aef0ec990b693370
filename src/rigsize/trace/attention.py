"""Attention as one node of the trace.

Which kernel runs depends on the accelerator, so the trace records one `rigsize::attention` and
`rigsize.program.attention` lowers it later by CUDA's rules. Shapes: q [B, H, Sq, D],
k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv], out [B, H, Sq, Dv] laid out as [B, Sq, H, Dv], which is
what flash and memory-efficient attention return (`aten/src/ATen/native/transformers/cuda`).
"""

from __future__ import annotations

from typing import Any

import torch

from rigsize.trace.kernels import no_kernel

_library: torch.library.Library | None = None


def register() -> None:
    """Defines the two operators and puts them under `scaled_dot_product_attention`."""
    global _library
    library = torch.library.Library("rigsize", "DEF")
    library.define(
        "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float dropout, bool causal,"
        " bool gqa, bool needs_grad) -> Tensor"
    )
    library.define(
        "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out,"
        " bool mask_grad) -> (Tensor, Tensor, Tensor, Tensor)"
    )
    library.impl("attention", _attention_meta, "Meta")
    library.impl("attention_backward", _attention_backward_meta, "Meta")
    override = torch.library.Library("aten", "IMPL")
    for key in ("AutogradPrivateUse1", "PrivateUse1"):
        override.impl("scaled_dot_product_attention", _scaled_dot_product_attention, key)
    library.impl("attention", no_kernel, "PrivateUse1")
    library.impl("attention_backward", no_kernel, "PrivateUse1")
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


def _like_packed(tensor: torch.Tensor) -> torch.Tensor:
    """A gradient laid out as [B, S, H, D], as the fused backward kernels allocate it."""
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
