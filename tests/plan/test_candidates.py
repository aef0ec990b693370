"""The grid: which machines, which ways, which batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plan.made import place

from rigsize.errors import SizingError
from rigsize.hardware import find_accelerator
from rigsize.hardware.offers import Offer, packaged_offers
from rigsize.models import resolve_model
from rigsize.plan.candidates import Job, batches, own_places, places, ways
from rigsize.plan.records import Limits
from rigsize.spec import Strategy, Workload

WORKLOAD = Workload(model="xlm-roberta-base", task="masked-lm", use="pre-training", max_length=128)


def _offer(card: str = "L4", count: float = 1, usd: float | None = 1.0, **changes: object) -> Offer:
    made = place(card, 1, 1, 1.0).offer
    return replace(made, gpu_count=count, on_demand_usd_per_hour=usd, **changes)  # type: ignore[arg-type]


@given(st.integers(1, 20_000), st.integers(1, 3000))
def test_batches_make_the_global_batch(total: int, ranks: int) -> None:
    found = batches(total, ranks)
    if ranks > total:
        assert found == ()
        return
    share = -(-total // ranks)
    assert [micro for micro, _ in found] == sorted({m for m, _ in found}, reverse=True)
    # One text at a time comes as near as any: where it does not do, nothing does.
    assert bool(found) == (share * ranks <= total * 1.02)
    assert {micro for micro, _ in found} >= ({1, share} if found else set())
    for micro, accumulation in found:
        made = micro * accumulation * ranks
        assert total <= made <= total * 1.02


def test_batches_by_hand() -> None:
    assert batches(16, 2) == ((8, 1), (4, 2), (2, 4), (1, 8))
    assert batches(17, 16) == batches(7, 2) == ()  # 32 and 8 would be other runs
    assert batches(18, 2) == ((9, 1), (3, 3), (1, 9))  # 2, 4 and 8 would make 20, 24 and 32
    assert batches(24, 2, 6) == ((6, 2),)  # what the user gave
    assert batches(16, 2, 6) == ()  # 24 texts a step would be another run
    assert batches(3, 8) == ()


def test_only_whole_shapes_that_train_and_are_sold() -> None:
    offers = [
        _offer(count=0.5),
        _offer(usd=None),
        _offer("Inferentia2"),
        _offer("K80"),
        _offer(provider="other"),
        _offer(usd=2.0, instance="dearer"),
        _offer(usd=2.0, instance="more-host", host_memory_gib=64.0),
    ]
    found, left = places(offers, Limits(provider="made", max_gpus=4))
    of_l4 = [p for p in found if p.cluster.accelerator.id == "L4"]
    shapes = {(p.offer.instance, p.cluster.nodes) for p in of_l4}
    assert shapes == {("more-host", 1), ("more-host", 2), ("more-host", 4)}
    assert {one.kind for one in left} == {
        "slice", "not_sold", "no_pytorch", "not_asked_for", "dearer_offer"
    }  # fmt: skip
    assert sum(one.count for one in left if one.kind == "not_asked_for") == 1


def test_the_same_machine_is_taken_where_it_is_cheapest() -> None:
    offers = [_offer(usd=2.0, region="a"), _offer(usd=1.0, region="b"), _offer(usd=1.0, region="c")]
    found, left = places(offers, Limits(max_gpus=1))
    assert [(p.offer.region, p.usd_per_hour) for p in found] == [("b", 1.0)]
    assert [(one.kind, one.count) for one in left] == [("dearer_offer", 2)]
    assert places(offers[::-1], Limits(max_gpus=1))[0][0].offer.region == "b"


def test_spot_needs_a_spot_price() -> None:
    cheap = _offer(spot_usd_per_hour=0.25)
    found, left = places([cheap, _offer("T4")], Limits(spot=True, max_gpus=2))
    assert [(p.usd_per_hour, p.cluster.nodes) for p in found] == [(0.25, 1), (0.5, 2)]
    assert [one.kind for one in left] == ["not_sold"]


def test_headroom_lessens_every_card() -> None:
    whole = find_accelerator("L4").capacity_bytes or 0
    found, _ = places([_offer()], Limits(headroom_share=0.1, headroom_bytes=5, max_gpus=1))
    assert found[0].cluster.accelerator.capacity_bytes == whole - int(whole * 0.1)
    assert found[0].offer.accelerator.capacity_bytes == whole


def test_own_machines_may_be_used_in_part() -> None:
    machine = _offer("A100-40GB", 8)
    found = own_places(machine, 8, 3, Limits())
    shapes = [(p.cluster.per_node, p.cluster.nodes) for p in found]
    assert shapes == [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 3)]
    # Of 8 GPUs that cost 1 USD an hour together, those that are used.
    assert [p.usd_per_hour for p in found] == [0.125, 0.25, 0.5, 1.0, 2.0, 3.0]
    free = replace(machine, on_demand_usd_per_hour=0.0)
    assert {p.usd_per_hour for p in own_places(free, 8, 3, Limits())} == {0.0}


def test_boards_with_two_dies_count_dies() -> None:
    found, _ = places([_offer("K80", 1)], Limits())
    assert not found  # no CUDA that torch is built for
    board = next(o for o in packaged_offers() if o.accelerator.devices == 2)
    shapes = [p.cluster.per_node for p in own_places(board, 2, 1, Limits())]
    assert shapes == [1, 2]  # each die is a device


def test_ways_are_all_that_the_records_allow() -> None:
    source = resolve_model("xlm-roberta-base")
    found, refused = ways(source, [Job(recipe="seed", workload=WORKLOAD, strategy=Strategy())])
    kinds = {(w.strategy.parallel, w.strategy.offload) for w in found}
    assert ("fsdp", "cpu") in kinds
    assert ("zero1", "cpu") not in kinds  # refused by ZeRO's own rules
    assert ("fsdp", "cpu-params") not in kinds
    assert refused > 0
    assert [w.order for w in found] == list(range(len(found)))
    assert len({w.strategy for w in found}) == len(found)
    plain = found[0].strategy
    assert (plain.parallel, plain.offload, plain.recompute) == ("single", "none", "none")


@pytest.mark.parametrize(
    ("field", "value"), [("parallel", "fsdp"), ("precision", "fp32"), ("recompute", "block")]
)
def test_what_is_given_is_not_varied(field: str, value: str) -> None:
    job = Job(recipe="seed", workload=WORKLOAD, strategy=Strategy(), fixed={field: value})
    found, _ = ways(resolve_model("xlm-roberta-base"), [job])
    assert found
    assert {getattr(w.strategy, field) for w in found} == {value}


def test_pods_without_a_network_undersell_no_machine_that_has_one() -> None:
    pod = _offer(usd=1.0, provider="vast", host_memory_gib=512.0)
    rented = _offer(usd=2.0, instance="node", host_memory_gib=64.0)
    fast = _offer(usd=3.0, instance="fast", host_memory_gib=64.0, network_gbit_per_s=400.0)
    found, _ = places([pod, rented, fast], Limits(max_gpus=4))
    most = {one.offer.instance: one.cluster.nodes for one in found}
    assert most == {pod.instance: 1, "node": 4, "fast": 4}
    rates = {one.cluster.network_bytes_per_s for one in found if one.offer.instance == "fast"}
    assert rates == {400e9 / 8}


def test_what_no_way_allows_is_refused_with_its_reason() -> None:
    source = resolve_model("xlm-roberta-base")
    strategy = Strategy(optimizer="adafactor")
    for fixed, field in (({"parallel": "tp"}, "parallel"), ({"parallel": "zero1"}, "optim")):
        job = Job(recipe="as given", workload=WORKLOAD, strategy=strategy, fixed=fixed)
        with pytest.raises(SizingError) as refused:
            ways(source, [job])
        assert refused.value.field == field
