from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.run.test_record import a_record

from rigsize.errors import SpecError, UnknownModel
from rigsize.evidence.cases import Case, RecordCase, load_cases, load_records
from rigsize.evidence.page import render_page, write_page
from rigsize.evidence.validate import Report, Result, SeedVerdict, summarise, validate
from rigsize.hardware.names import find_accelerator
from rigsize.models.source import resolve_model
from rigsize.run import host
from rigsize.run.compare import EstimateFunction, Prediction
from rigsize.run.record import Hardware, Memory, Versions, to_json
from rigsize.spec import Strategy, Workload

ROOT = Path(__file__).parents[2]


def answering(num_bytes: int, high_bytes: int | None = None) -> EstimateFunction:
    """An estimator that always gives the same bytes for all three peaks."""

    def estimate(*_: Any) -> Any:
        memory = SimpleNamespace(
            allocated_peak_bytes=num_bytes,
            reserved_peak_bytes=num_bytes,
            device_peak_bytes=num_bytes,
            low_bytes=num_bytes,
            high_bytes=high_bytes or num_bytes,
        )
        return SimpleNamespace(memory=memory)

    return estimate


def a_case(name: str, measured_bytes: int = 1000, **changes: Any) -> Case:
    case = Case(
        id=name,
        kind="published",
        source="a page",
        as_of="2026-01-01",
        measured_bytes=measured_bytes,
        printed=f"{measured_bytes} bytes",
        statistic="reserved",
        band_percent=3.0,
        band_declared="2026-01-01",
        fitted=False,
        gpu="A100-80GB",
        workload=Workload(model="openai-community/gpt2", task="causal-lm", max_length=8),
        strategy=Strategy(),
    )
    return replace(case, **changes)


def judged(*cases: Case, predicted_bytes: int = 1000) -> Report:
    return validate(cases, (), answering(predicted_bytes))


def test_a_case_that_must_miss_is_reported_as_missed() -> None:
    report = judged(a_case("near", 980), a_case("far", 900))
    assert [result.verdict for result in report.results] == ["inside", "missed"]
    assert [result.case_id for result in report.misses] == ["far"]
    assert report.exit_code == 4
    page = render_page(report)
    missed = page.partition("## Missed")[2].partition("##")[0]
    assert "| far |" in missed
    assert "| near |" not in missed
    assert "+11.11 %" in missed  # (1000 - 900) / 900


@pytest.mark.parametrize(
    ("measured", "verdict"), [(1000, "inside"), (971, "inside"), (970, "missed")]
)
def test_the_band_is_a_share_of_the_measurement(measured: int, verdict: str) -> None:
    # 3 % of 971 is 29.13, and 1000 - 971 = 29; 3 % of 970 is 29.1, and 1000 - 970 = 30.
    assert judged(a_case("edge", measured)).results[0].verdict == verdict


def test_a_fitted_case_never_counts_as_proof() -> None:
    report = judged(a_case("fitted, hit", fitted=True), a_case("fitted, far", 500, fitted=True))
    assert report.summaries == ()
    assert report.exit_code == 0
    assert not any(result.is_proof for result in report.results)
    assert [result.case_id for result in report.misses] == ["fitted, far"]  # named all the same
    page = render_page(report)
    before, _, fitted = page.partition("## Fitted")
    assert "fitted, hit" not in before
    assert "fitted, hit" in fitted
    assert "they prove nothing" in fitted
    mixed = judged(a_case("real", 950), a_case("fitted", fitted=True))
    assert mixed.summaries[0].count == 1


def test_summaries_by_hand() -> None:
    # Errors of 1000 against 1000, 800, 1250, 500: 0, +25, -20, +100 %. Absolute 0, 20, 25, 100:
    # median 22.5, p90 at rank 2.7: 25 + 0.7 * 75 = 77.5; bias (0 + 25 - 20 + 100) / 4 = 26.25.
    report = judged(*(a_case(str(size), size) for size in (1000, 800, 1250, 500)))
    (summary,) = report.summaries
    assert (summary.kind, summary.statistic) == ("published", "reserved")
    assert (summary.count, summary.missed) == (4, 3)
    assert summary.median_percent == pytest.approx(22.5)
    assert summary.p90_percent == pytest.approx(77.5)
    assert summary.worst_percent == pytest.approx(100)
    assert summary.bias_percent == pytest.approx(26.25)


