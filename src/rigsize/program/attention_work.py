"""The kernels of one call of attention: one fused kernel, or plain products and a softmax.

Which it is follows from the same choice as its memory (`program.attention_choice`). Plain operators
are those of `_scaled_dot_product_attention_math` (ATen/native/transformers/attention.cpp, torch
2.13) and of autograd's formulas for them, as `program.attention_math` has their memory: in fp32,
whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Iterator

from rigsize.program.attention_node import FP32_BYTES, AttentionNode
from rigsize.program.work import Kernel

__all__ = ["attention_kernels"]

_OP = "scaled_dot_product_attention"
_FLOAT = "float32"


def attention_kernels(node: AttentionNode, *, fused: bool, backward: bool) -> tuple[Kernel, ...]:
    """The kernels of the forward or the backward pass of one call."""
    if fused:
        return (_fused(node, backward=backward),)
    return tuple(_plain_backward(node) if backward else _plain_forward(node))


def _fused(node: AttentionNode, *, backward: bool) -> Kernel:
    """One kernel; packed texts count as of equal lengths, heads of two sizes as their mean."""
    queries, keys = node.query_length, node.key_length
    if node.is_packed:
        queries = keys = min(queries, -(-node.packed_tokens // node.batch))
    width = (node.head_dim + node.value_head_dim) // 2
    return Kernel(
        kind="attention_backward" if backward else "attention",
        dtype=node.dtype,
        sizes=(node.batch, queries, node.heads, width, keys, node.kv_heads),
        detail="causal" if node.causal else "",
        op=_OP,
    )


def _moves(kind: str, num_bytes: int, dtype: str = _FLOAT) -> Kernel:
    return Kernel(kind, dtype, (num_bytes,), "", _OP)


def _product(node: AttentionNode, m: int, n: int, k: int, layout: str) -> Kernel:
    return Kernel("gemm", _FLOAT, (node.batch * node.heads, m, n, k), layout, _OP)


def _cast(node: AttentionNode, elements: int) -> Kernel:
    return _moves("copy", elements * (node.element_bytes + FP32_BYTES))


def _inputs(node: AttentionNode) -> tuple[int, int, int]:
    """Elements of queries, keys and values, the last two with a head for every query head."""
    groups = node.heads // node.kv_heads
    return node.query_elements, node.key_elements * groups, node.value_elements * groups


def _plain_forward(node: AttentionNode) -> Iterator[Kernel]:
    queries, keys, values = _inputs(node)
    scores = node.score_elements * FP32_BYTES
    if node.is_half:
        for elements in (node.query_elements, node.key_elements, node.value_elements):
            yield _cast(node, elements)
    if node.is_grouped:
        yield _moves("copy", 2 * FP32_BYTES * keys)
        yield _moves("copy", 2 * FP32_BYTES * values)
    # Scaled by the square root of the scale each, and laid out head by head.
    for elements in (queries, keys):
        yield _moves("elementwise", 2 * FP32_BYTES * elements)
        yield _moves("copy", 2 * FP32_BYTES * elements)
    yield _product(node, node.query_length, node.key_length, node.head_dim, "nt")
    if node.causal or node.mask != "none":
        yield _moves("elementwise", 2 * scores + node.mask_elements * node.element_bytes)
    yield _moves("softmax", 2 * scores)
    # `_safe_softmax`: which rows are masked throughout, and zeros there.
    yield _moves("elementwise", scores + node.score_elements)
    yield _moves("reduction", node.score_elements)
    yield _moves("elementwise", 2 * scores)
    if node.dropout:
        yield _moves("elementwise", 2 * scores + node.score_elements)
    yield _moves("copy", 2 * FP32_BYTES * values)
    yield _product(node, node.query_length, node.value_head_dim, node.key_length, "nn")
    if node.is_half:
        yield _cast(node, node.out_elements)
        yield _cast(node, node.score_elements)


def _plain_backward(node: AttentionNode) -> Iterator[Kernel]:
    queries, keys, values = _inputs(node)
    scores = node.score_elements * FP32_BYTES
    if node.is_half:
        yield _cast(node, node.out_elements)
    yield _moves("copy", 2 * FP32_BYTES * node.out_elements)
    yield _product(node, node.key_length, node.value_head_dim, node.query_length, "tn")
    yield _product(node, node.query_length, node.key_length, node.value_head_dim, "nt")
    if node.dropout:
        yield _moves("elementwise", 2 * scores + node.score_elements)
    yield _moves("softmax-backward", 3 * scores)
    yield _product(node, node.query_length, node.head_dim, node.key_length, "nn")
    yield _product(node, node.key_length, node.head_dim, node.query_length, "tn")
    for elements in (queries, keys):
        yield _moves("elementwise", 2 * FP32_BYTES * elements)
    if node.is_grouped:
        yield _moves("reduction", FP32_BYTES * (keys + node.key_elements))
        yield _moves("reduction", FP32_BYTES * (values + node.value_elements))
    if node.is_half:
        for elements in (node.query_elements, node.key_elements, node.value_elements):
            yield _cast(node, elements)
