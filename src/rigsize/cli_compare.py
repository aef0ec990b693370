"""`rigsize compare`: what other estimators say of a run, beside ours and beside a Record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.cli_common import Given, print_answer, say, settings_of, waiting
from rigsize.cli_job import parse_job, settle_parallel
from rigsize.cli_settings import Settings
from rigsize.cli_target import parse_target
from rigsize.errors import SpecError, UnsupportedCombination

if TYPE_CHECKING:
    from rigsize.estimate import Estimate
    from rigsize.run.compare import Comparison
    from rigsize.run.record import Record

__all__ = ["compare_verb"]

_OF_THE_ESTIMATE = ("spec", "trust_remote_code", "offline", "record", "json")
"""Flags that say nothing about the run itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is compared."""

    estimate: Estimate
    measured: Comparison | None
    assumed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """4 for a Record outside our band, 3 where ours does not fit, else 0."""
        outside = self.measured.exit_code if self.measured else 0
        return outside or (3 if self.estimate.fit.verdict == "does_not_fit" else 0)


def compare_verb(given: Given) -> int:
    """`rigsize compare MODEL [flags of estimate] [--record ID|FILE]`."""
    from rigsize.peers import ask_all, recorded
    from rigsize.report.compare import compare_document, compare_text

    settings = settings_of("compare", given)
    question = _of_record(settings) if settings.text("record") else _of_flags(settings)
    for warning in settings.warnings:
        say(f"warning: {warning}")
    with waiting("asking the other estimators; each builds the model without its weights"):
        answers = ask_all(question.estimate)
    measured = question.measured
    if measured is not None:
        answers = (answers[0], recorded(measured.record), *answers[1:])
    said = (question.estimate, answers, measured, question.assumed)
    print_answer(
        lambda: compare_document(*said), settings.switch("json"), lambda: compare_text(*said)
    )
    return question.exit_code


def _of_flags(settings: Settings) -> _Question:
    from rigsize.estimate import estimate

    target = parse_target(settings)
    job = settle_parallel(settings, parse_job(settings, "compare"), target.cluster)
    if job.auto_batch:
        raise SpecError("batch-size", "auto", "a comparison needs a number")
    with waiting(f"tracing {job.source.name}, which takes some seconds the first time"):
        found = estimate(job.source, job.workload, job.strategy, target.cluster)
    return _Question(estimate=found, measured=None, assumed=tuple(settings.assumed))


def _of_record(settings: Settings) -> _Question:
    """The run that a Record holds: its own model, spec, sizes and card."""
    from rigsize.estimate import estimate
    from rigsize.evidence.cases import RecordCase
    from rigsize.run.compare import compare, find_cluster, predict_record, question_of
    from rigsize.run.record_store import find_record, records_folder

    name = settings.text("record") or ""
    record: Record = find_record(name, records_folder()).record
    _check_same(settings, record)
    source = RecordCase(record=record).source
    workload, strategy, sizes = question_of(record)
    cluster = find_cluster(record.device, record.hardware.gpu)
    with waiting(f"tracing {source.name}, which takes some seconds the first time"):
        found = estimate(source, workload, strategy, cluster, sizes=sizes)
        prediction, reason = predict_record(source, record)
    return _Question(estimate=found, measured=compare(record, prediction, reason), assumed=())


def _check_same(settings: Settings, record: Record) -> None:
    """A Record says what ran: flags beside it would describe another run."""
    more = sorted(set(settings.given) - {*_OF_THE_ESTIMATE, "model"})
    if more:
        raise UnsupportedCombination(
            more[0].replace("_", "-"),
            settings.given[more[0]],
            "the Record says what ran",
            hint="give --record without the flags of a run",
        )
    model = settings.text("model")
    if model is not None and model not in (record.model.name, record.workload["model"]):
        raise SpecError("model", model, f"the Record is of {record.model.name}")