def test_other_model_code_is_counted_apart() -> None:
    report = judged(a_case("ours"), a_case("theirs", other_model_code="their own"))
    kinds = [summary.kind for summary in report.summaries]
    assert kinds == ["published", "published, other model code"]


def test_what_cannot_be_answered_is_no_hit_and_no_miss() -> None:
    case = a_case("packed", workload=None, strategy=None, not_answerable="compile is not modelled")
    unknown = a_case("unknown", gpu="no such card")
    report = judged(case, unknown)
    assert [r.verdict for r in report.results] == ["not answerable yet", "no prediction"]
    assert report.summaries == ()
    assert "compile is not modelled" in render_page(report)


def test_a_model_that_is_gone_is_said() -> None:
    def resolve(name: str) -> Any:
        raise UnknownModel("model", name, "no such model")

    report = validate([a_case("a")], (), answering(1), resolve=resolve)
    assert "no such model" in report.results[0].reason


def a_run(device: str = "cuda", **changes: Any) -> RecordCase:
    here = host.versions()
    memory = Memory(
        allocated_peak_bytes=1000,
        reserved_peak_bytes=2000,
        device_peak_bytes=3000,
        context_bytes=1000,
        host_peak_bytes=1,
    )
    if device == "cpu":
        names = ("reserved_peak_bytes", "device_peak_bytes", "context_bytes")
        memory = replace(memory, **dict.fromkeys(names), unknown=dict.fromkeys(names, "not on CPU"))
    record = {"memory": memory, "device": device, "versions": here} | changes
    return RecordCase(record=a_record(**record))


def test_a_record_is_judged_by_each_peak_it_has() -> None:
    report = validate((), [a_run(), a_run("cpu")], answering(1000))
    assert [(r.kind, r.statistic, r.verdict) for r in report.results] == [
        ("record", "allocated", "inside"),
        ("record", "reserved", "missed"),
        ("record", "device", "missed"),
        ("record (cpu)", "allocated", "inside"),
    ]


def test_a_record_counts_under_its_own_versions_only() -> None:
    old = Versions(python="3.11.7", rigsize="0.1.0", torch="2.11.0", transformers="5.17.0")
    alone = a_run(versions=old)
    report = validate((), [alone], answering(1000))
    assert {result.verdict for result in report.results} == {"other versions"}
    assert report.summaries == ()
    beside = Prediction(
        allocated_peak_bytes=1000,
        reserved_peak_bytes=2000,
        device_peak_bytes=3000,
        low_bytes=1,
        high_bytes=4000,
    )
    report = validate((), [replace(alone, prediction=beside)], answering(7))
    assert {result.verdict for result in report.results} == {"inside"}


@pytest.mark.parametrize(("high", "verdict"), [(90, "missed"), (110, "inside")])
def test_out_of_memory_must_not_have_been_called_fits(high: int, verdict: str) -> None:
    card = Hardware(gpu="NVIDIA L4", gpu_memory_bytes=100)
    report = validate(
        (), [a_run(outcome="out_of_memory", hardware=card)], answering(80, high_bytes=high)
    )
    (result,) = report.results
    assert result.verdict == verdict
    assert result.error_percent is None


def test_a_failed_run_is_no_evidence() -> None:
    assert validate((), [a_run(outcome="failed")], answering(1)).results == ()


def test_the_page_says_what_no_gpu_has_shown() -> None:
    assert "Not shown on a GPU yet" in render_page(judged(a_case("a")))
    on_cpu = render_page(validate((), [a_run("cpu")], answering(1000)))
    assert "Not shown on a GPU yet" in on_cpu
    assert "nothing of the CUDA" in on_cpu
    assert "Not shown on a GPU yet" not in render_page(validate((), [a_run()], answering(1000)))


