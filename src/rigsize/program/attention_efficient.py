"""What the memory-efficient kernel allocates.

Sources: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/attention.cu,
attention_backward.cu, mem_eff_attention/kernel_forward.h, kernel_backward.h and
kernels/cutlassB.h, 2.13.
"""

from __future__ import annotations

from typing import NamedTuple

from rigsize.program.attention_choice import Capability
from rigsize.program.attention_lowering import (
    AttentionLowering,
    BufferTimeline,
    Card,
    add_float_mask,
    ceil_div,
    finish,
    gradient_elements,
    inputs_with_mask,
    round_up,
)
from rigsize.program.attention_node import FP32_BYTES, AttentionNode

_SMALL_SHARED_MEMORY = "memory-efficient backward: 64 x 64 blocks where shared memory is short"


def lower_efficient(node: AttentionNode, card: Card) -> AttentionLowering:
    """attention.cu `_efficient_attention_forward`, attention_backward.cu."""
    forward = BufferTimeline()
    add_float_mask(forward, node)
    pads = node.mask != "none" and node.key_length % 8 != 0
    if pads:  # `preprocess_mask`: row strides must be multiples of 8 elements
        rows = node.mask_elements // node.key_length
        forward.alloc("bias_padded", rows * round_up(node.key_length, 8) * node.element_bytes)
        forward.free("bias")
    forward.alloc("out", node.out_elements * node.element_bytes)
    if node.needs_grad:
        rows = node.batch * node.heads * round_up(node.query_length, 32)
        forward.alloc("logsumexp", rows * FP32_BYTES)
    if node.is_half and max(node.head_dim, node.value_head_dim) > 128:
        forward.alloc("out_accum", node.out_elements * FP32_BYTES)
        forward.free("out_accum")
    backward = forward.continued()
    if not node.needs_grad:
        forward.free_all_but("out")
    saved = backward.live
    tile = _backward_tile(node, card.capability)
    _efficient_backward(backward, node, card, tile)
    backward.free(*saved)
    return finish(
        "efficient",
        node,
        forward,
        backward,
        saved_inputs=("q", "k", "v") if pads else inputs_with_mask(node),
        extra_assumptions=(_SMALL_SHARED_MEMORY,) if tile.is_fallback else (),
    )


class _Tile(NamedTuple):
    """Block of the backward kernel: queries x keys, and the widest head it was built for."""

    queries: int
    keys: int
    max_width: int
    is_fallback: bool

    def keeps_output(self, node: AttentionNode) -> bool:
        """Whether dK and dV stay in registers (kernel_backward.h `kOutputInRF`)."""
        return node.is_half and self.max_width <= self.queries


def _backward_tile(node: AttentionNode, capability: Capability) -> _Tile:
    """First kernel of kernels/cutlassB.h that takes the node and fits into shared memory."""
    width = max(node.head_dim, node.value_head_dim)
    max_width = next(limit for limit in (32, 64, 128, 65536) if width <= limit)
    if max_width <= 64 or capability < (7, 0) or (capability < (8, 0) and not node.is_half):
        return _Tile(64, 64, max_width, False)
    if node.is_half and width <= 96 and capability in ((8, 6), (8, 9)) and not node.dropout:
        return _Tile(128, 64, 96, False)
    # Turing has 64 KiB a block, consumer Ampere and later 99 KiB: the large blocks do not fit.
    if capability == (7, 5) or capability in ((8, 6), (8, 9)) or capability[0] == 12:
        return _Tile(64, 64, max_width, True)
    square = node.is_half and capability >= (8, 0) and max_width == 128
    return _Tile(128, 128 if square else 64, max_width, False)


def _efficient_backward(
    backward: BufferTimeline, node: AttentionNode, card: Card, tile: _Tile
) -> None:
    for name, elements in gradient_elements(node):
        backward.alloc(name, elements * node.element_bytes)
    rows = node.batch * node.heads * node.query_length
    computes_delta = node.is_half and (
        tile.keeps_output(node) or not (7, 0) <= card.capability < (7, 5)
    )
    if not computes_delta:
        _delta_outside(backward, node, rows)
    else:
        backward.alloc("delta", rows * FP32_BYTES)
    backward.alloc("workspace", _efficient_workspace_bytes(node, card, tile))
    backward.free("delta", "row_sums", "workspace")


def _delta_outside(backward: BufferTimeline, node: AttentionNode, rows: int) -> None:
    """Row sums of gradient times output by ordinary operators, before the workspace exists."""
    if node.is_half:
        backward.alloc("grad_out_fp32", node.out_elements * FP32_BYTES)
        backward.alloc("out_fp32", node.out_elements * FP32_BYTES)
    backward.alloc("product", node.out_elements * FP32_BYTES)
    backward.alloc("row_sums", rows * FP32_BYTES)
    copies = node.heads > 1 and node.query_length > 1
    if copies:
        backward.alloc("delta", rows * FP32_BYTES)
        backward.free("row_sums")
    backward.free("product", "out_fp32", "grad_out_fp32")


def _efficient_workspace_bytes(node: AttentionNode, card: Card, tile: _Tile) -> int:
    """kernel_backward.h `workspace_size`; the number of key splits from attention_backward.cu."""
    split_keys = card.capability >= (7, 0)
    elements = 0
    if split_keys or node.is_half:
        tiles = ceil_div(node.query_length, tile.queries) * ceil_div(node.head_dim, tile.keys)
        # each tile carries a lock, a counter and padding: 16 bytes
        elements += tiles * (16 // FP32_BYTES + tile.queries * tile.keys)
    if node.is_half and not tile.keeps_output(node):
        splits = _key_splits(node, card, tile) if split_keys else 1
        width = round_up(node.head_dim, tile.queries) + round_up(node.value_head_dim, tile.queries)
        elements += splits * tile.keys * width
    return node.batch * node.heads * round_up(elements, 4) * FP32_BYTES


def _key_splits(node: AttentionNode, card: Card, tile: _Tile) -> int:
    parallel = node.batch * node.heads
    if card.deterministic or (parallel >= 256 and node.key_length <= 2 * tile.keys):
        return 1
    return max(1, min(ceil_div(node.key_length, tile.keys), 200 // parallel))
