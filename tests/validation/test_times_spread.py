"""The factor that is fitted to intervals, by hand."""

import math

import pytest
from validation.times_rows import PROOF, question_of
from validation.times_spread import (
    SPREAD_FITTED,
    Point,
    fit_lines,
    fitted_factor,
    holds_percent,
    spread_words,
)

from rigsize.steptime.intervals import Quantiles, widened

TENTH = Quantiles(1 / math.exp(0.1), 1.0, math.exp(0.1))


def point(group: str, logarithm: float) -> Point:
    """A time so far above a p50 of one second; the interval holds the packaged factor."""
    return Point(group, math.exp(logarithm), widened(TENTH))


def test_no_slice_that_proves_is_fitted_on() -> None:
    assert not set(PROOF) & set(SPREAD_FITTED)


def test_what_is_missing_is_the_factor_that_reaches_the_time() -> None:
    # sqrt(.5^2 - .1^2) = .4899: with it, p90 is exp(.5).
    assert point("a", 0.5).missing == pytest.approx(math.sqrt(0.24))
    assert point("a", 0.05).missing == 0.0
    assert point("a", -0.5).missing == 0.0


def test_each_slice_has_one_vote() -> None:
    # Nine slices of one row hold, a tenth's four rows do not: 9 of 10 votes need no factor. With
    # eight that hold, the ninth vote is that of the smaller of the two others.
    holding = [point(name, 0.0) for name in SPREAD_FITTED[:9]]
    four = [point("z", 0.5)] * 4
    assert fitted_factor([*holding, *four]) == 1.0
    two = [point("y", 0.3), point("z", 0.5)]
    assert fitted_factor([*holding[:8], *two]) == pytest.approx(math.exp(math.sqrt(0.08)))


def test_pinball_and_coverage_by_hand() -> None:
    # At exp(.2) above (1/e^.1, 1, e^.1): .1 x .3, .5 x .2 and .9 x .1, their mean .0733.
    above = Point("a", math.exp(0.2), TENTH)
    assert above.pinball == pytest.approx(100 * 0.22 / 3)
    assert not above.held
    assert holds_percent([above, Point("a", 1.0, TENTH)]) == 50.0
    assert spread_words([point("a", 0.2)]).startswith("Intervals: 100 % held, p90/p10 1.")
    assert "without the fitted factor 0 % held, p90/p10 1.22" in spread_words([point("a", 0.2)])


def test_the_fit_is_said_with_each_slice_left_out() -> None:
    names = SPREAD_FITTED[:2]
    found = list(fit_lines([point(names[0], 0.5), point(names[1], 0.0), point("other", 9.0)]))
    assert found[0].startswith("PROGRAM_P90 of 2 slices, 2 rows: 1.632 (packaged ")
    assert found[1].startswith(f"- without {names[0]}: 1.000; its 1 rows then: 0 % held")
    assert list(fit_lines([point("other", 1.0)])) == []


LLAMA = {
    "id": "made-up",
    "slice": "torchtitan-a100-2024",
    "model": "Llama-2-13B",
    "seq_len": "4096",
    "micro_batch": "2",
    "n_gpus": "64",
    "n_nodes": "8",
    "activation_checkpointing": "selective (op)",
    "step_time_s": "4.3",
}


def test_a_row_of_another_slice_becomes_a_question() -> None:
    question = question_of(LLAMA)
    assert question.strategy.parallel == "fsdp"
    assert question.strategy.recompute == "selective"
    assert (question.cluster.per_node, question.cluster.nodes) == (8, 8)
    # One text of two: (micro x length) / tokens a second is asked of a micro-step.
    qlora = LLAMA | {
        "slice": "fsdp-qlora-cloud",
        "gpu": "A100-SXM",
        "tokens_per_s_per_gpu": "4096",
        "model": "Llama-2-70B",
    }
    assert question_of(qlora).seconds == 2.0
