"""What FlashAttention 2 allocates.

Source: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, 2.13.
"""

from __future__ import annotations

from dataclasses import replace

from rigsize.program.attention_lowering import (
    AttentionLowering,
    BufferTimeline,
    Card,
    ceil_div,
    finish,
    gradient_elements,
    round_up,
)
from rigsize.program.attention_node import FP32_BYTES, AttentionNode

TEXT_GAP_ROWS = 128
"""Rows that keep one packed text's sums from the next one's: the largest block of queries."""


def lower_flash(node: AttentionNode, card: Card) -> AttentionLowering:
    """flash_api.cpp `mha_fwd` and `mha_bwd`; `mha_varlen_fwd` and `mha_varlen_bwd` if packed."""
    forward = BufferTimeline()
    wide = replace(
        node, head_dim=round_up(node.head_dim, 8), value_head_dim=round_up(node.value_head_dim, 8)
    )
    padded = wide != node
    if padded:
        forward.alloc("q_padded", wide.query_elements * node.element_bytes)
        forward.alloc("k_padded", wide.key_elements * node.element_bytes)
        forward.alloc("v_padded", wide.value_elements * node.element_bytes)
    forward.alloc("out", wide.out_elements * node.element_bytes)
    rows = node.heads * node.query_rows
    forward.alloc("logsumexp", rows * FP32_BYTES)
    splits = 1 if node.is_packed else _flash_splits(wide, card.sm_count)
    if splits > 1:
        forward.alloc("logsumexp_accum", splits * rows * FP32_BYTES)
        forward.alloc("out_accum", splits * rows * _flash_width(wide) * FP32_BYTES)
    forward.alloc("rng_state", 16)
    forward.alloc("rng_unused", 8)
    if node.dropout:  # made a second time, the first one dies
        forward.alloc("rng_state_used", 16)
        forward.free("rng_state")
    forward.free("logsumexp_accum", "out_accum")
    backward = forward.continued()
    if not node.needs_grad:
        forward.free_all_but("out")
    _flash_backward(backward, node, wide, card)
    inputs = () if padded else ("q", "k", "v")
    return finish("flash", node, forward, backward, saved_inputs=inputs)


def _flash_backward(
    backward: BufferTimeline, node: AttentionNode, wide: AttentionNode, card: Card
) -> None:
    padded = wide != node
    saved = backward.live
    suffix = "_padded" if padded else ""
    if padded:
        backward.alloc("grad_out_padded", wide.out_elements * node.element_bytes)
    backward.alloc("dq" + suffix, wide.query_elements * node.element_bytes)
    backward.alloc("dk" + suffix, wide.key_elements * node.element_bytes)
    backward.alloc("dv" + suffix, wide.value_elements * node.element_bytes)
    rows = node.heads * _summed_rows(node)
    backward.alloc("softmax_d", rows * FP32_BYTES)
    splits = 1
    if card.deterministic:
        splits = ceil_div(card.sm_count, node.batch * node.heads)
    backward.alloc("dq_accum", splits * rows * _flash_width(wide) * FP32_BYTES)
    if node.is_grouped:
        full = wide.key_rows * wide.heads * wide.head_dim * node.element_bytes
        backward.alloc("dk_expanded", full)
        backward.alloc("dv_expanded", full)
    backward.free("dv_expanded", "dk_expanded", "dq_accum", "softmax_d", "grad_out_padded")
    backward.free(*saved)
    if padded:  # the padding's own backward copies the part in use
        for name, elements in gradient_elements(node):
            backward.alloc(name, elements * node.element_bytes)
            backward.free(name + suffix)


def _summed_rows(node: AttentionNode) -> int:
    """Rows of the fp32 sums of backward."""
    if node.is_packed:
        return node.query_rows + TEXT_GAP_ROWS * node.batch
    return node.batch * round_up(node.query_length, 128)


def _flash_width(node: AttentionNode) -> int:
    return round_up(node.head_dim, 32 if node.head_dim <= 128 else 64)


def _flash_splits(node: AttentionNode, sm_count: int) -> int:
    """Splits of the keys in forward (flash_api.cpp `num_splits_heuristic`); 1 with dropout."""
    if node.dropout:
        return 1
    heads, length = node.heads, node.query_length
    if length == 1 and node.is_grouped:  # the group takes the card of the query length
        heads, length = node.kv_heads, node.heads // node.kv_heads
    block = 256 if node.head_dim <= 64 else 128 if node.head_dim <= 128 else 64
    tiles, processors = node.batch * heads * ceil_div(length, 64), 2 * sm_count
    key_blocks = ceil_div(node.key_length, block)
    if tiles >= 0.8 * processors:
        return 1
    efficiency = {}
    for splits in range(1, min(128, processors, key_blocks) + 1):
        per_split = ceil_div(key_blocks, splits)
        if splits == 1 or per_split != ceil_div(key_blocks, splits - 1):
            waves = tiles * splits / processors
            efficiency[splits] = waves / ceil_div(tiles * splits, processors)
    best = max(efficiency.values())
    return next(splits for splits, value in efficiency.items() if value >= 0.85 * best)
