"""From a model to its hours: which work is asked for, at which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.steptime.test_run_lines import ALONE, ONE, STRATEGY, TUNING, work_of

from rigsize.models import resolve_model
from rigsize.program.work import Work
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.steptime.rates import usd_per_million
from rigsize.steptime.run_time import has_stored_work, run_time
from rigsize.texts.stats import LengthHistogram

SOURCE = resolve_model("openai-community/gpt2")
WRITING = Workload(
    model=SOURCE.name,
    task="causal-lm",
    use="inference",
    max_length=512,
    prompt_length=512,
    max_new_tokens=101,
)
Asked = list[tuple[str, Mapping[str, int]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What work was asked for; everything is answered with an invented layer."""
    found: Asked = []

    def answering(kind: str) -> Any:
        def work(*arguments: Any) -> Work:
            point = arguments[-1]
            found.append((kind, point))
            length = 1 if kind == "decode" else point["S"]
            training = arguments[1].training
            return replace(work_of(point["B"], length), training=training)

        return work

    monkeypatch.setattr("rigsize.steptime.run_time.work_for", answering("pass"))
    monkeypatch.setattr("rigsize.steptime.run_time.decode_work_for", answering("decode"))
    return found


def test_decoding_is_timed_half_way(asked: Asked) -> None:
    # 101 tokens: the prefill gives the first, 100 steps attend to 513 to 612 keys.
    found = run_time(SOURCE, WRITING, Strategy(micro_batch=4), ONE, draws=0)
    assert [kind for kind, _ in asked] == ["pass", "decode"]
    assert asked[0][1]["C"] == 612
    assert asked[1][1]["C"] == 612 - 49
    rates = found.rates
    assert rates is not None
    assert rates.prefill_s is not None
    assert rates.decode_s is not None
    whole = rates.prefill_s.p50 + 100 * rates.decode_s.p50
    assert found.step.step_s.p50 == pytest.approx(whole)
    assert found.lines == ()


def test_a_single_token_needs_no_decoding(asked: Asked) -> None:
    run_time(SOURCE, replace(WRITING, max_new_tokens=1), Strategy(), ONE, draws=0)
    assert [kind for kind, _ in asked] == ["pass"]


def test_a_million_texts_cost_what_the_run_costs(asked: Asked) -> None:
    # 128,000 texts are 1,000 whole batches of 16 in each of eight ranks.
    workload = replace(TUNING, use="inference", examples=128_000)
    eight = Cluster(accelerator=ONE.accelerator, per_node=8)
    strategy = Strategy(micro_batch=16, parallel="ddp")
    found = run_time(SOURCE, workload, strategy, eight, around=ALONE, draws=0)
    assert found.rates is not None
    line = found.lines[0]
    assert line.name == "inference"
    usd_per_hour = 10.0
    million = usd_per_million(found.rates.texts_per_s, usd_per_hour).p50
    assert million * 0.128 == pytest.approx(line.seconds.p50 / 3600 * usd_per_hour)


def test_written_tokens_are_computed_too(asked: Asked) -> None:
    found = run_time(SOURCE, replace(WRITING, examples=8), Strategy(micro_batch=4), ONE, draws=0)
    assert found.tokens == 8 * (512 + 101)


def test_lengths_give_a_usual_batch_and_the_number_of_texts(asked: Asked) -> None:
    lengths = LengthHistogram(((10, 500), (100, 500)))
    workload = replace(TUNING, examples=None, padding="dynamic")
    found = run_time(SOURCE, workload, STRATEGY, ONE, lengths=lengths, around=ALONE, draws=0)
    # 16 random texts are all short once in 65,536: the usual longest is a long one.
    assert asked[-1][1]["S"] == 100
    assert found.steps is not None
    assert found.steps.examples == 1000
    fixed = replace(TUNING, examples=None)
    run_time(SOURCE, fixed, STRATEGY, ONE, lengths=lengths, around=ALONE, draws=0)
    assert asked[-1][1]["S"] == 128


def test_what_is_stored_is_known_before_anything_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: set[str] = {"prefill"}

    def stored(key: Any, _point: Mapping[str, int]) -> object:
        return key if (key.cache or "whole") in held else None

    monkeypatch.setattr("rigsize.steptime.run_time.stored_work", stored)
    assert not has_stored_work(SOURCE, TUNING, STRATEGY, ONE)
    assert not has_stored_work(SOURCE, WRITING, Strategy(), ONE)  # decoding is missing
    assert has_stored_work(SOURCE, replace(WRITING, max_new_tokens=1), Strategy(), ONE)
    held |= {"decode", "whole"}
    assert has_stored_work(SOURCE, TUNING, STRATEGY, ONE)
    assert has_stored_work(SOURCE, WRITING, Strategy(), ONE)