def test_the_seeds_verdicts_are_printed() -> None:
    rows = [SeedVerdict(row="Base 16", verdict="reproduced", note="1.6 % | edge")]
    report = validate((), (), answering(1), seed_rows=lambda: rows)
    assert "| Base 16 | reproduced | 1.6 % \\| edge |" in render_page(report)


def test_records_and_suite_lines_are_read(tmp_path: Path) -> None:
    record = to_json(a_record())
    (tmp_path / "one.json").write_text(json.dumps(record))
    lines = [
        {"id": "a", "record": record, "prediction": None},
        {"id": "b", "record": None, "record_unknown_reason": "refused"},
    ]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = load_records(tmp_path, fitted=frozenset({str(record["record_id"])}))
    assert [case.file for case in found] == ["one.json:1", "two.jsonl:1"]
    assert all(case.fitted for case in found)
    assert found[0].source.config == {"a": 1}
    assert load_records(tmp_path / "none") == ()


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_page(tmp_path / "docs" / "validation.md", judged(a_case("a")), [a_case("a")])
    assert (tmp_path / "docs" / "validation.md").read_text().startswith("# Validation")
    assert len(list((tmp_path / "docs").iterdir())) == 1


PUBLISHED = load_cases(ROOT / "validation" / "cases.toml")


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: case.id)
def test_every_published_case_can_be_asked(case: Case) -> None:
    assert find_accelerator(case.gpu)
    assert case.band_declared
    if case.workload is not None:
        assert resolve_model(case.workload.model, allow_network=False).origin == "bundled"
        assert case.assumptions


def test_the_published_figures_are_those_of_their_sources() -> None:
    figures = {case.id: (case.measured_bytes, case.statistic) for case in PUBLISHED}
    assert figures["peft-metamath-full-llama-3.2-3b"] == (38_868_615_168, "reserved")
    assert figures["torchtune-ablation-packed"] == (60 * 2**30, "allocated")
    assert len([name for name in figures if name.startswith("torchtune-ablation")]) == 8
    assert not any(case.fitted for case in PUBLISHED)


CASE = """
[[case]]
id = "a"
kind = "published"
source = "a page"
as_of = "2026-01-01"
gpu = "L4"
measured = 2
unit = "GiB"
statistic = "device"
band_percent = 5
band_declared = "2026-01-01"
fitted = false
not_answerable = "why"
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("GiB", "GB_ambiguous"), "unit: unknown value"),
        (lambda text: text.replace('"published"', '"rumour"'), "kind: unknown value"),
        (lambda text: text.replace('"device"', '"size"'), "statistic: unknown value"),
        (lambda text: text.replace("fitted = false\n", ""), "a: fitted: missing"),
        (lambda text: text.replace("= false", '= "no"'), "a: fitted: of the wrong type"),
        (lambda text: text.replace("fitted", "fited"), "unknown key of a case.*fitted"),
        (lambda text: text.replace("= 5", "= 0"), "no measurement or no band"),
        (lambda text: text.replace("= 2", "= -2"), "no measurement or no band"),
        (lambda text: text.replace('"why"', '""'), "has a spec, or says why"),
        (lambda text: text + "[case.spec]\nmodel = 3\n", "a: spec"),
        (lambda text: text + text, "used twice"),
        (lambda text: "case = 3", "not of"),
        (lambda text: "[[", "cannot be read"),
    ],
)
def test_bad_cases_are_one_clear_line(
    tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    (tmp_path / "cases.toml").write_text(change(CASE))
    with pytest.raises(SpecError, match=words):
        load_cases(tmp_path / "cases.toml")


def test_units_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "cases.toml").write_text(CASE)
    (case,) = load_cases(tmp_path / "cases.toml")
    assert case.measured_bytes == 2 * 2**30
    assert case.printed == "2 GiB"


def test_nothing_judged_gives_no_summary() -> None:
    result = Result(
        case_id="a",
        kind="published",
        statistic="reserved",
        measured_bytes=1,
        predicted_bytes=None,
        band_percent=3,
        fitted=False,
        verdict="no prediction",
    )
    assert summarise([result]) == ()
    assert "No case could be judged" in render_page(
        Report(results=(result,), summaries=(), seed=())
    )
