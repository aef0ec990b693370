"""Rates by hand: round seconds and round prices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.steptime.test_run_lines import step_of

from rigsize.steptime.rates import generation_of, rates_of_passes, usd_per_million
from rigsize.steptime.step import Part, Quantiles, StepTime


def passing(p10: float, p50: float, p90: float, bound_by: str = "compute") -> StepTime:
    parts = (Part(name="products", seconds=p50, basis="measured", note=""),)
    return replace(
        step_of(), step_s=Quantiles(p10, p50, p90), parts=parts, bound_by=bound_by, mfu=0.4
    )


def test_texts_a_second_by_hand() -> None:
    # 16 texts of 128 in half a second; the slow end of the time is the low end of the rate.
    found = rates_of_passes(passing(0.25, 0.5, 1.0), {"B": 16, "S": 128}, 1)
    assert found.texts_per_s == pytest.approx((16, 32, 64))
    assert found.read_per_s == pytest.approx((2048, 4096, 8192))
    assert found.written_per_s is None


def test_every_rank_reads_and_writes_its_own_texts() -> None:
    one, eight = (rates_of_passes(passing(1, 1, 1), {"B": 16, "S": 128}, ranks) for ranks in (1, 8))
    assert eight.texts_per_s.p50 == 8 * one.texts_per_s.p50
    assert one.read_per_s is not None
    assert eight.read_per_s is not None
    assert eight.read_per_s.p50 == 8 * one.read_per_s.p50
    _, rates = generation_of(passing(1, 1, 1), passing(1, 1, 1), 4, 2, 8)
    assert rates.texts_per_s.p50 == 8 * 4 / 2
    assert rates.written_per_s is not None
    assert rates.written_per_s.p50 == 8 * 4 * 2 / 2


def test_an_unpadded_row_is_read_once() -> None:
    found = rates_of_passes(passing(1, 1, 1), {"B": 16, "S": 128, "N": 500}, 1)
    assert found.read_per_s is not None
    assert found.read_per_s.p50 == 500


def test_generation_by_hand() -> None:
    # 1 s of prefill gives the first token, 100 further ones take 0.1 s each: 11 s for 101 x 4.
    prefill, decode = passing(1, 1, 1), passing(0.05, 0.1, 0.2, "memory bandwidth")
    call, rates = generation_of(prefill, decode, 4, 101, 1)
    assert call.step_s == pytest.approx((6, 11, 21))
    assert call.bound_by == "memory bandwidth"
    assert sum(part.seconds for part in call.parts) == pytest.approx(call.step_s.p50)
    assert rates.texts_per_s.p50 == pytest.approx(4 / 11)
    assert rates.written_per_s is not None
    assert rates.written_per_s.p50 == pytest.approx(404 / 11)
    assert rates.prefill_s == prefill.step_s
    assert rates.decode_s == decode.step_s
    assert call.mfu == pytest.approx(0.4)


def test_a_single_token_is_the_prefill() -> None:
    call, rates = generation_of(passing(1, 2, 3), passing(1, 1, 1, "memory bandwidth"), 4, 1, 1)
    assert call.step_s == pytest.approx((1, 2, 3))
    assert call.bound_by == "compute"
    assert rates.texts_per_s.p50 == 2


def test_a_million_by_hand() -> None:
    # 1,000 a second are 3.6 million an hour: at 3.60 USD an hour a million costs 1 USD.
    found = usd_per_million(Quantiles(500, 1000, 2000), 3.6)
    assert found == pytest.approx((0.5, 1.0, 2.0))
