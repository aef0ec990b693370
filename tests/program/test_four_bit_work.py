"""Kernels and dispatches of a product with a 4-bit weight, counted in bitsandbytes' own source."""

from __future__ import annotations

import pytest
from tests.program.stored_work import stored
from tests.program.tiny_profile import A100

from rigsize.program.environment import environment_of
from rigsize.program.four_bit_work import product_kernels
from rigsize.program.work import Kernel, kernel_flops
from rigsize.spec import Strategy

ENVIRONMENT = environment_of(A100, Strategy(micro_batch=1))


def product(rows: int) -> Kernel:
    return Kernel("gemm_4bit", "bfloat16", (1, rows, 4096, 4096), "nt", "bitsandbytes::gemm_4bit")


def test_few_rows_are_one_kernel() -> None:
    kernels, dispatches = product_kernels(product(1), ENVIRONMENT, nested=True)
    assert kernels == (product(1),)
    assert dispatches == 2  # torch.empty, and the call into the library


def test_many_rows_write_the_whole_weight_first() -> None:
    # 4096 x 4096 weights: half a byte and a sixteenth of scales read, two bytes written.
    (whole, times), dispatches = product_kernels(product(2048), ENVIRONMENT, nested=False)
    assert whole.sizes == (round(4096**2 * (0.5 + 4 / 64 + 2)),)
    assert (times.kind, times.sizes, times.detail) == ("gemm", (1, 2048, 4096, 4096), "nt")
    assert dispatches == 6
    assert kernel_flops(times) == kernel_flops(product(2048))


def test_nested_scales_take_two_more_kernels() -> None:
    plain, few = product_kernels(product(2048), ENVIRONMENT, nested=False)
    nested, more = product_kernels(product(2048), ENVIRONMENT, nested=True)
    assert nested[2:] == plain
    assert [kernel.op for kernel in nested[:2]] == ["dequantize_blockwise", "add"]
    assert more == few + 3


@pytest.mark.parametrize("method", ["nf4", "nf4-double"])
def test_4_bit_layers_ask_more_of_the_host_than_plain_ones(method: str) -> None:
    plain = stored("FacebookAI/xlm-roberta-base", use="inference", precision="bf16")
    packed = stored(
        "FacebookAI/xlm-roberta-base", use="inference", precision="bf16", quantization=method
    )
    assert sum(s.dispatches for s in packed.segments) > sum(s.dispatches for s in plain.segments)
    launches = [
        sum(kernel.launches for segment in work.segments for kernel in segment.kernels)
        for work in (plain, packed)
    ]
    assert launches[1] > launches[0]
    assert packed.flops == plain.flops
