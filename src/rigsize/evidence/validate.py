"""Runs every case through an estimator and says which it missed.

Fitted cases are counted apart and never enter a figure that is offered as proof.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rigsize.errors import SizingError
from rigsize.evidence.cases import CPU_BAND_PERCENT, RECORD_BANDS_PERCENT, Case, RecordCase
from rigsize.models.source import ModelSource, resolve_model
from rigsize.run import host
from rigsize.run.compare import (
    EstimateFunction,
    Prediction,
    find_cluster,
    predict,
    question_of,
)
from rigsize.run.record import Record

__all__ = ["Report", "Result", "SeedVerdict", "Summary", "summarise", "validate"]

INSIDE = "inside"
MISSED = "missed"
NOT_ANSWERABLE = "not answerable yet"
NO_PREDICTION = "no prediction"
OTHER_VERSIONS = "other versions"
VERDICTS = (INSIDE, MISSED, NOT_ANSWERABLE, NO_PREDICTION, OTHER_VERSIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure predicted and measured."""

    case_id: str
    kind: str
    """seed, published or record, and what sets it apart: `record (cpu)`."""
    statistic: str
    measured_bytes: int | None
    predicted_bytes: int | None
    band_percent: float
    fitted: bool
    verdict: str
    """One of VERDICTS."""
    reason: str = ""
    other_model_code: str = ""

    @property
    def error_percent(self) -> float | None:
        """(predicted - measured) / measured; positive when the prediction is too high."""
        if self.predicted_bytes is None or not self.measured_bytes:
            return None
        return 100 * (self.predicted_bytes - self.measured_bytes) / self.measured_bytes

    @property
    def is_proof(self) -> bool:
        """Whether it counts: it was judged, and nothing was tuned on it."""
        return self.verdict in (INSIDE, MISSED) and not self.fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The errors of one kind and statistic, fitted cases left out."""

    kind: str
    statistic: str
    count: int
    median_percent: float
    p90_percent: float
    """Of the absolute error, as the median is."""
    worst_percent: float
    bias_percent: float
    """Mean of the signed error."""
    missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedVerdict:
    """One row of the seed's tables, as `rigsize table` judges it."""

    row: str
    verdict: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a validation says."""

    results: tuple[Result, ...]
    summaries: tuple[Summary, ...]
    seed: tuple[SeedVerdict, ...]

    @property
    def misses(self) -> tuple[Result, ...]:
        """Every result outside its band, fitted ones too."""
        return tuple(result for result in self.results if result.verdict == MISSED)

    @property
    def exit_code(self) -> int:
        """4 when a case that counts as proof was missed, else 0."""
        return 4 if any(result.is_proof for result in self.misses) else 0


def validate(
    cases: Iterable[Case],
    records: Iterable[RecordCase],
    estimate: EstimateFunction,
    *,
    resolve: Callable[[str], ModelSource] = resolve_model,
    seed_rows: Callable[[], Sequence[SeedVerdict]] | None = None,
) -> Report:
    """Judges all cases and Records.

    Args:
        cases: from `load_cases`.
        records: from `load_records`.
        estimate: `rigsize.estimate.estimate`.
        resolve: from a model's name to its source.
        seed_rows: the hook of `rigsize table`: the verdicts on the seed's rows.
    """
    results = [_judge_case(case, estimate, resolve) for case in cases]
    for record in records:
        results.extend(_judge_record(record, estimate))
    return Report(
        results=tuple(results),
        summaries=summarise(results),
        seed=tuple(seed_rows()) if seed_rows else (),
    )


def summarise(results: Sequence[Result]) -> tuple[Summary, ...]:
    """One Summary a kind and statistic, in order of appearance."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.is_proof:
            groups.setdefault((result.kind, result.statistic), []).append(result)
    return tuple(_summary(kind, statistic, group) for (kind, statistic), group in groups.items())


