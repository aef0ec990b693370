"""Buffers that ROCm's kernels allocate for themselves, where they differ from CUDA's.

Read in pytorch/pytorch; nothing here was checked on a card, so every row of these is `assumed`.
gfx names are AMD's: gfx90a is MI200, gfx942 MI300, gfx950 MI350, gfx11 and gfx12 are Radeons.
"""

from __future__ import annotations

from rigsize.memory.kernel_scratch import FP32_BYTES, MIB, Reduction

__all__ = [
    "HIPBLASLT_WORKSPACE_BYTES",
    "layer_norm_backward_scratch",
    "reduction_of",
    "rocblas_workspace_bytes",
    "warp_of",
]

HIPBLASLT_WORKSPACE_BYTES = 76 * MIB
"""A thread and stream; a pool of its own beside rocBLAS's, where CUDA has one for both
(aten/src/ATen/cuda/CublasHandlePool.cpp `parseCUDABlasLtWorkspaceSize`)."""
_FEW_ROWS = 128
_ONE_LANE = ("gfx10", "gfx11", "gfx12")
"""RDNA: 32 threads run together, on every other architecture (CDNA, GCN) 64."""


def warp_of(gfx: str) -> int:
    """`at::cuda::warp_size()` on an architecture."""
    return 32 if gfx.startswith(_ONE_LANE) else 64


def rocblas_workspace_bytes(gfx: str) -> int:
    """A thread and stream, for the life of the process; `HIPBLAS_WORKSPACE_CONFIG` overrides it.

    aten/src/ATen/cuda/CublasHandlePool.cpp, `parseChosenWorkspaceSize`.
    """
    return (128 if gfx.startswith(("gfx94", "gfx95")) else 32) * MIB


def reduction_of(gfx: str) -> Reduction:
    """aten/src/ATen/native/cuda/Reduce.cuh, `setReduceConfig` under USE_ROCM."""
    return Reduction(warp=warp_of(gfx), min_values_per_thread=128, min_blocks=64)


def layer_norm_backward_scratch(rows: int, width: int, gfx: str) -> list[tuple[str, int]]:
    """Two fp32 partials of one row a lane, from 128 rows on, whatever the weight's type.

    aten/src/ATen/native/cuda/layer_norm_kernel.cu, `LayerNormBackwardKernelImplInternal`.
    """
    if rows < _FEW_ROWS:
        return []
    partial_bytes = warp_of(gfx) * width * FP32_BYTES
    return [("weight_partials", partial_bytes), ("bias_partials", partial_bytes)]
