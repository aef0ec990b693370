"""Kernels and dispatches of a product with a 4-bit weight, counted in bitsandbytes' own source."""

from __future__ import annotations

from tests.program.tiny_profile import A100

from rigsize.program.four_bit_work import product_kernels
from rigsize.program.work import Kernel, kernel_flops


def product(rows: int) -> Kernel:
    return Kernel("gemm_4bit", "bfloat16", (1, rows, 4096, 4096), "nt", "bitsandbytes::gemm_4bit")


def test_few_rows_are_one_kernel() -> None:
    kernels, dispatches = product_kernels(product(1), A100, nested=True)
    assert kernels == (product(1),)
    assert dispatches == 2  # torch.empty, and the call into the library


def test_many_rows_write_the_whole_weight_first() -> None:
    # 4096 x 4096 weights: half a byte and a sixteenth of scales read, two bytes written.
    (whole, times), dispatches = product_kernels(product(2048), A100, nested=False)
    assert whole.sizes == (round(4096**2 * (0.5 + 4 / 64 + 2)),)
    assert (times.kind, times.sizes, times.detail) == ("gemm", (1, 2048, 4096, 4096), "nt")
    assert dispatches == 6
    assert kernel_flops(times) == kernel_flops(product(2048))


def test_nested_scales_take_two_more_kernels() -> None:
    plain, few = product_kernels(product(2048), A100, nested=False)
    nested, more = product_kernels(product(2048), A100, nested=True)
    assert nested[2:] == plain
    assert [kernel.op for kernel in nested[:2]] == ["dequantize_blockwise", "add"]
    assert more == few + 3
