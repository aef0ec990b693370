"""What leaves the device, tensor by tensor: hand-worked bytes, and the real FSDP2's shard sizes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.memory.host_items import fsdp_items, optimizer_items, saved_items, step_on_host
from rigsize.memory.host_records import HostItem, Weight
from rigsize.memory.pinned import pinned_bytes
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy

MATRIX = Weight(name="w", shape=(100, 64), itemsize=4, trainable=True)
VECTOR = Weight(name="b", shape=(100,), itemsize=4, trainable=True)
FROZEN = Weight(name="f", shape=(128, 64), itemsize=4, trainable=False)


def fused(**more: Any) -> Strategy:
    return Strategy(**{"optimizer": "adamw-fused", "parallel": "fsdp", "offload": "cpu", **more})


def sums(items: list[HostItem]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        found[item.row] = found.get(item.row, 0) + item.num_bytes
    return found


def test_fsdp_shards_over_three() -> None:
    # cdiv(100, 3) = 34 rows: 34 x 64 x 4 = 8,704 B and 136 B; 43 of the frozen one: 11,008 B.
    items = list(fsdp_items([MATRIX, VECTOR, FROZEN], fused(), Mesh(shard=3, per_node=3)))
    assert sums(items) == {
        "offload.parameters": 8704 + 136 + 11_008,
        "offload.gradients": 8704 + 136,
        "offload.optimizer_states": 2 * (8704 + 136) + 2 * 4,
        "temporaries": items[-1].num_bytes,
    }
    # Clipping: two norms of 4 B, stacked, and the scalars of the coefficient; nothing of a tensor.
    assert items[-1].num_bytes < 100
    assert {item.row for item in items if item.pinned} == {
        "offload.parameters",
        "offload.gradients",
    }


def test_an_accumulated_gradient_comes_through_pageable_memory() -> None:
    mesh = Mesh(shard=3, per_node=3)
    items = list(fsdp_items([MATRIX, VECTOR], fused(accumulation=4), mesh))
    extra = [i for i in items if i.row == "offload.gradients" and not i.pinned]
    assert [item.num_bytes for item in extra] == [8704]


def test_inference_keeps_shards_alone() -> None:
    items = list(fsdp_items([MATRIX], fused(), Mesh(shard=2, per_node=2), training=False))
    assert sums(items) == {
        "offload.parameters": 50 * 64 * 4,
        "offload.optimizer_states": 0,
        "temporaries": 0,
    }


def test_optimizer_offload_leaves_small_tensors_where_they_are() -> None:
    # 6,400 elements move, 100 do not (torchao's minimal_size is 4,096).
    strategy = Strategy(optimizer="adamw-fused", offload="optimizer", max_grad_norm=None)
    items = list(optimizer_items([MATRIX, VECTOR, FROZEN], strategy))
    assert sums(items) == {
        "offload.parameters": 25_600,
        "offload.gradients": 25_600,
        "offload.optimizer_states": 51_200 + 4,
        "temporaries": 0,
    }


def test_foreach_on_the_host_takes_a_copy_of_all_parameters() -> None:
    strategy = Strategy(optimizer="adamw-foreach", max_grad_norm=None)
    step = step_on_host([MATRIX, VECTOR], strategy)
    assert step.temporaries_bytes == 25_600 + 400
    assert step.states_bytes == 2 * 26_000 + 2 * 4


def test_every_save_is_a_tensor_of_its_own() -> None:
    items = list(saved_items({"save": [512, 512, 4097], "save_weight": [4096]}))
    assert [(i.row, i.num_bytes, i.rounding_bytes) for i in items] == [
        ("offload.activations", 512, 0),
        ("offload.activations", 512, 0),
        ("offload.activations", 4097, 4095),
        ("offload.saved_weights", 4096, 0),
    ]


shapes = st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=3).map(tuple), min_size=1)


@given(shapes, st.integers(1, 64), st.integers(1, 64))
def test_shards_in_total_grow_by_rounding_alone(
    found: list[tuple[int, ...]], few: int, more: int
) -> None:
    weights = [
        Weight(name=str(i), shape=s, itemsize=4, trainable=True) for i, s in enumerate(found)
    ]
    for ranks in (few, few + more):
        for weight in weights:
            total = ranks * weight.shard(ranks).numel
            row = weight.numel // weight.shape[0]
            assert weight.numel <= total < weight.numel + ranks * row
    each = [sum(w.shard(n).numel for w in weights) for n in (few, few + more)]
    assert each[1] <= each[0]


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_pinning_a_shard_never_takes_twice_its_bytes(rows: int, ranks: int) -> None:
    shard = Weight(name="w", shape=(rows, 8), itemsize=4, trainable=True).shard(ranks)
    item = HostItem(row="x", num_bytes=shard.numel * 4, pinned=True)
    assert 0 <= item.rounding_bytes < item.num_bytes
    assert item.num_bytes + item.rounding_bytes == pinned_bytes(item.num_bytes)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shards_are_those_of_the_real_fsdp2(ranks: int) -> None:
    from torch.distributed.fsdp._fully_shard._fsdp_common import _get_dim0_padded_size

    padded = _get_dim0_padded_size(__import__("torch").Size(MATRIX.shape), ranks)
    assert MATRIX.shard(ranks).numel == padded.numel() // ranks
