"""FSDP2 on the hand-made profile: bytes by hand, refusals, and the laws of sharding.

Whole: embeddings 256,000 B, classifier 512 B, three layers of 16,384 + 256 B. Against torch:
test_fsdp_against_torch.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.program import tiny_profile as tiny

from rigsize.errors import UnsupportedCombination
from rigsize.memory.replay import replay_exact
from rigsize.program.build import Program, build_program
from rigsize.program.environment import Environment
from rigsize.program.fsdp_group import Policy, Sharded, managed_order, policy_of, split
from rigsize.program.mesh import Mesh
from rigsize.program.timeline import COPY_IN, REDUCE_SCATTER, Parameter
from rigsize.spec import Strategy

ROOT, LAYER = 256_512, 16_640


def sharded(
    ranks: int,
    environment: Environment = tiny.CPU,
    *,
    point: dict[str, int] = tiny.POINT,
    use: str = "training",
    parallel: str = "fsdp",
    replicas: int = 1,
    **strategy: Any,
) -> Program:
    mesh = Mesh(shard=ranks, replicas=replicas, per_node=ranks)
    chosen = Strategy(parallel=parallel, **strategy)
    return build_program(tiny.profile(use=use), point, chosen, environment, mesh)


def changes(program: Program, name: str, count: int) -> list[int]:
    """Bytes that the first operations of a slice add or take."""
    sizes = program.timeline.sizes
    return [sizes[op] if op >= 0 else -sizes[~op] for op in program.slices[name][:count]]


def totals(program: Program, *slices: str) -> Counter[str]:
    """Bytes that slices allocate, by category."""
    found: Counter[str] = Counter()
    for name in slices:
        for operation in program.slices[name]:
            if operation >= 0:
                place = program.timeline.places[operation]
                found[place.category] += program.timeline.sizes[operation]
    return found


def test_a_rank_loads_its_shards() -> None:
    # Half the rows: 500 x 64, 3 x (32 x 64 + 32), 1 x 64 numbers of 4 bytes.
    assert totals(sharded(2), "load") == {
        "weights.embeddings": 128_000,
        "weights.blocks": 3 * (8_192 + 128),
        "weights.lm_head": 256,
        "buffers": 1024,
        "inputs": 128,
    }


def test_uneven_rows_are_padded() -> None:
    # 3 ranks: 334 of 1000 rows, 22 of 64, 1 of 2.
    found = totals(sharded(3), "load")
    assert found["weights.embeddings"] == 334 * 256
    assert found["weights.blocks"] == 3 * (22 * 256 + 22 * 4)
    assert found["weights.lm_head"] == 256


def test_forward_gathers_one_layer_ahead_of_nothing() -> None:
    program = sharded(2)
    assert changes(program, "micro", 11) == [
        ROOT,  # the root's gathered tensor, then its copies
        256_000,
        512,
        4096,  # embeddings
        LAYER,
        16_384,
        256,
        -ROOT,  # held until the layer's copy-out has ended
        4096,
        4096,
        -16_384,  # resharded
    ]
    streams = program.timeline.streams
    gathered = program.slices["micro"][4]
    assert streams[gathered] == COPY_IN


def test_one_rank_copies_and_gathers_nothing() -> None:
    assert changes(sharded(1), "micro", 5) == [256_000, 512, 4096, 16_384, 256]
    assert not set(sharded(1).timeline.streams.values()) & {COPY_IN}


def test_gradients_are_reduced_to_flat_shards() -> None:
    program = sharded(2)
    storages = {p.gradient for p in program.stepped}
    assert storages == {-1}  # zero_grad has freed them
    streams = program.timeline.streams
    kept = [
        s
        for s in program.slices["micro"]
        if s >= 0 and ~s not in program.slices["micro"] and program.timeline.sizes[s]
    ]
    assert sorted(program.timeline.sizes[s] for s in kept) == [LAYER // 2] * 3 + [ROOT // 2]
    assert {streams[s] for s in kept} == {REDUCE_SCATTER}
    assert all(~s in program.slices["optimizer"] for s in kept)


def test_what_is_kept_whole_is_not_gathered_again() -> None:
    again, once = (totals(sharded(2, reshard_after_forward=r), "micro") for r in (True, False))
    assert again["weights.gathered"] == ROOT + 2 * 3 * LAYER
    assert once["weights.gathered"] == ROOT + 3 * LAYER


def test_inference_leaves_the_root_whole() -> None:
    program = sharded(2, use="inference")
    assert totals(program, "first")["weights.gathered"] == ROOT + 3 * LAYER
    assert totals(program, "micro")["weights.gathered"] == 3 * LAYER
    first, later = (replay_exact(program).steps, totals(program, "micro")["communication.buffers"])
    assert first == 2
    assert later == 3 * LAYER


def test_amp_shards_in_fp32_and_reduces_in_it() -> None:
    policy = policy_of(Strategy(precision="amp-bf16", parallel="fsdp"))
    assert policy == Policy(stored_bytes=4, reduce_bytes=4)
    half = split(Parameter("a.weight", (10, 3), 2, True, -1), 4, policy)
    # 3 of 10 rows a rank: 9 numbers, kept in 4 bytes, gathered in 2 from all four ranks.
    assert (half.shard.num_bytes, half.input_bytes, half.gathered_bytes) == (36, 18, 72)
    assert half.casts
    assert policy_of(Strategy(precision="bf16", parallel="fsdp")) == Policy()


def test_a_module_comes_behind_its_children() -> None:
    def named(name: str, category: str = "weights.other", rows: int = 2) -> Sharded:
        whole = Parameter(name, (rows, 4), 4, True, -1, category=category)
        return split(whole, 2, Policy())

    head = [
        named("lm_head.bias", "weights.lm_head", 9),
        named("lm_head.dense.w", "weights.lm_head"),
    ]
    tied = named("roberta.embeddings.word.weight", "weights.embeddings", 7)
    rest = named("roberta.embeddings.position.weight", "weights.embeddings", 5)
    order = [p.whole.name for p in managed_order([*head, tied, rest])]
    # The head's decoder is the tied weight, met there, before the head's own bias.
    assert order == [
        "lm_head.dense.w",
        "roberta.embeddings.word.weight",
        "lm_head.bias",
        "roberta.embeddings.position.weight",
    ]


def test_hsdp_holds_what_it_all_reduced() -> None:
    plain, copies = (
        replay_exact(sharded(2, parallel=p, replicas=r)).allocated_peak_bytes
        for p, r in (("fsdp", 1), ("hsdp", 4))
    )
    assert plain == copies  # fp32: the gradients are that very tensor


def test_more_shards_than_elements_are_refused() -> None:
    with pytest.raises(UnsupportedCombination, match="64,000 elements, fewer than there are"):
        sharded(64_001)
    sharded(64_000)


RANKS = st.integers(1, 40)
BATCHES = st.integers(2, 12)


def held(program: Program) -> tuple[int, int, int]:
    """Sharded parameters, gradients and states of the rank, in bytes."""
    micro = program.slices["micro"]
    weights = sum(n for name, n in totals(program, "load").items() if name.startswith("weights"))
    kept = (s for s in micro if s >= 0 and ~s not in micro)
    gradients = sum(program.timeline.sizes[s] for s in kept)
    return weights, gradients, totals(program, "optimizer_first")["optimizer_states"]


@given(ranks=RANKS, more=st.integers(1, 40), precision=st.sampled_from(["fp32", "amp-bf16"]))
def test_more_shards_never_hold_more(ranks: int, more: int, precision: str) -> None:
    few, many = (held(sharded(n, precision=precision)) for n in (ranks, ranks + more))
    assert all(a >= b for a, b in zip(few, many, strict=True))


@given(
    ranks=RANKS,
    batch=BATCHES,
    reshard=st.booleans(),
    accumulation=st.integers(1, 3),
    parallel=st.sampled_from(["fsdp", "hsdp"]),
)
def test_a_larger_batch_never_needs_less(
    ranks: int, batch: int, reshard: bool, accumulation: int, parallel: str
) -> None:
    peaks = [
        replay_exact(
            sharded(
                ranks,
                point={"B": size, "S": 8, "T": 0},
                parallel=parallel,
                accumulation=accumulation,
                reshard_after_forward=reshard,
            )
        ).allocated_peak_bytes
        for size in (batch, batch + 1)
    ]
    assert peaks[0] <= peaks[1]


@given(
    ranks=RANKS, accumulation=st.integers(1, 3), optimizer=st.sampled_from(["sgd", "adamw-foreach"])
)
def test_a_step_leaves_what_it_found(ranks: int, accumulation: int, optimizer: str) -> None:
    program = sharded(ranks, accumulation=accumulation, optimizer=optimizer)
    alive: Counter[int] = Counter()
    for number in range(3):
        for name in program.step(number):
            for operation in program.slices[name]:
                alive[max(operation, ~operation)] += 1 if operation >= 0 else -1
                assert alive[max(operation, ~operation)] in (0, 1)
        left = {program.timeline.places[s].category for s, n in alive.items() if n}
        assert left <= {"optimizer_states"}
