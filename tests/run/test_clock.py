from __future__ import annotations

import pytest

from rigsize.run.clock import LEAST_TIMED_STEPS, TimedStep, pace


def steps(*times_s: float, tokens: int = 100) -> list[TimedStep]:
    return [
        TimedStep(time_s=time_s, texts=4, real_tokens=tokens, computed_tokens=2 * tokens)
        for time_s in times_s
    ]


def test_the_pace_of_the_steady_steps() -> None:
    # The first two are left out; of 1, 1, 2, 1, 1 seconds the rates are 100, 100, 50, 100, 100:
    # median 100 tokens/s, quartiles 100 and 100. 3,600 texts at 4 a second take a quarter hour.
    found = pace(steps(9.0, 9.0, 1.0, 1.0, 2.0, 1.0, 1.0), examples=3600)
    assert found.steady_steps == 5
    assert found.step_s == 1.0
    assert found.real_tokens_per_s == 100.0
    assert found.examples_per_s == 4.0
    assert found.spread == 0.0
    assert found.padding_share == 0.5
    assert found.epoch_hours == pytest.approx(0.25)
    assert found.warning == ""


def test_noisy_steps_are_warned_of_with_the_remedy() -> None:
    # Rates 100, 50, 100/3, 25, 20: quartiles 25 and 50 over the median 33.3: 75 %.
    found = pace(steps(9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0), examples=None)
    assert found.spread == pytest.approx(0.75)
    assert "varies by 75 %" in found.warning
    assert "more --steps" in found.warning
    assert found.epoch_hours is None
    assert "--examples" in found.unknown["epoch_hours"]


def test_few_steps_are_not_quoted() -> None:
    found = pace(steps(*[1.0] * (LEAST_TIMED_STEPS - 1)), examples=10)
    assert found.real_tokens_per_s is None
    assert f"--steps {LEAST_TIMED_STEPS}" in found.unknown["real_tokens_per_s"]
    assert found.padding_share == 0.5


def test_times_that_mean_nothing_are_not_quoted() -> None:
    found = pace(steps(*[1.0] * 9), examples=10, doubt="a fake process group")
    assert found.step_s is None
    assert found.unknown["step_s"] == "a fake process group"
