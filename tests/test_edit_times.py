"""What a change costs in time, on a stored profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rigsize import edit_times
from rigsize.edit_times import step_s, time_of_edit
from rigsize.errors import UnsupportedCombination
from rigsize.estimate import Estimate, estimate
from rigsize.hardware import find_accelerator
from rigsize.models import resolve_model
from rigsize.search import is_stored
from rigsize.spec import Cluster, Strategy, Workload

CLUSTER = Cluster(accelerator=find_accelerator("A100-40GB"))
WORKLOAD = Workload(model="xlm-roberta-base", task="masked-lm", use="pre-training", max_length=128)
STRATEGY = Strategy(micro_batch=32, precision="fp32")


@pytest.fixture(scope="module")
def answer() -> Estimate:
    source = resolve_model("xlm-roberta-base")
    if not is_stored(source, WORKLOAD, STRATEGY, CLUSTER):
        pytest.skip("no profile of it is stored in this checkout: make profiles")
    return estimate(source, WORKLOAD, STRATEGY, CLUSTER)


def test_recompute_takes_longer_and_bf16_less(answer: Estimate) -> None:
    before = step_s(answer, STRATEGY, 0)
    assert before[0] is not None
    for changed, low, high in (
        (replace(STRATEGY, recompute="block"), 1.05, 1.4),  # of three passes a fourth, but the head
        (replace(STRATEGY, precision="amp-bf16"), 0.1, 0.9),
    ):
        found = time_of_edit(answer, before, changed, 0)
        assert found.reason == ""
        assert found.before_s == before[0]
        assert found.times_as_long is not None
        assert low < found.times_as_long < high


def test_a_text_is_compared_with_a_text(answer: Estimate) -> None:
    # Half the batch and no accumulation: the step is shorter, a text is not.
    before = step_s(answer, STRATEGY, 0)
    found = time_of_edit(answer, before, replace(STRATEGY, micro_batch=16), 0)
    assert found.before_s
    assert found.after_s
    assert found.times_as_long is not None
    assert found.times_as_long == pytest.approx(2 * found.after_s / found.before_s)
    assert found.times_as_long >= 0.99


def test_what_has_no_time_says_why(answer: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rigsize.steptime.run_time.stored_work", lambda *_: None)
    assert step_s(answer, STRATEGY, 0) == (None, edit_times.NOT_STORED)
    found = time_of_edit(answer, (1.0, ""), STRATEGY, 0)
    assert (found.after_s, found.times_as_long) == (None, None)
    assert found.reason == edit_times.NOT_STORED

    def refused(*_: object, **__: object) -> None:
        raise UnsupportedCombination("gpus", "x", "no rate")

    monkeypatch.setattr("rigsize.steptime.run_time.has_stored_work", lambda *_: True)
    monkeypatch.setattr("rigsize.steptime.run_time.run_time", refused)
    assert "no rate" in step_s(answer, STRATEGY, 0)[1]
