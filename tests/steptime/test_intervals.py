import math

import pytest

from rigsize.steptime.intervals import (
    PROGRAM_P90,
    Quantiles,
    narrowed,
    per_second,
    scaled,
    total_of,
    widened,
)


def test_an_independent_factor_adds_in_squares_and_upwards_only() -> None:
    # Logarithms .3 and .4: 90 % point exp(sqrt(.09 + .16)) = exp(.5).
    drawn = Quantiles(1.8, 2.0, 2.0 * math.exp(0.3))
    found = widened(drawn, math.exp(0.4))
    assert found.p90 == pytest.approx(2.0 * math.exp(0.5))
    assert (found.p10, found.p50) == (1.8, 2.0)
    assert narrowed(found, math.exp(0.4)).p90 == pytest.approx(drawn.p90)
    assert widened(drawn, 1.0) == pytest.approx(drawn)


def test_a_point_of_no_seconds_stays_one() -> None:
    assert widened(Quantiles(0.0, 0.0, 0.0)) == (0.0, 0.0, 0.0)


def test_the_packaged_factor_widens_and_says_that_it_is_fitted() -> None:
    assert widened(Quantiles(1.0, 1.0, 1.0)).p90 == pytest.approx(PROGRAM_P90.value)
    assert PROGRAM_P90.basis == "fitted"


def test_sums_multiples_and_rates_go_bound_by_bound() -> None:
    one, two = Quantiles(1.0, 2.0, 4.0), Quantiles(2.0, 2.0, 4.0)
    assert total_of((one, two)) == (3.0, 4.0, 8.0)
    assert scaled(one, 3.0) == (3.0, 6.0, 12.0)
    assert per_second(8.0, one) == (2.0, 4.0, 8.0)
