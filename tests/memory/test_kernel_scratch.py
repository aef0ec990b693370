"""Hand-worked scratch sizes; the column sums are the values for an A100 (108 SMs)."""

from __future__ import annotations

import pytest

from rigsize.memory import kernel_scratch

MIB = 1 << 20


@pytest.mark.parametrize(
    ("capability", "version", "expected"),
    [
        ((8, 0), (2, 13), 8_519_680),
        ((7, 5), (2, 13), 8_519_680),
        ((9, 0), (2, 11), 32 * MIB),
        ((10, 0), (2, 11), 8_519_680),
        ((10, 0), (2, 12), 32 * MIB),
        ((12, 0), (2, 13), 32 * MIB),
    ],
)
def test_cublas_workspace(
    capability: tuple[int, int], version: tuple[int, int], expected: int
) -> None:
    assert kernel_scratch.cublas_workspace_bytes(capability, version) == expected


@pytest.mark.parametrize(
    ("rows", "columns", "staging_mib"),
    [
        (1024, 768, 6),  # 256 values a thread, 16 blocks: 4 * 768 * 16 * 128 bytes
        (1024, 1024, 8),
        (1024, 4096, 32),
        (2048, 768, 12),
        (2048, 1024, 16),
        (2048, 3072, 48),
        (2048, 4096, 64),
        (4608, 4096, 108),  # 1152 values: the target of 1728 blocks binds, 54 each
        (6656, 3072, 108),
        (2048, 250_002, 0),  # 3907 blocks of outputs alone exceed the target
        (512, 4096, 0),
        (2048, 2, 0),
        (1020, 768, 0),  # 255 values a thread
    ],
)
def test_column_sum(rows: int, columns: int, staging_mib: int) -> None:
    scratch = kernel_scratch.column_sum_scratch_bytes(rows, columns, 108, 2048)
    assert scratch.staging_bytes == staging_mib * MIB


def test_column_sum_starts_at_1021_rows_and_counts_semaphores() -> None:
    scratch = kernel_scratch.column_sum_scratch_bytes(1021, 768, 108, 2048)
    assert scratch == (6 * MIB, 4 * 6)  # 192 vectors in blocks of 32 threads


def test_column_sum_depends_on_the_card() -> None:
    # T4: 40 SMs of 1024 threads are 320 blocks of 128; 24 blocks of outputs, so 14 each.
    scratch = kernel_scratch.column_sum_scratch_bytes(6656, 3072, 40, 1024)
    assert scratch.staging_bytes == 4 * 3072 * 14 * 128


def test_column_sum_of_tiny_tensors() -> None:
    assert kernel_scratch.column_sum_scratch_bytes(1, 1, 108, 2048) == (0, 0)


def test_embedding_backward() -> None:
    assert kernel_scratch.embedding_backward_scratch(3072, 250_002, 768) == []
    # XLM-R base, batch 52 of 128: 665 + 6656 partial rows of 768 fp32
    buffers = dict(kernel_scratch.embedding_backward_scratch(6656, 250_002, 768))
    assert buffers["gradient_per_segment"] == 7321 * 768 * 4  # 22.5 MB
    assert buffers["sorted_indices"] == 53_248
    # Llama at 8192 tokens: 9011 rows of 4096, about 141 MiB
    buffers = dict(kernel_scratch.embedding_backward_scratch(8192, 128_256, 4096))
    assert buffers["gradient_per_segment"] == 9011 * 4096 * 4
    # a table smaller than the batch bounds the segments
    assert dict(kernel_scratch.embedding_backward_scratch(8192, 2, 64))["gradient_per_segment"] == (
        (819 + 2) * 64 * 4
    )


def test_layer_norm_backward() -> None:
    assert kernel_scratch.layer_norm_backward_scratch(65_536, 768, 108) == []
    assert kernel_scratch.layer_norm_backward_scratch(70_000, 4096, 108) == []
    # 768 / 32 = 24 columns of blocks: min(32768 / 24, 70000 / 32) = 1365 partial rows
    assert kernel_scratch.layer_norm_backward_scratch(70_000, 768, 108) == [
        ("weight_partials", 1365 * 768 * 4),
        ("bias_partials", 1365 * 768 * 4),
    ]


def test_foreach_norm() -> None:
    assert kernel_scratch.foreach_norm_scratch_bytes([]) == 0
    # 192,001,536 / 65,536 = 2930 chunks (rounded up) for each of 200 tensors: 2.4 MB
    numels = [250_002 * 768] + [768] * 199
    assert kernel_scratch.foreach_norm_scratch_bytes(numels) == 4 * 200 * 2930 + 512 * 200


def test_every_rule_names_its_source() -> None:
    names = [row.name for row in kernel_scratch.PROVENANCE]
    assert len(set(names)) == len(names)
    assert all(row.source for row in kernel_scratch.PROVENANCE)
    assert {row.name.split(".")[0] for row in kernel_scratch.PROVENANCE} == {
        "cublas_workspace",
        "column_sum",
        "embedding_backward",
        "layer_norm_backward",
        "foreach_norm",
    }
