import math
import statistics

import pytest

from rigsize.steptime.constants import Span
from rigsize.steptime.draws import Cause, draws, misaligned_cause


def test_a_factor_has_median_one_and_its_spans_ends() -> None:
    span = Cause(name="a", span=Span(0.5, 1.0, 4.0))
    assert span.at(0.0) == 1.0
    assert span.at(1.645) == pytest.approx(4.0)
    assert span.at(-1.645) == pytest.approx(0.5)
    assert Cause(name="b", sigma=0.1).at(1.0) == pytest.approx(math.exp(0.1))


def test_draws_are_the_same_each_time_and_each_cause_has_its_own() -> None:
    causes = (Cause(name="a", sigma=0.1), Cause(name="b", sigma=0.1))
    one, two = list(draws(causes, 50)), list(draws(causes, 50))
    assert one == two
    assert [d["a"] for d in one] != [d["b"] for d in one]
    alone = [d["a"] for d in draws(causes[:1], 50)]
    assert alone == [d["a"] for d in one]


def test_a_thousand_draws_have_the_sigma_that_was_asked_for() -> None:
    logs = [math.log(d["a"]) for d in draws((Cause(name="a", sigma=0.2),), 1000)]
    assert statistics.stdev(logs) == pytest.approx(0.2, rel=0.1)
    assert statistics.median(logs) == pytest.approx(0.0, abs=0.02)


def test_misaligned_rows_cost_one_to_three_times() -> None:
    cause = misaligned_cause("m", 0.0)
    assert 2.0 * cause.at(1.645) == pytest.approx(3.0)
    assert 2.0 * cause.at(-1.645) == pytest.approx(1.0)
