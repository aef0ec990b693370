"""Buffers that CUDA kernels allocate for themselves: no trace at dispatch level sees them.

They come from the caching allocator, so they count. Each function names the file of
pytorch/pytorch it mirrors; `PROVENANCE` says how sure each one is. Attention's own buffers are in
`rigsize.program.attention`.

Left out because they stay under 10 KB: full reductions (norms, means) and row reductions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rigsize.provenance import Basis

KIB = 1 << 10
MIB = 1 << 20

INDEX_BYTES = 8
FP32_BYTES = 4
SCALAR_BLOCK_BYTES = 512
"""What a one-element tensor occupies."""


class Provenance(NamedTuple):
    """Where a rule was read and how far it was confirmed."""

    name: str
    source: str
    basis: Basis


PROVENANCE: tuple[Provenance, ...] = (
    Provenance("cublas_workspace", "aten/src/ATen/cuda/CublasHandlePool.cpp", "published"),
    Provenance("cublas_workspace.num_threads", "pytorch/pytorch#95668 and handle pool", "assumed"),
    Provenance("cublas_workspace.blackwell", "pytorch/pytorch#175344", "assumed"),
    Provenance("column_sum", "aten/src/ATen/native/cuda/Reduce.cuh setReduceConfig", "published"),
    Provenance("embedding_backward", "aten/src/ATen/native/cuda/Embedding.cu", "published"),
    Provenance(
        "embedding_backward.segments",
        "aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu; its bound on partial segments and "
        "the atomic path for small tables differ between versions",
        "assumed",
    ),
    Provenance(
        "layer_norm_backward", "aten/src/ATen/native/cuda/layer_norm_kernel.cu", "published"
    ),
    Provenance(
        "foreach_norm",
        "aten/src/ATen/native/cuda/ForeachReduceOp.cu, MultiTensorApply.cuh",
        "published",
    ),
)


def cublas_workspace_bytes(
    compute_capability: tuple[int, int], torch_version: tuple[int, int]
) -> int:
    """Bytes of one cuBLAS workspace; a training process on one stream owns two.

    One buffer per handle and stream for the life of the process, made at the first matrix product
    of the main thread and at the first of the autograd thread. cuBLASLt shares it. Source:
    aten/src/ATen/cuda/CublasHandlePool.cpp (`parseChosenWorkspaceSize`); Blackwell got Hopper's
    size with pytorch/pytorch#175344. `CUBLAS_WORKSPACE_CONFIG` would override it.
    """
    major = compute_capability[0]
    if major == 9 or (major in (10, 12) and torch_version >= (2, 12)):
        return 32 * MIB
    return (2 * 4096 + 8 * 16) * KIB


class Reduction(NamedTuple):
    """What Reduce.cuh decides at compile time for CUDA and, elsewhere, for ROCm."""

    warp: int = 32
    """Threads that run together: 64 on AMD's data-centre cards, 32 on its Radeons."""
    min_values_per_thread: int = 16
    min_blocks: int = 1
    """Where a sum is spread over blocks at all, so many at least."""


CUDA_REDUCTION = Reduction()


class ColumnSum(NamedTuple):
    """The two buffers of a sum over rows, in bytes; allocated in this order, freed together."""

    staging_bytes: int
    semaphores_bytes: int


