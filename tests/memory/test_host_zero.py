"""ZeRO-Offload's host bytes, worked by hand from the package's buffers."""

from __future__ import annotations

from typing import Any

from rigsize.memory.host_records import Weight
from rigsize.memory.host_zero import SUB_GROUP, zero_items
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy

BIG = Weight(name="w", shape=(1000, 1000), itemsize=2, trainable=True)
SMALL = Weight(name="b", shape=(1000,), itemsize=2, trainable=True)
PSI = 1_001_000


def rows(weights: list[Weight], ranks: int = 2, **more: Any) -> dict[str, tuple[int, int]]:
    """Row: bytes, and of them pinned."""
    strategy = Strategy(**{"precision": "bf16", "optimizer": "adamw-fused", **more})
    found: dict[str, tuple[int, int]] = {}
    for item in zero_items(weights, strategy, Mesh(shard=ranks, per_node=ranks)):
        total, pinned = found.get(item.row, (0, 0))
        pinned += item.num_bytes if item.pinned else 0
        found[item.row] = (total + item.num_bytes, pinned)
    return found


def test_stage_2_with_the_optimizer_on_the_host() -> None:
    half = PSI // 2
    assert rows([BIG, SMALL], parallel="zero2", offload="optimizer") == {
        "offload.optimizer_states": (8 * half + 4, 0),
        "offload.master_copy": (4 * half, 4 * half),
        "offload.parameters": (2 * half, 2 * half),
        "offload.gradients": (4 * half + 2 * 10**6, 4 * half + 2 * 10**6),
    }


def test_stage_2_accumulates_in_16_bits_of_its_partition() -> None:
    once = rows([BIG, SMALL], parallel="zero2", offload="optimizer")["offload.gradients"]
    more = rows([BIG, SMALL], parallel="zero2", offload="optimizer", accumulation=8)
    assert more["offload.gradients"][0] - once[0] == 2 * (500_000 + 500)


def test_stage_3_with_both_on_the_host() -> None:
    half = PSI // 2
    assert rows([BIG, SMALL], parallel="zero3", offload="cpu") == {
        "offload.optimizer_states": (8 * half + 4, 0),
        "offload.master_copy": (4 * half, 0),
        "offload.gradients": (2 * half + 4 * half, 2 * half + 4 * half),
        "offload.parameters": (2 * half, 2 * half),
    }


def test_stage_3_steps_on_sub_groups() -> None:
    huge = Weight(name="w", shape=(25, 10**8), itemsize=2, trainable=True)
    found = rows([huge], ranks=1, parallel="zero3", offload="optimizer")
    assert found["offload.master_copy"] == (4 * 25 * 10**8, 0)
    assert found["offload.gradients"][0] == 2 * 25 * 10**8 + 4 * SUB_GROUP


def test_parameters_alone() -> None:
    assert rows([BIG], parallel="zero3", offload="cpu-params") == {
        "offload.parameters": (10**6, 10**6)
    }


def test_nothing_leaves_without_offload() -> None:
    assert rows([BIG], parallel="zero3") == {}
