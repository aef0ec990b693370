"""The search for unstated settings: which sets it tries, in which order, and what it returns."""

from __future__ import annotations

from rigsize.seed_settings import CONTRADICTS, possible_settings, smallest_settings
from rigsize.spec import Strategy

DDP = Strategy(parallel="ddp")
OFFLOADED = Strategy(parallel="fsdp", offload="cpu")


def test_what_may_have_been_otherwise_depends_on_what_is_stated() -> None:
    assert {s.name for s in possible_settings(DDP)} >= {"FSDP instead of DDP", "pure bf16"}
    assert not any("DDP" in s.name for s in possible_settings(OFFLOADED))
    assert any(s.name == "no CPU offload" for s in possible_settings(OFFLOADED))
    fused = Strategy(optimizer="adamw-fused")
    assert all(s.name != "fused AdamW" for s in possible_settings(fused))


def test_all_sets_of_the_lowest_cost_are_found() -> None:
    found = smallest_settings(DDP, lambda s: s.precision in ("bf16", "fp16-master"))
    assert [str(one) for one in found] == ["fp16 with fp32 master copies", "pure bf16"]
    assert all(one.cost == 1 and not one.contradicts for one in found)


def test_silence_is_taken_before_contradiction() -> None:
    """Two settings on which the text is silent, though one against its words would do."""

    def reproduces(strategy: Strategy) -> bool:
        both = strategy.optimizer == "adamw-fused" and strategy.recompute == "block"
        return both or strategy.parallel == "fsdp"

    (found,) = smallest_settings(DDP, reproduces)
    assert str(found) == "fused AdamW + recompute per block"


def test_a_contradiction_is_named() -> None:
    found = smallest_settings(DDP, lambda s: s.parallel == "fsdp" and s.offload == "none")
    assert [one.cost for one in found] == [CONTRADICTS]
    assert found[0].contradicts


def test_nothing_is_found_where_nothing_reproduces() -> None:
    tried: list[Strategy] = []

    def reproduces(strategy: Strategy) -> bool:
        tried.append(strategy)
        return False

    assert smallest_settings(DDP, reproduces) == []
    assert len(tried) == len(set(tried))
    # The Strategy itself refuses a loss scaler on sharded gradients.
    assert all(s.parallel != "fsdp" or s.precision != "fp16-master" for s in tried)
