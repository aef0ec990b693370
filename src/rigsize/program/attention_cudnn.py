"""What cuDNN attention allocates.

Sources: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/attention.cu and
attention_backward.cu, aten/src/ATen/native/cudnn/MHA.cpp, 2.13.
"""

from __future__ import annotations

from rigsize.program.attention_lowering import (
    AttentionLowering,
    BufferTimeline,
    Card,
    add_float_mask,
    finish,
    gradient_elements,
    inputs_with_mask,
)
from rigsize.program.attention_node import FP32_BYTES, AttentionNode


def lower_cudnn(node: AttentionNode, card: Card) -> AttentionLowering:
    """attention.cu `_cudnn_attention_forward`, attention_backward.cu, cudnn/MHA.cpp."""
    del card
    forward = BufferTimeline()
    add_float_mask(forward, node)
    forward.alloc("rng_seed", 8)
    forward.alloc("rng_offset", 8)
    forward.alloc("out", node.out_elements * node.element_bytes)
    rows = node.batch * node.heads * node.query_length
    if node.needs_grad:
        forward.alloc("logsumexp", rows * FP32_BYTES)
    backward = forward.continued()
    if not node.needs_grad:
        forward.free_all_but("out")
    saved = backward.live
    for name, elements in gradient_elements(node):
        backward.alloc(name, elements * node.element_bytes)
    backward.alloc("workspace", (node.query_elements + rows) * FP32_BYTES)
    backward.free("workspace", *saved)
    return finish("cudnn", node, forward, backward, saved_inputs=inputs_with_mask(node))
