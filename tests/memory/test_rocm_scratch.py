"""ROCm's own scratch, worked by hand from its branches of the CUDA sources."""

from __future__ import annotations

import pytest

from rigsize.memory import kernel_scratch, rocm_scratch

MIB = 1 << 20


@pytest.mark.parametrize(
    ("gfx", "warp", "rocblas_mib"),
    [
        ("gfx908", 64, 32),
        ("gfx90a", 64, 32),
        ("gfx942", 64, 128),
        ("gfx950", 64, 128),
        ("gfx1100", 32, 32),
        ("gfx1201", 32, 32),
    ],
)
def test_architectures(gfx: str, warp: int, rocblas_mib: int) -> None:
    assert rocm_scratch.warp_of(gfx) == warp
    assert rocm_scratch.rocblas_workspace_bytes(gfx) == rocblas_mib * MIB


def test_a_bias_gradient_on_an_mi300x() -> None:
    # [2048, 3072]: 768 vectors of 4; blocks of 64 x 2 threads, 1024 values each, 12 blocks across;
    # 1024 / 128 = 8 blocks down, raised to 64: 4 B * 3072 * 64 * (64 * 4), four times CUDA's 48 MiB
    sums = kernel_scratch.column_sum_scratch_bytes(
        2048, 3072, 304, 2048, rocm_scratch.reduction_of("gfx942")
    )
    assert sums == (192 * MIB, 4 * 12)


def test_a_bias_gradient_on_a_radeon() -> None:
    # blocks of 32 x 4: 512 values a thread, 24 across, 4 down, raised to 64: half as wide
    sums = kernel_scratch.column_sum_scratch_bytes(
        2048, 3072, 48, 2048, rocm_scratch.reduction_of("gfx1100")
    )
    assert sums == (96 * MIB, 4 * 24)


def test_few_rows_need_no_staging() -> None:
    # 64 rows, two a block of 64 x 2: 32 values a thread
    reduction = rocm_scratch.reduction_of("gfx942")
    assert kernel_scratch.column_sum_scratch_bytes(64, 768, 304, 2048, reduction) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "gfx", "expected"),
    [
        (127, "gfx942", 0),
        (128, "gfx942", 64 * 768 * 4),
        (100_000, "gfx90a", 64 * 768 * 4),
        (128, "gfx1100", 32 * 768 * 4),
    ],
)
def test_layer_norm_partials(rows: int, gfx: str, expected: int) -> None:
    buffers = rocm_scratch.layer_norm_backward_scratch(rows, 768, gfx)
    assert [size for _, size in buffers] == ([expected] * 2 if expected else [])