def column_sum_scratch_bytes(
    rows: int,
    columns: int,
    sm_count: int,
    max_threads_per_sm: int,
    reduction: Reduction = CUDA_REDUCTION,
) -> ColumnSum:
    """Scratch of the sum over rows of a contiguous [rows, columns] tensor: every bias gradient.

    Staging is needed once the rows are spread over several thread blocks, and is then allocated
    block width times vector length (128) larger than used. fp32, bf16 and fp16 alike. Source:
    aten/src/ATen/native/cuda/Reduce.cuh (`setReduceConfig`, `global_memory_size`,
    `semaphore_size`). Leaves out tensors beyond 32-bit indexing, which are summed in parts.
    """
    vector = next(size for size in (4, 2, 1) if columns % size == 0)
    outputs = columns // vector
    width, height = _block_dimension(outputs, rows, 512 // vector, reduction.warp)
    # Fewer values than this per thread: each warp keeps an output of its own.
    if rows < min(height * 16, 256):
        return ColumnSum(0, 0)
    values_per_thread = -(-rows // height)
    grid = -(-outputs // width)
    target_grid = sm_count * (max_threads_per_sm // (width * height))
    if values_per_thread < 256 or grid > target_grid:
        return ColumnSum(0, 0)
    blocks = max(
        min(-(-target_grid // grid), -(-values_per_thread // reduction.min_values_per_thread)),
        -(-values_per_thread // 256),
    )
    if blocks == 1:
        return ColumnSum(0, 0)
    blocks = max(blocks, reduction.min_blocks)
    return ColumnSum(FP32_BYTES * columns * blocks * width * vector, 4 * grid)


def _block_dimension(outputs: int, inputs: int, max_threads: int, warp: int) -> tuple[int, int]:
    """Width and height of a thread block (Reduce.cuh `set_block_dimension`)."""
    across = min(1 << outputs.bit_length() - 1, max_threads)
    down = min(1 << inputs.bit_length() - 1, max_threads)
    height = min(down, max_threads // min(across, warp))
    return min(across, max_threads // height), height


def embedding_backward_scratch(
    num_indices: int, vocabulary: int, width: int
) -> list[tuple[str, int]]:
    """Buffers (name, bytes) alive at the peak of an embedding's backward, beside its gradient.

    Nothing up to 3072 indices. Above, the indices are sorted and runs of equal ones summed in
    pieces of ten rows, in fp32 whatever the gradient's type. Source:
    aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu. Leaves out the sort's
    iota and radix scratch (freed before the large buffer is made), scaling by frequency, sparse
    gradients.
    """
    if num_indices <= 3072:
        return []
    segments = min(num_indices, vocabulary)
    partials = num_indices // 10 + segments
    return [
        ("sorted_indices", num_indices * INDEX_BYTES),
        ("original_indices", num_indices * INDEX_BYTES),
        ("segment_offsets", num_indices * INDEX_BYTES),
        ("unique_indices", num_indices * INDEX_BYTES),
        ("num_segments", INDEX_BYTES),
        ("partials_per_segment", segments * INDEX_BYTES),
        ("partials_per_segment_offset", segments * INDEX_BYTES),
        ("num_partial_segments", INDEX_BYTES),
        ("partial_segment_offset", partials * INDEX_BYTES),
        ("gradient_per_segment", partials * width * FP32_BYTES),
    ]


def layer_norm_backward_scratch(
    rows: int, width: int, sm_count: int, element_bytes: int = FP32_BYTES
) -> list[tuple[str, int]]:
    """Buffers (name, bytes) of a layer norm's backward, beside its three gradients.

    Nothing unless there are more than 65,536 rows and so few columns that the card would idle.
    `element_bytes` is of the norm's weight. Source: aten/src/ATen/native/cuda/layer_norm_kernel.cu
    (`LaunchGammaBetaBackwardCUDAKernel`); on ROCm `memory.rocm_scratch`.
    """
    if rows <= 64 * KIB or width // 32 >= sm_count // 2:
        return []
    parts = min(32 * KIB // -(-width // 32), -(-rows // 32))
    partial_bytes = parts * width * element_bytes
    return [("weight_partials", partial_bytes), ("bias_partials", partial_bytes)]


def foreach_norm_scratch_bytes(numels: Sequence[int]) -> int:
    """Bytes of `clip_grad_norm_`'s buffers over tensors of these element counts.

    Partial sums, one fp32 value per 64 Ki elements of the largest tensor for every tensor, plus a
    block for each tensor's norm. Source: aten/src/ATen/native/cuda/ForeachReduceOp.cu
    (`foreach_tensor_norm_cuda`), chunk size in MultiTensorApply.cuh.
    """
    if not numels:
        return 0
    chunks = -(-max(numels) // (64 * KIB))
    return FP32_BYTES * len(numels) * chunks + SCALAR_BLOCK_BYTES * len(numels)
