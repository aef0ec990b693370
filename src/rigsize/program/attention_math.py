"""What attention made of ordinary operators allocates.

Source: pytorch/pytorch, aten/src/ATen/native/transformers/attention.cpp, torch 2.13.
"""

from __future__ import annotations

from rigsize.program.attention_lowering import (
    AttentionLowering,
    BufferTimeline,
    Card,
    add_float_mask,
    finish,
    gradient_elements,
)
from rigsize.program.attention_node import FP32_BYTES, AttentionNode


def lower_math(node: AttentionNode, card: Card) -> AttentionLowering:
    """attention.cpp `_scaled_dot_product_attention_math`, as ordinary operators run it."""
    del card
    forward = BufferTimeline()
    add_float_mask(forward, node)
    kept = _math_scores(forward, node)
    kept += _math_softmax(forward, node)
    kept += _math_output(forward, node)
    if node.needs_grad:
        forward.free_all_but("out", *kept)
    else:
        forward.free_all_but("out")
    backward = forward.continued()
    _math_backward(backward, node)
    keeps_value = bool({"v_copy", "v_expanded", "v_fp32"} & set(kept))
    inputs = () if keeps_value else ("v",)
    return finish("math", node, forward, backward, saved_inputs=inputs, saves_out=False)


def _copies_heads(node: AttentionNode) -> bool:
    """Whether folding batch and heads of a token-major tensor into one axis needs a copy."""
    return node.batch > 1 and node.heads > 1


def _math_scores(forward: BufferTimeline, node: AttentionNode) -> list[str]:
    """Scaled queries and keys and their product; returns what autograd keeps."""
    if node.is_half:
        forward.alloc("q_fp32", node.query_elements * FP32_BYTES)
        forward.alloc("k_fp32", node.key_elements * FP32_BYTES)
        forward.alloc("v_fp32", node.value_elements * FP32_BYTES)
    forward.alloc("q_scaled", node.query_elements * FP32_BYTES)
    if node.causal:
        square = node.query_length * node.key_length
        forward.alloc("causal_ones", square)
        forward.alloc("causal_triangle", square)
        forward.free("causal_ones")
        forward.alloc("bias", square * node.element_bytes)
        forward.free("causal_triangle")
    groups = node.heads // node.kv_heads
    if groups > 1:
        forward.alloc("k_expanded", node.key_elements * groups * FP32_BYTES)
        forward.alloc("v_expanded", node.value_elements * groups * FP32_BYTES)
    forward.alloc("k_scaled", node.key_elements * groups * FP32_BYTES)
    copies = _copies_heads(node)
    if copies:
        forward.alloc("q_copy", node.query_elements * FP32_BYTES)
    if copies and groups == 1:
        forward.alloc("k_copy", node.key_elements * FP32_BYTES)
    forward.alloc("scores", node.score_elements * FP32_BYTES)
    kept = ["q_copy" if copies else "q_scaled"]
    kept.append("k_copy" if copies and groups == 1 else "k_scaled")
    if "k_scaled" not in kept:
        forward.free("k_scaled")
    return kept


def _math_softmax(forward: BufferTimeline, node: AttentionNode) -> list[str]:
    """`_safe_softmax`: rows that are masked throughout become zero, out of card."""
    forward.alloc("softmax", node.score_elements * FP32_BYTES)
    forward.alloc("is_masked", node.score_elements)
    forward.alloc("row_is_masked", node.batch * node.heads * node.query_length)
    forward.alloc("probabilities", node.score_elements * FP32_BYTES)
    forward.free("row_is_masked", "is_masked", "softmax", "scores")
    if not node.dropout:
        return ["probabilities"]
    forward.alloc("dropped", node.score_elements * FP32_BYTES)
    forward.alloc("dropout_mask", node.score_elements)
    if not node.needs_grad:
        forward.free("probabilities", "dropout_mask")
    return ["probabilities", "dropped", "dropout_mask"]


def _math_output(forward: BufferTimeline, node: AttentionNode) -> list[str]:
    """Product with the values; half inputs get half copies of output and probabilities."""
    kept = ["v_expanded"] if node.is_grouped else ["v_fp32"] if node.is_half else []
    if _copies_heads(node) and not node.is_grouped:
        forward.alloc("v_copy", node.value_elements * FP32_BYTES)
        kept = ["v_copy"]
    out = "out_fp32" if node.is_half else "out"
    forward.alloc(out, node.out_elements * FP32_BYTES)
    if node.is_half:
        forward.alloc("out", node.out_elements * node.element_bytes)
        forward.alloc("probabilities_half", node.score_elements * node.element_bytes)
    return kept


def _math_backward(backward: BufferTimeline, node: AttentionNode) -> None:
    """Autograd's nodes in reverse, each releasing what it saved."""
    groups = node.heads // node.kv_heads
    full_keys, full_values = node.key_elements * groups, node.value_elements * groups
    if node.is_half:
        backward.alloc("grad_out_fp32", node.out_elements * FP32_BYTES)
    if _copies_heads(node):
        backward.alloc("grad_out_copy", node.out_elements * FP32_BYTES)
        backward.free("grad_out_fp32")
    grad = "d_dropped" if node.dropout else "d_probabilities"
    backward.alloc(grad, node.score_elements * FP32_BYTES)
    backward.alloc("dv_product", full_values * FP32_BYTES)
    backward.free("grad_out_copy", "grad_out_fp32", "dropped")
    backward.free("v_copy", "v_expanded", "v_fp32")
    if node.dropout:
        backward.alloc("d_probabilities", node.score_elements * FP32_BYTES)
        backward.free("d_dropped", "dropout_mask")
    backward.alloc("d_scores", node.score_elements * FP32_BYTES)
    backward.free("d_probabilities", "probabilities")
    backward.alloc("dq_product", node.query_elements * FP32_BYTES)
    backward.alloc("dk_product", full_keys * FP32_BYTES)
    backward.free("d_scores", "q_copy", "q_scaled", "k_copy", "k_scaled")
    backward.alloc("dk_scaled", full_keys * FP32_BYTES)
    backward.free("dk_product")
    backward.alloc("dq_scaled", node.query_elements * FP32_BYTES)
    backward.free("dq_product")
    # What is grouped is summed over the group, what was upcast is cast back.
    for name, elements in gradient_elements(node):
        source = "dv_product" if name == "dv" else f"{name}_scaled"
        _math_gradient(backward, node, name, source, elements)


def _math_gradient(
    backward: BufferTimeline, node: AttentionNode, name: str, source: str, elements: int
) -> None:
    if node.is_grouped and name != "dq":
        backward.alloc(f"{name}_grouped", elements * FP32_BYTES)
        backward.free(source)
        source = f"{name}_grouped"
    if node.is_half:
        backward.alloc(name, elements * node.element_bytes)
        backward.free(source)
    else:
        backward.rename(source, name)
