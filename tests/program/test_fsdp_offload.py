"""FSDP2's offload: hooks equal to the byte against the real one on the fake accelerator; bytes."""

from __future__ import annotations

import warnings
from itertools import zip_longest
from typing import Any

import pytest
from tests.program import tiny_profile as tiny
from tests.program.fsdp_referee import Sharding
from tests.program.offload_referee import predicted, real

from rigsize.hardware import find_accelerator
from rigsize.program.build import Program, build_program
from rigsize.program.environment import environment_of
from rigsize.program.mesh import Mesh
from rigsize.program.timeline import COPY_IN, Place
from rigsize.spec import Strategy

CASES = [
    (Sharding(family="xlm-roberta", world=2), True),
    (Sharding(family="xlm-roberta", world=2), False),
    (Sharding(family="xlm-roberta", world=3, precision="amp-bf16"), True),
    (Sharding(family="xlm-roberta", world=3, precision="amp-bf16"), False),
    (Sharding(family="llama", world=1), True),
    (Sharding(family="llama", world=1, precision="amp-bf16"), True),
    (Sharding(family="llama", world=2, precision="bf16", reshard=False), True),
    (Sharding(family="xlm-roberta", world=8, recompute=True), True),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "offload"), CASES, ids=[f"{run} {'offload' * o}" for run, o in CASES]
)
def test_every_hook_allocates_what_the_real_one_does(run: Sharding, offload: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XLM-R's logits are a view, of which FSDP2 warns
        theirs = real(run, offload=offload)
    ours = predicted(run, offload=offload)
    differing = [pair for pair in zip_longest(ours, theirs) if pair[0] != pair[1]]
    assert not differing, f"{len(differing)} of {len(theirs)}: {differing[:4]}"
    assert {hook.name.split()[0] for hook in theirs} >= {"pre_forward", "post_backward"}


def build(**more: Any) -> Program:
    """The tiny profile over four ranks."""
    strategy = Strategy(**{"micro_batch": 2, "parallel": "fsdp", "offload": "cpu", **more})
    environment = environment_of(find_accelerator("A100-40GB"), strategy)
    mesh = Mesh(shard=4, per_node=4)
    return build_program(tiny.profile(), tiny.POINT, strategy, environment, mesh)


def test_the_device_keeps_no_shard_no_gradient_and_no_state() -> None:
    program = build(accumulation=2)
    kept = {p.category for p in alive(program, program.slices["load"])}
    assert kept == {"buffers", "inputs"}
    assert not program.slices["optimizer_first"]
    assert not program.slices["optimizer"]
    for name in ("micro", "accumulate"):
        assert alive(program, program.slices[name]) == []


def test_without_offload_they_are_there() -> None:
    program = build(offload="none")
    kept = {p.category for p in alive(program, program.slices["load"])}
    assert {"weights.blocks", "weights.embeddings"} < kept
    assert {p.category for p in alive(program, program.slices["micro"])} == {"gradients"}


def test_copies_come_in_on_the_copy_stream() -> None:
    timeline = build().timeline
    copies = [s for s, p in enumerate(timeline.places) if p.op == "FSDP.copy_in"]
    assert copies
    assert {timeline.streams[storage] for storage in copies} == {COPY_IN}


def test_the_host_has_what_the_device_has_not() -> None:
    from rigsize.memory.host_items import fsdp_items
    from rigsize.memory.host_records import Weight

    program = build(optimizer="adamw-fused")
    weights = [
        Weight(name=p.name, shape=p.shape, itemsize=p.itemsize, trainable=p.trainable)
        for p in program.parameters
    ]
    strategy = Strategy(parallel="fsdp", offload="cpu", optimizer="adamw-fused")
    items = list(fsdp_items(weights, strategy, Mesh(shard=4, per_node=4)))
    shards = [item.num_bytes for item in items if item.row == "offload.parameters"]
    assert shards == [shard.num_bytes for shard in program.stepped]


def alive(program: Program, operations: list[int]) -> list[Place]:
    """Places of what a slice allocates and does not free."""
    live: dict[int, None] = {}
    for operation in operations:
        if operation >= 0:
            live[operation] = None
        else:
            live.pop(~operation, None)
    return [program.timeline.places[s] for s in live if program.timeline.sizes[s]]
