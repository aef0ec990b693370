"""Which attention kernel ROCm takes: AOTriton's, under the names of CUDA's.

Source: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp under USE_ROCM. Left
out: the Composable Kernel backend, which has to be asked for, and AOTriton before 0.9.
"""

from __future__ import annotations

from rigsize.program.attention_node import AttentionNode

__all__ = ["FUSED", "against_efficient", "against_flash"]

FUSED = ("gfx90a", "gfx942", "gfx950")
"""AOTriton supports these; Radeons are experimental there, and off unless
`TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1` is set. The rest have no fused kernel."""
_WIDEST_HEAD = 512


def against_flash(node: AttentionNode, gfx: str) -> str | None:
    """First reason against FlashAttention (`can_use_flash_attention`)."""
    if not node.is_half:
        return _against_fused(node, gfx) or "fp32"
    if node.mask != "none":
        return "a mask"
    if node.causal and node.query_length != node.key_length:
        return "causal with unequal lengths"
    if node.is_grouped and not node.enable_gqa:
        return "unequal head counts"
    return _against_fused(node, gfx)


def against_efficient(node: AttentionNode, gfx: str) -> str | None:
    """First reason against the memory-efficient kernel, the same one behind another door."""
    alignment = 8 if node.is_half else 4
    if node.head_dim % alignment:
        return f"head dimension {node.head_dim} is no multiple of {alignment}"
    if node.is_grouped:
        return "grouped queries"
    return _against_fused(node, gfx)


def _against_fused(node: AttentionNode, gfx: str) -> str | None:
    if gfx not in FUSED:
        return f"AOTriton has no kernel for {gfx} that is on by default"
    if node.head_dim != node.value_head_dim or node.head_dim > _WIDEST_HEAD:
        return f"head dimensions {node.head_dim} and {node.value_head_dim}"
    return None
