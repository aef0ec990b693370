"""Hours and money as text and JSON, of an invented run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from tests.report.conftest import Estimated
from tests.report.test_document import walk
from tests.steptime.test_run_lines import TUNING, run_of, step_of
from tests.test_money import ONE, TODAY, offer

from rigsize.money import break_even, cost
from rigsize.report.answer import Answer
from rigsize.report.console import write
from rigsize.report.document import estimate_document
from rigsize.report.text import estimate_text
from rigsize.report.time import time_text
from rigsize.report.time_document import cost_document, time_document
from rigsize.report.timed import Timed
from rigsize.steptime.rates import rates_of_passes
from rigsize.steptime.run_lines import RunTime
from rigsize.steptime.step import Part


def run() -> RunTime:
    found = run_of()
    parts = (
        Part(name="products", seconds=8.0, basis="measured", note=""),
        Part(name="optimizer", seconds=2.0, basis="derived", note="by hand"),
    )
    return replace(found, step=replace(found.step, parts=parts))


def timed(found: RunTime | None = None, **more: Any) -> Timed:
    found = run() if found is None else found
    return Timed(run=found, reason="", cost=cost(found, offer(), ONE, TODAY), **more)


def printed(parts: Iterable[Any], capsys: pytest.CaptureFixture[str]) -> str:
    write(parts)
    return " ".join(capsys.readouterr().out.split())


def test_the_lines_and_their_prices_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(time_text(timed()), capsys)
    # 474 s of training at 2 USD an hour.
    assert "training 7 min 54 s 6 min 19 s to 11 min 51 s 0.26 derived" in text
    assert "a step 10.0 s (8.0 s to 15.0 s), bound by compute; MFU 50%" in text
    assert "2.00 USD/h on demand, price of 2026-11-01 from a page" in text
    assert "products" not in text


def test_the_parts_of_a_step_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(time_text(timed(explained=True)), capsys)
    assert "products 8.0 s 80.0 % measured" in text


def test_without_texts_there_are_no_hours(capsys: pytest.CaptureFixture[str]) -> None:
    found = timed(run_of(replace(TUNING, examples=None)))
    text = printed(time_text(found), capsys)
    assert "no number of texts: --examples N" in text
    assert "acme one (any), 2.00 USD/h on demand" in text
    document = time_document(found)
    assert document["epoch_hours"] is None
    assert document["step_s"] == {"p10": 8.0, "p50": 10.0, "p90": 15.0}
    assert cost_document(found)["usd"] is None


def test_a_reason_in_place_of_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    refused = Timed(reason="gpus: no published rate", cost_reason="there is no time to pay for")
    assert printed(time_text(refused), capsys) == "time: gpus: no published rate"
    assert time_document(refused)["step_s_unknown_reason"] == "gpus: no published rate"
    assert cost_document(refused)["price_date"] is None


def test_buying(capsys: pytest.CaptureFixture[str]) -> None:
    found = run()
    bought = break_even(found, cost(found, offer(), ONE, TODAY), ONE, 2_000.0, 0.0)
    text = printed(time_text(timed(found, bought=bought)), capsys)
    assert "buying for 2,000 USD: cheaper after 1,000 hours of use" in text
    document = cost_document(timed(found, bought=bought))["break_even"]
    assert document["hours"] == 1000.0
    assert document["runs"] == pytest.approx(1000 / found.hours.p50)
    unknown = replace(bought, runs=None)
    document = cost_document(timed(found, bought=unknown))["break_even"]
    assert document["runs_unknown_reason"].startswith("no number of texts")


def test_a_million_of_inference(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_of(replace(TUNING, use="inference"))
    found = replace(found, rates=rates_of_passes(step_of(), {"B": 16, "S": 128}, 1))
    assert "1.6 (1.07 to 2) texts/s" in printed(time_text(timed(found)), capsys)
    # 1.6 texts a second at 2 USD an hour: 347.22 USD a million.
    assert cost_document(timed(found))["usd_per_million"]["texts"]["p50"] == pytest.approx(
        347.22, 1e-4
    )
    assert "tokens_read_per_s" in time_document(timed(found))["rates"]


def test_the_document_adds_up_and_says_why_it_does_not_know(estimated: Estimated) -> None:
    answer = Answer(estimate=estimated(), timed=timed(command=("--examples", "1000", "--time")))
    document = estimate_document(answer)
    json.dumps(document, allow_nan=False)
    time, money = document["time"], document["cost"]
    assert sum(part["seconds"] for part in time["parts"]) == pytest.approx(time["step_s"]["p50"])
    for bound in ("p10", "p50", "p90"):
        whole = sum(line["seconds"][bound] for line in time["lines"])
        assert time["run_hours"][bound] * 3600 == pytest.approx(whole)
        assert money["usd"][bound] == pytest.approx(sum(x["usd"][bound] for x in money["lines"]))
    for path, holder, value in walk({"time": time, "cost": money}):
        key = path.rpartition(".")[2]
        assert value is not None or f"{key}_unknown_reason" in holder, path
    assert document["command"].endswith("--gpus A100-40GB-SXM --examples 1000 --time")
    assert "invented" in document["assumptions"]


def test_the_answer_in_words_has_it(
    estimated: Estimated, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(estimate_text(Answer(estimate=estimated(), timed=timed())), capsys)
    assert "of the run" in text
    assert "assumed: invented" in text
