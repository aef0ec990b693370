"""USD by hand: a run of an hour on machines at round prices."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SizingError, SpecError, UnsupportedCombination
from rigsize.hardware import find_accelerator
from rigsize.hardware.offers import Offer
from rigsize.money import break_even, cost, find_offer, offers_for
from rigsize.spec import Cluster
from rigsize.steptime.run_lines import Line, RunTime
from rigsize.steptime.step import Quantiles
from tests.steptime.test_run_lines import step_of

TODAY = date(2026, 11, 28)
CARD = find_accelerator("A100-40GB-SXM")
ONE = Cluster(accelerator=CARD)


def offer(price: float | None = 2.0, **changed: Any) -> Offer:
    plain = Offer(
        provider="acme",
        instance="one",
        accelerator=CARD,
        gpu_count=1,
        gpu_memory_gib=None,
        vcpus=12,
        host_memory_gib=85,
        region="any",
        on_demand_usd_per_hour=price,
        spot_usd_per_hour=0.5,
        price_date="2026-11-01",
        status="current",
        source="a page",
        note="",
    )
    return replace(plain, **changed)


def run(*lines: Line) -> RunTime:
    return RunTime(
        step=step_of(),
        steps=None,
        lines=lines,
        tokens=None,
        energy_kwh=Quantiles(0.16, 0.3, 0.4),
        bound_by="compute",
        assumptions=(),
    )


HOUR = run(
    Line("training", Quantiles(2700, 3240, 4500), "derived", ""),
    Line("start-up", Quantiles(180, 360, 900), "assumed", ""),
)


def test_an_hour_costs_the_price_of_an_hour() -> None:
    found = cost(HOUR, offer(), ONE, TODAY)
    assert found.usd == pytest.approx((1.6, 2.0, 3.0))
    assert [line.name for line in found.lines] == ["training", "start-up"]
    assert [line.usd.p50 for line in found.lines] == pytest.approx([1.8, 0.2])
    assert (found.price_date, found.stale, found.notes) == ("2026-11-01", False, ())
    assert found.other_usd == pytest.approx(0.5)


def test_spot_is_the_other_price() -> None:
    found = cost(HOUR, offer(), ONE, TODAY, spot=True)
    assert found.usd.p50 == pytest.approx(0.5)
    assert found.other_usd == pytest.approx(2.0)
    assert "taken away" in found.notes[0]


def test_nodes_are_machines() -> None:
    cluster = Cluster(accelerator=CARD, per_node=8, nodes=3)
    found = cost(HOUR, offer(20.0, gpu_count=8), cluster, TODAY)
    assert (found.machines, found.usd_per_hour) == (3, 60.0)
    assert found.usd.p50 == pytest.approx(60)


def test_whole_shapes_only() -> None:
    found = cost(HOUR, offer(20.0, gpu_count=8), ONE, TODAY)
    assert found.usd.p50 == pytest.approx(20)
    assert "7 are paid for and idle" in found.notes[0]
    with pytest.raises(UnsupportedCombination, match="has 1 A100"):
        cost(HOUR, offer(), Cluster(accelerator=CARD, per_node=2), TODAY)


def test_linear_shapes_make_one_machine() -> None:
    two = Cluster(accelerator=CARD, per_node=2)
    assert cost(HOUR, offer(max_multiple=8), two, TODAY).usd.p50 == pytest.approx(4)


@pytest.mark.parametrize(
    ("day", "stale"),
    [("2026-11-28", False), ("2026-08-30", False), ("2026-08-29", True), ("", True)],
)
def test_a_price_gets_stale(day: str, stale: bool) -> None:
    found = cost(HOUR, offer(price_date=day), ONE, TODAY)
    assert found.stale is stale
    assert any("refresh" in note for note in found.notes) is stale


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"price_date": "2026-11-29"}, "a price of the future"),
        ({"price_date": "2027"}, "a price of the future"),
        ({"on_demand_usd_per_hour": -1.0}, "no on-demand price"),
        ({"on_demand_usd_per_hour": float("nan")}, "no on-demand price"),
        ({"on_demand_usd_per_hour": None}, "has no on-demand price"),
    ],
)
def test_prices_that_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        cost(HOUR, offer(**changed), ONE, TODAY)


def test_the_cheapest_machine_first() -> None:
    offers = (
        offer(3.0, instance="dear"),
        offer(None, instance="unpriced"),
        offer(1.0, instance="other", accelerator=find_accelerator("L4")),
        offer(2.0, instance="cheap"),
        offer(1.5, instance="slice", gpu_count=0.5),
        offer(2.0, provider="zeta", instance="cheap"),
    )
    assert [(o.provider, o.instance) for o in offers_for(offers, ONE)] == [
        ("acme", "cheap"),
        ("zeta", "cheap"),
        ("acme", "dear"),
    ]
    assert find_offer(offers, ONE).instance == "cheap"
    assert find_offer(offers, ONE, provider="Zeta").provider == "zeta"
    assert find_offer(offers, ONE, instance="dear").on_demand_usd_per_hour == 3.0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"provider": "acm"}, "did you mean acme"),
        ({"instance": "onee"}, "did you mean one"),
        ({"provider": "zeta"}, "zeta has no"),
    ],
)
def test_what_nobody_offers(asked: dict[str, str], words: str) -> None:
    zeta = offer(provider="zeta", instance="l4", accelerator=find_accelerator("L4"))
    with pytest.raises(SizingError, match=words):
        find_offer((offer(), zeta), ONE, **asked)  # type: ignore[arg-type]


def test_buying_by_hand() -> None:
    # 400 W at three quarters for 0.2 USD a kWh are 0.06 USD an hour; renting costs 2: 1,940 USD are
    # 1,000 hours.
    found = break_even(HOUR, cost(HOUR, offer(), ONE, TODAY), ONE, 1_940.0, 0.2)
    assert found.power_usd_per_hour == pytest.approx(0.06)
    assert found.hours == pytest.approx(1_000)
    assert found.runs == pytest.approx(1_000)


def test_buying_may_never_be_cheaper() -> None:
    found = break_even(HOUR, cost(HOUR, offer(0.05), ONE, TODAY), ONE, 1_940.0, 0.2)
    assert found.hours is None


def test_buying_needs_no_length_of_the_run() -> None:
    found = break_even(run(), cost(run(), offer(), ONE, TODAY), ONE, 1_940.0, 0.2)
    assert found.hours == pytest.approx(1_000)
    assert found.runs is None


def test_no_price_of_power_is_assumed_and_said() -> None:
    found = break_even(HOUR, cost(HOUR, offer(), ONE, TODAY), ONE, 1_940.0)
    assert any("--power-price" in note for note in found.notes)


@pytest.mark.parametrize(("own", "power"), [(-1.0, 0.1), (float("inf"), 0.1), (1.0, -0.1)])
def test_amounts_that_are_none(own: float, power: float) -> None:
    with pytest.raises(SpecError, match="no price"):
        break_even(HOUR, cost(HOUR, offer(), ONE, TODAY), ONE, own, power)


@given(
    seconds=st.lists(st.floats(0, 1e7), min_size=1, max_size=6),
    price=st.floats(0, 1e4),
    nodes=st.integers(1, 100),
)
def test_totals_are_the_sum_of_lines(seconds: list[float], price: float, nodes: int) -> None:
    lines = [Line(str(n), Quantiles(s, 2 * s, 3 * s), "derived", "") for n, s in enumerate(seconds)]
    cluster = Cluster(accelerator=CARD, nodes=nodes)
    found = cost(run(*lines), offer(price), cluster, TODAY)
    for bound in range(3):
        assert found.usd[bound] == pytest.approx(sum(line.usd[bound] for line in found.lines))
    assert found.usd.p50 == pytest.approx(price * nodes * 2 * sum(seconds) / 3600)


@pytest.mark.parametrize(
    ("asked", "count", "words"),
    [
        ({"provider": "zeta"}, 1, "zeta has no A100-40GB-SXM, but L4"),
        ({}, 9, "nobody in the catalogue has 9 A100-40GB-SXM in a machine, at most 1"),
        ({"spot": True}, 1, "the catalogue has 1 A100-40GB-SXM in a machine, but no spot price"),
    ],
)
def test_it_is_said_what_is_missing(asked: dict[str, Any], count: int, words: str) -> None:
    zeta = offer(provider="zeta", instance="l4", accelerator=find_accelerator("L4"))
    offers = (offer(spot_usd_per_hour=None), zeta)
    many = Cluster(accelerator=ONE.accelerator, per_node=count)
    with pytest.raises(SpecError, match=words):
        find_offer(offers, many, **asked)
