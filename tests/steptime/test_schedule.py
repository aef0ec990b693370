"""What travels when, by hand."""

from collections.abc import Iterable

import pytest
from tests.steptime.works import encoder_work

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.spec import Cluster, Strategy
from rigsize.steptime import collective
from rigsize.steptime.constants import NETWORK_BYTES_PER_S, PCIE_SHARE
from rigsize.steptime.links import Links
from rigsize.steptime.prices import Pricer
from rigsize.steptime.schedule import Schedule, schedule

A100 = find_accelerator("A100-80GB-SXM")
MIB = 1 << 20


def count(values: Iterable[float], wanted: float) -> int:
    return sum(value == pytest.approx(wanted) for value in values)


def planned(per_node: int = 8, nodes: int = 1, **settings: object) -> Schedule:
    strategy = Strategy(precision="bf16", **settings)  # type: ignore[arg-type]
    work = encoder_work(layers=3, hidden=1024)
    cluster = Cluster(accelerator=A100, per_node=per_node, nodes=nodes)
    links = Links.of(work, strategy, cluster, None)
    return schedule(work, strategy, Pricer(A100, strategy, None), links, 8_000_000)


def test_ddp_buckets_in_the_last_micro_step_alone() -> None:
    # A layer has 12 x 1024**2 parameters, 24 MiB of bf16 gradients. Backward: layer 3 closes the
    # first bucket at 1 MiB and keeps 23; layer 2 closes 25 after 2 of its 24 and keeps 22; layer 1
    # closes 25 after 3 and keeps 21; then the embedding of 32,000 x 1024 joins these.
    plan = planned(parallel="ddp", accumulation=3)
    assert not any(row.reductions for row in (*plan.first, *plan.middle))
    found = [row.reductions for row in plan.last if row.reductions]
    shares = [[share for share, _ in row] for row in found]
    by_hand = [[1 / 24], [2 / 24], [3 / 24], [1.0]]
    assert [pytest.approx(row) for row in by_hand] == shares
    assert found[0][0][1] == collective(A100, "all_reduce", MIB, 8).seconds
    assert found[1][0][1] == collective(A100, "all_reduce", 25 * MIB, 8).seconds
    rest = 21 * MIB + 32000 * 1024 * 2
    assert found[3][0][1] == collective(A100, "all_reduce", rest, 8).seconds


def test_fsdp_gathers_layers_twice_and_the_root_once() -> None:
    plan = planned(parallel="fsdp")
    gathers = [row.gather_s for row in plan.last if row.gather_s]
    layer = collective(A100, "all_gather", 12 * 1024**2 * 2, 8).seconds
    assert count(gathers, layer) == 6
    assert plan.last[0].gather_s == collective(A100, "all_gather", 32000 * 1024 * 2, 8).seconds
    kept = planned(parallel="fsdp", reshard_after_forward=False)
    assert count((row.gather_s for row in kept.last), layer) == 3
    assert sum(bool(row.reductions) for row in plan.last) == 4
    assert sum(bool(row.reductions) for row in planned(parallel="fsdp", accumulation=2).first) == 4


def test_hsdp_shares_the_network_of_a_node() -> None:
    # 8 shards in each of two nodes: each rank all-reduces an eighth with its twin, and the eight
    # of a node share 12.5 GB/s.
    plan = planned(nodes=2, parallel="hsdp")
    layer = 12 * 1024**2 * 2
    inside = collective(A100, "reduce_scatter", layer, 8).seconds
    rate = NETWORK_BYTES_PER_S.value.mid / 8
    across = collective(
        A100, "all_reduce", layer // 8, 2, nodes=2, network_bytes_per_s=rate
    ).seconds
    found = [row.reductions[0][1] for row in plan.last if row.reductions]
    assert found[0] == pytest.approx(inside + across)


def test_zero_reduces_by_stage() -> None:
    for stage, reduces in (("zero1", [False, True]), ("zero2", [True, True])):
        plan = planned(parallel=stage, accumulation=2)
        rows = (plan.first, plan.last)
        assert [any(row.reductions for row in micro) for micro in rows] == reduces
        assert plan.update[-1].gather_s > 0


def test_zero3_sends_its_gradients_to_where_it_steps() -> None:
    # An eighth of each layer's bf16 gradients over PCIe, whichever of the two offloads it is.
    for offload in ("optimizer", "cpu"):
        plan = planned(parallel="zero3", offload=offload)
        stored = [row.store_s for row in plan.last if row.store_s]
        rate = (A100.pcie_bytes_per_s or 0) * PCIE_SHARE.value.mid
        assert count(stored, 12 * 1024**2 * 2 / 8 / rate) == 3
        assert len(stored) == 4
    assert not any(row.store_s for row in planned(parallel="zero3", offload="cpu-params").last)


def test_zero2_brings_back_what_it_accumulates_on_the_host() -> None:
    # An eighth of all bf16 gradients goes out in the first micro-step, comes back and goes out in
    # the others, and in the last one goes out in fp32, too. ZeRO-1 keeps them on the device.
    part = sum(encoder_work(layers=3, hidden=1024).trainable) / 8
    rate = (A100.pcie_bytes_per_s or 0) * PCIE_SHARE.value.mid

    def stored(parallel: str, accumulation: int) -> list[float]:
        plan = planned(parallel=parallel, offload="optimizer", accumulation=accumulation)
        micros = (plan.first, plan.middle, plan.last) if accumulation > 1 else (plan.last,)
        return [sum(row.store_s for row in rows) * rate / part for rows in micros]

    assert stored("zero2", 3) == pytest.approx([2, 4, 8])
    assert stored("zero2", 1) == pytest.approx([4])
    assert stored("zero1", 3) == pytest.approx([0, 0, 4])


def test_offloaded_gradients_add_up_on_the_host() -> None:
    plan = planned(parallel="fsdp", offload="cpu", accumulation=3)
    assert not any(row.host_step_s for row in plan.first)
    # 3 times the shard's bytes through 28 bytes in .24 ns, eight ranks together.
    shard = 12 * 1024**2 * 2 / 8
    by_hand = 3 * shard * 0.24e-9 / 28 * 8
    assert count((row.host_step_s for row in plan.middle), by_hand) == 3
    assert all(row.store_s > 0 for row in plan.last if row.reductions)


def test_saved_activations_go_out_and_come_back() -> None:
    plan = planned(per_node=1, offload="activations")
    moved = [row.busy_s.get("copies over PCIe", 0.0) for row in plan.last]
    rate = (A100.pcie_bytes_per_s or 0) * 0.875
    assert sum(moved) == pytest.approx(2 * 8_000_000 / rate)


def test_ranks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedCombination):
        planned(per_node=3, nodes=2, parallel="hsdp", shard_size=4)