def _summary(kind: str, statistic: str, group: Sequence[Result]) -> Summary:
    signed = [result.error_percent or 0.0 for result in group]
    sizes = sorted(abs(error) for error in signed)
    return Summary(
        kind=kind,
        statistic=statistic,
        count=len(group),
        median_percent=statistics.median(sizes),
        p90_percent=_percentile(sizes, 0.9),
        worst_percent=sizes[-1],
        bias_percent=statistics.fmean(signed),
        missed=sum(result.verdict == MISSED for result in group),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _judge_case(
    case: Case, estimate: EstimateFunction, resolve: Callable[[str], ModelSource]
) -> Result:
    if case.workload is None or case.strategy is None:
        return _result_of(case, None, NOT_ANSWERABLE, case.not_answerable)
    try:
        source = resolve(case.workload.model)
        cluster = find_cluster("cuda", case.gpu)
        prediction = predict(estimate, source, case.workload, case.strategy, cluster)
    except SizingError as error:
        return _result_of(case, None, NO_PREDICTION, str(error))
    predicted = getattr(prediction, f"{case.statistic}_peak_bytes")
    if predicted is None:
        return _result_of(case, None, NO_PREDICTION, f"no {case.statistic} peak for this device")
    return _result_of(case, predicted, _verdict(predicted, case.measured_bytes, case.band_percent))


def _verdict(predicted: int, measured: int, band_percent: float) -> str:
    return INSIDE if abs(predicted - measured) * 100 <= band_percent * measured else MISSED


def _result_of(case: Case, predicted: int | None, verdict: str, reason: str = "") -> Result:
    # Errors of code and errors of the prediction are different things: counted apart.
    return Result(
        case_id=case.id,
        kind=f"{case.kind}, other model code" if case.other_model_code else case.kind,
        statistic=case.statistic,
        measured_bytes=case.measured_bytes,
        predicted_bytes=predicted,
        band_percent=case.band_percent,
        fitted=case.fitted,
        verdict=verdict,
        reason=reason,
        other_model_code=case.other_model_code,
    )


def _judge_record(case: RecordCase, estimate: EstimateFunction) -> list[Result]:
    """A Record counts against a trace under its own versions, and under no others."""
    record = case.record
    prediction, reason = case.prediction, ""
    if prediction is None and _same_versions(record):
        prediction, reason = _predict_record(case, estimate)
    elif prediction is None:
        reason = f"made with torch {record.versions.torch}, this is {host.versions().torch}"
    if record.outcome == "out_of_memory":
        return [_judge_out_of_memory(case, prediction, reason)]
    if record.outcome != "ok":
        return []
    return [
        _record_result(case, statistic, prediction, reason)
        for statistic in RECORD_BANDS_PERCENT
        if getattr(record.memory, f"{statistic}_peak_bytes") is not None
    ]


def _same_versions(record: Record) -> bool:
    """Equal to the minor of torch and transformers: what a trace depends on."""
    here = host.versions()
    return all(
        _minor(getattr(record.versions, name)) == _minor(getattr(here, name))
        for name in ("torch", "transformers")
    )


def _minor(version: str | None) -> tuple[str, ...]:
    return tuple((version or "").split("+")[0].split(".")[:2])


def _predict_record(case: RecordCase, estimate: EstimateFunction) -> tuple[Prediction | None, str]:
    try:
        workload, strategy, sizes = question_of(case.record)
        world = case.record.world
        ranks, fake = (world.size, world.fake) if world else (1, False)
        cluster = find_cluster(case.record.device, case.record.hardware.gpu, ranks)
        return predict(estimate, case.source, workload, strategy, cluster, sizes, fake=fake), ""
    except SizingError as error:
        return None, str(error)


def _record_result(
    case: RecordCase, statistic: str, prediction: Prediction | None, reason: str
) -> Result:
    measured = getattr(case.record.memory, f"{statistic}_peak_bytes")
    predicted = getattr(prediction, f"{statistic}_peak_bytes") if prediction else None
    on_cpu = case.record.device == "cpu"
    band = CPU_BAND_PERCENT if on_cpu else RECORD_BANDS_PERCENT[statistic]
    if predicted is not None:
        verdict = _verdict(predicted, measured, band)
    else:
        verdict = NO_PREDICTION if _same_versions(case.record) else OTHER_VERSIONS
    return Result(
        case_id=_record_name(case),
        kind=_record_kind(case),
        statistic=statistic,
        measured_bytes=measured,
        predicted_bytes=predicted,
        band_percent=band,
        fitted=case.fitted,
        verdict=verdict,
        reason=reason,
    )


def _judge_out_of_memory(case: RecordCase, prediction: Prediction | None, reason: str) -> Result:
    """What ran out of memory must not be called `fits`: the band has to reach the capacity."""
    capacity = case.record.hardware.gpu_memory_bytes
    verdict = NO_PREDICTION
    if prediction is not None and capacity is not None:
        verdict = INSIDE if prediction.high_bytes >= capacity else MISSED
        reason = "ran out of memory"
    return Result(
        case_id=_record_name(case),
        kind=f"{_record_kind(case)}, out of memory",
        statistic="device",
        measured_bytes=None,
        predicted_bytes=prediction.device_peak_bytes if prediction else None,
        band_percent=RECORD_BANDS_PERCENT["device"],
        fitted=case.fitted,
        verdict=verdict,
        reason=reason,
    )


def _record_kind(case: RecordCase) -> str:
    return "record (cpu)" if case.record.device == "cpu" else "record"


def _record_name(case: RecordCase) -> str:
    record = case.record
    task, B = record.workload["task"], record.strategy["micro_batch"]
    how = f"{record.strategy['precision']} {record.strategy['optimizer']}"
    return f"{record.model.name} {task} {B}x{record.workload['max_length']} {how}"
