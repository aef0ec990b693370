"""bitsandbytes' operators whose kernels are Python: taken apart as that code does it.

Their fake kernels tell what comes out and not what lives inside, and two of them ask for a number
of outlier columns, which depends on values. Each function here mirrors the kernel of
`bitsandbytes/backends` that the device gets. Assumed of LLM.int8: no activation reaches its
threshold; else the columns that do would be gathered in 16 bit beside the int8 product.

The product with a 4-bit weight stays one event on an accelerator: which kernel runs depends on its
size (`program.four_bit`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Kernel", "kernels_of"]

Kernel = Callable[..., Any]


def kernels_of(device_type: str) -> dict[str, Kernel]:
    """By operator, what it is taken apart to on a device."""
    return _CPU if device_type == "cpu" else _CUDA


def _no_columns(like: torch.Tensor) -> torch.Tensor:
    """Outlier columns, of which there are none."""
    return torch.empty(0, device=like.device, dtype=torch.int64)


def _without_outliers(
    values: torch.Tensor, rows_int8: torch.Tensor, threshold: float
) -> torch.Tensor | None:
    """The search for outlier columns, and their zeroing, where none is found."""
    if threshold <= 0.0:
        return None
    outliers = values.abs() >= threshold
    outliers.any()
    columns = _no_columns(values)
    if rows_int8.shape[0] > 1:
        rows_int8[:, columns] = 0
    return columns


def _quantize_rows_cuda(
    values: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`int8_vectorwise_quant` of backends/cuda/ops.py."""
    rows = values.numel() // values.shape[-1]
    row_stats = torch.empty(rows, device=values.device, dtype=torch.float32)
    out = torch.empty(values.shape, device=values.device, dtype=torch.int8)
    return out, row_stats, _without_outliers(values, out, threshold)


def _dequantize_product_cuda(
    product: torch.Tensor,
    _row_stats: torch.Tensor,
    _column_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`int8_mm_dequant` of backends/cuda/ops.py: its kernel gives fp16, and adds an fp16 bias."""
    out = torch.empty_like(product, dtype=torch.float16)
    if bias is not None and bias.dtype != torch.float16:
        out.add_(bias)
    return out.to(dtype or torch.float16)


def _mixed_product(
    values: torch.Tensor,
    rows_int8: torch.Tensor,
    weight: torch.Tensor,
    row_stats: torch.Tensor,
    column_stats: torch.Tensor,
    _outlier_columns: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`int8_mixed_scaled_mm` of backends/default/ops.py without outlier columns."""
    outliers = torch.empty(0, device=values.device, dtype=values.dtype)
    product = _scaled_product(
        rows_int8, weight, row_stats, column_stats, bias=bias, dtype=values.dtype
    )
    return product, outliers


def _scaled_product(
    rows_int8: torch.Tensor,
    weight: torch.Tensor,
    row_stats: torch.Tensor,
    column_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`int8_scaled_mm` of backends/default/ops.py: an int32 product, then its scales."""
    product = torch.ops.bitsandbytes.int8_linear_matmul.default(rows_int8, weight)
    return _dequantize_product_cuda(
        product, row_stats, column_stats, dtype=dtype or torch.float16, bias=bias
    )


def _product_4bit_cpu(
    values: torch.Tensor,
    weight: torch.Tensor,
    shape: list[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`_gemm_4bit_default_impl` of backends/default/ops.py."""
    library = torch.ops.bitsandbytes
    if absmax_8bit is not None:
        scales = library.dequantize_blockwise.default(
            absmax_8bit, absmax, absmax_code, 256, torch.float32
        )
        absmax = scales + absmax_offset
        del scales
    whole = library.dequantize_4bit.default(
        weight, absmax, blocksize, quant_type, shape, values.dtype
    )
    return _linear(values, whole, bias)


def _linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear` of ATen/native/Linear.cpp, which no mode sees below autograd."""
    flat = values.reshape(-1, values.shape[-1])
    product = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
    return product.view(*values.shape[:-1], weight.shape[0])


_CUDA: dict[str, Kernel] = {
    "bitsandbytes::int8_vectorwise_quant": _quantize_rows_cuda,
    "bitsandbytes::int8_mm_dequant": _dequantize_product_cuda,
    "bitsandbytes::int8_mixed_scaled_mm": _mixed_product,
    "bitsandbytes::int8_scaled_mm": _scaled_product,
}
_CPU: dict[str, Kernel] = {"bitsandbytes::gemm_4bit": _product_4bit_cpu}
