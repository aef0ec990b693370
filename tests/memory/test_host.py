"""The host's ledger: rows sum to the peak, moments by hand, laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stored import stored_estimate

from rigsize.memory.host import host_memory
from rigsize.memory.host_moments import HostRun, Moments
from rigsize.memory.host_processes import CPU_PROCESS, CUDA_PROCESS
from rigsize.memory.host_records import Weight
from rigsize.program.mesh import Mesh
from rigsize.spec import Strategy, Workload

MIB = 1 << 20
MATRIX = Weight(name="w", shape=(1024, 1024), itemsize=4, trainable=True)
"""4 MiB."""


def run(ranks: int = 1, *, use: str = "fine-tuning", saved: Any = None, **more: Any) -> HostRun:
    strategy = Strategy(**{"optimizer": "adamw-fused", "max_grad_norm": None, **more})
    mesh = Mesh(replicas=ranks, per_node=ranks)
    if strategy.parallel in ("fsdp", "zero2", "zero3"):
        mesh = Mesh(shard=ranks, per_node=ranks)
    return HostRun(
        workload=Workload(model="m", task="masked-lm", use=use, max_length=128, examples=1000),
        strategy=strategy,
        mesh=mesh,
        weights=tuple(replace(MATRIX, name=str(number)) for number in range(4)),
        batch_bytes=1000,
        file_itemsize=4,
        saved=saved or {},
    )


def test_one_card_by_hand() -> None:
    rows = Moments(run()).rows()
    texts = {"data.texts": 1000 * (128 * 4 + 8), "data.batches": 2 * 1000, "pinned.rounding": 0}
    assert rows["loading"] == {"load.checkpoint": 16 * MIB, "load.weights": 0, **texts}
    texts["offload.paged_states"] = 0
    assert rows["a step"] == texts
    # Weights, two moments and four step counters; on the host a copy and the file's bytes.
    assert rows["saving a checkpoint"] == {"checkpoint": 2 * (48 * MIB + 16), **texts}
    assert rows["exporting the model"] == {"export": 16 * MIB, **texts}


def test_another_dtype_is_converted_by_every_rank_that_reads() -> None:
    weights: dict[str, Any] = {"precision": "bf16"}
    alone = Moments(run(**weights)).rows()["loading"]
    assert (alone["load.checkpoint"], alone["load.weights"]) == (16 * MIB, 8 * MIB)
    ddp = Moments(run(4, parallel="ddp", **weights)).rows()["loading"]
    assert (ddp["load.checkpoint"], ddp["load.weights"]) == (16 * MIB, 4 * 8 * MIB)
    fsdp = Moments(run(4, parallel="fsdp", **weights)).rows()["loading"]
    assert (fsdp["load.checkpoint"], fsdp["load.weights"]) == (16 * MIB, 8 * MIB)


def test_fsdp_with_offload_by_hand() -> None:
    rows = Moments(run(4, parallel="fsdp", offload="cpu")).rows()
    assert rows["a step"]["offload.parameters"] == 16 * MIB
    assert rows["a step"]["offload.gradients"] == 16 * MIB
    assert rows["a step"]["offload.optimizer_states"] == 32 * MIB + 4 * 4 * 4
    assert rows["loading"]["offload.parameters"] == 16 * MIB
    assert "offload.gradients" not in rows["loading"]
    # Pinned gradients are freed by nobody; shards are on the host, so a file's bytes are all.
    assert rows["saving a checkpoint"]["offload.gradients"] == 16 * MIB
    assert rows["saving a checkpoint"]["checkpoint"] == 4 * ((48 * MIB + 16) // 4)


def test_saved_activations_are_there_in_a_step_and_cached_after() -> None:
    rows = Moments(run(offload="activations", saved={"save": [3 * MIB]})).rows()
    assert rows["a step"]["offload.activations"] == 3 * MIB
    assert rows["a step"]["pinned.rounding"] == MIB
    assert rows["exporting the model"]["offload.activations"] == 3 * MIB
    assert "offload.activations" not in rows["loading"]


def test_paged_states_are_pages_of_the_host() -> None:
    rows = Moments(replace(run(2, parallel="ddp"), paged_bytes=MIB)).rows()
    assert rows["a step"]["offload.paged_states"] == 2 * MIB
    assert "offload.paged_states" not in rows["loading"]


def test_inference_loads_and_runs() -> None:
    found = host_memory(run(use="inference"))
    assert [name for name, _ in found.moments] == ["loading", "a step"]
    assert found.moment == "loading"


def test_where_the_host_is_the_device_its_tensors_count() -> None:
    on_cpu = replace(run(), tensors_bytes=100 * MIB)
    found = host_memory(on_cpu)
    assert dict(found.moments)["a step"] - dict(found.moments)["loading"] == 84 * MIB
    rows = {row.name: row for row in found.ledger}
    assert rows["processes"].num_bytes == CPU_PROCESS.value.on_node(1).mid
    assert rows["processes"].basis == "measured"


def test_the_band() -> None:
    found = host_memory(run())
    band = CUDA_PROCESS.value.on_node(1)
    assert found.high_bytes - found.peak_bytes == band.high - band.mid
    # Without the pages of the mapped texts.
    assert found.peak_bytes - found.low_bytes == band.mid - band.low + 1000 * (128 * 4 + 8)


def test_fsdp_says_what_loading_on_every_rank_would_take() -> None:
    (note,) = host_memory(run(4, parallel="fsdp", precision="bf16")).notes
    assert "where every rank builds the whole model" in note
    assert host_memory(run(4, parallel="ddp")).notes == ()


strategies = st.sampled_from(
    [
        {},
        {"parallel": "ddp"},
        {"parallel": "ddp", "offload": "optimizer"},
        {"parallel": "fsdp", "offload": "cpu"},
        {"parallel": "fsdp", "offload": "cpu", "accumulation": 4},
        {"parallel": "zero2", "offload": "optimizer", "precision": "bf16"},
        {"parallel": "zero3", "offload": "cpu", "precision": "bf16"},
        {"parallel": "fsdp", "precision": "amp-bf16"},
    ]
)


@settings(max_examples=60, deadline=None)
@given(strategies, st.integers(1, 16), st.lists(st.integers(1, 10**7)))
def test_rows_sum_to_the_peak(strategy: dict[str, Any], ranks: int, saved: list[int]) -> None:
    found = host_memory(run(ranks, saved={"save": saved}, **strategy))
    assert sum(row.num_bytes for row in found.ledger) == found.peak_bytes
    assert found.low_bytes <= found.peak_bytes <= found.high_bytes
    assert found.peak_bytes == max(total for _, total in found.moments)
    assert all(row.num_bytes > 0 for row in found.ledger)


REPLICATED = [{"parallel": "ddp"}, {"parallel": "ddp", "offload": "optimizer"}]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(REPLICATED), st.integers(1, 8), st.integers(1, 8))
def test_more_ranks_on_a_node_never_need_less_of_what_each_has(
    strategy: dict[str, Any], few: int, more: int
) -> None:
    one, other = (Moments(run(n, **strategy)).rows()["a step"] for n in (few, few + more))
    assert all(other[name] >= size for name, size in one.items())
    totals = [host_memory(run(n, **strategy)).peak_bytes for n in (few, few + more)]
    assert totals[0] < totals[1]


@given(st.integers(1, 16))
def test_offloaded_shards_of_all_ranks_are_the_model_and_their_padding(ranks: int) -> None:
    rows = Moments(run(ranks, parallel="fsdp", offload="cpu")).rows()["a step"]
    for name in ("offload.parameters", "offload.gradients"):
        assert 16 * MIB <= rows[name] < 16 * MIB + ranks * 4 * 4096


def test_a_bundled_model_on_its_stored_profile() -> None:
    answer = stored_estimate(optimizer="adamw-fused", offload="optimizer")
    rows = {row.name: row.num_bytes for row in answer.host.ledger}
    moved = rows["offload.parameters"]
    assert moved == rows["offload.gradients"]
    # 278.0 M weights and a classifier; all but norms and biases are moved.
    assert 0.99 < moved / (4 * answer.parameters.trainable) < 1
    assert (
        answer.memory.allocated_peak_bytes
        < stored_estimate(optimizer="adamw-fused").memory.allocated_peak_bytes - 1.9 * moved
    )


@pytest.mark.parametrize(
    ("host_gib", "verdict", "of_card"),
    [(64, "fits", "fits"), (5, "does_not_fit", "fits"), (11, "tight", "fits")],
)
def test_card_and_host_are_both_checked(host_gib: int, verdict: str, of_card: str) -> None:
    from rigsize.estimate import estimate

    answer = stored_estimate(optimizer="adamw-fused", offload="optimizer")
    cluster = replace(answer.cluster, host_memory_bytes=host_gib << 30)
    asked = estimate(answer.source, answer.workload, answer.strategy, cluster)
    assert (asked.fit.verdict, asked.fit.of_card) == (verdict, of_card)
    assert asked.fit.host_headroom_bytes == (host_gib << 30) - asked.host.peak_bytes
    assert asked.fit.host_is_worse == (verdict != "fits")
