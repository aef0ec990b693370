"""The bound by hand: two parameters, 4,096 and 100 elements, the second frozen where it says so."""

from __future__ import annotations

import pytest

from rigsize.program.bound import least_states_bytes
from rigsize.program.mesh import Mesh
from rigsize.program.timeline import Parameter
from rigsize.spec import Strategy

LARGE = Parameter("large", (64, 64), 4, True, 0)
SMALL = Parameter("small", (100,), 4, True, 1)
FROZEN = Parameter("small", (100,), 4, False, 1)
BOTH = 4196
ALONE = Mesh()


@pytest.mark.parametrize(
    ("strategy", "each"),
    [
        ({}, 4 + 4 + 8),
        ({"precision": "bf16"}, 2 + 2 + 4),
        ({"precision": "fp16-master"}, 2 + 2 + 4 + 8),
        ({"optimizer": "sgd"}, 4 + 4),
        ({"optimizer": "sgd", "optimizer_in_backward": True, "max_grad_norm": None}, 4),
        ({"parallel": "ddp"}, 4 + 4 + 4 + 8),  # the buckets are a second copy of the gradients
        ({"parallel": "ddp", "bucket_view": True}, 4 + 4 + 8),
    ],
)
def test_bytes_a_parameter(strategy: dict[str, object], each: int) -> None:
    made = Strategy(**strategy)  # type: ignore[arg-type]
    assert least_states_bytes([LARGE, SMALL], made, ALONE, training=True) == each * BOTH


def test_a_frozen_parameter_is_weights_alone() -> None:
    found = least_states_bytes([LARGE, FROZEN], Strategy(), ALONE, training=True)
    assert found == 16 * 4096 + 4 * 100


def test_all_of_it_is_spread_over_the_shards() -> None:
    strategy, mesh = Strategy(parallel="fsdp"), Mesh(shard=4, per_node=4)
    assert least_states_bytes([LARGE, SMALL], strategy, mesh, training=True) == 16 * BOTH // 4


def test_what_lies_on_the_host_or_is_stored_smaller_does_not_count() -> None:
    offloaded = Strategy(parallel="fsdp", offload="cpu")
    assert least_states_bytes([LARGE, SMALL], offloaded, ALONE, training=True) == 0
    int4 = Strategy(precision="int4")
    assert least_states_bytes([LARGE, SMALL], int4, ALONE, training=False) == 0
    assert least_states_bytes([LARGE, SMALL], Strategy(), ALONE, training=False) == 4 * BOTH
