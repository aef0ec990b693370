"""What bitsandbytes launches and dispatches for a product with a 4-bit weight."""

from __future__ import annotations

from rigsize.program.environment import Environment
from rigsize.program.four_bit import BLOCK, Product4Bit, is_fused
from rigsize.program.work import Kernel

__all__ = ["OP", "product_kernels"]

OP = "bitsandbytes::gemm_4bit"
_BYTES_4BIT = 0.5625
"""Of a weight: half a byte, and a fp32 scale for 64 of them."""
_FUSED_DISPATCHES = 2
"""Its output and the kernel, which a call into the library launches."""
_WHOLE_DISPATCHES = 6
"""The whole weight and its kernel; then `linear`: the transpose, two views and the product."""
_NESTED_DISPATCHES = 3
"""Scales as fp32, their kernel, their offset."""


def product_kernels(
    product: Kernel, environment: Environment, *, nested: bool
) -> tuple[tuple[Kernel, ...], int]:
    """(kernels, dispatches beside the operator's own) of one `gemm_4bit`.

    As `backends/cuda/ops.py` of bitsandbytes 0.50 has it: one fused kernel, or
    `_dequant_linear_fallback`, which writes the whole weight and multiplies by that.
    """
    batch, m, n, k = product.sizes
    asked = Product4Bit(
        rows=m,
        outputs=n,
        inputs=k,
        dtype=product.dtype,
        nested=nested,
        capability=environment.compute_capability,
        sm_count=environment.sm_count,
    )
    if is_fused(asked):
        return (product,), _FUSED_DISPATCHES
    elements = batch * n * k
    width = 4 if product.dtype == "float32" else 2
    read = round(elements * _BYTES_4BIT)
    whole = Kernel("copy", product.dtype, (read + width * elements,), op="dequantize_4bit")
    kernels = (whole, product._replace(kind="gemm", detail=product.detail or "nt"))
    if not nested:
        return kernels, _WHOLE_DISPATCHES
    scales = -(-elements // BLOCK)
    to_fp32 = Kernel("copy", "float32", (5 * scales,), op="dequantize_blockwise")
    offset = Kernel("elementwise", "float32", (8 * scales,), op="add")
    return (to_fp32, offset, *kernels), _WHOLE_DISPATCHES + _NESTED_DISPATCHES
