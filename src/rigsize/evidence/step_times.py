"""Step times of Records beside their prediction, before and after a calibration of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rigsize.errors import SizingError, SpecError
from rigsize.evidence.cases import RecordCase
from rigsize.run.compare import find_cluster, question_of
from rigsize.run.record import Record
from rigsize.steptime.calibration import Calibration

__all__ = ["StepRow", "median_error", "step_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One Record: seconds of an optimizer step, or of a pass in inference."""

    record_id: str
    model: str
    measured_s: float
    before_s: float | None
    """By the packaged constants alone."""
    after_s: float | None
    """With the calibration; None without one of its device."""
    reason: str = ""
    """Why there is no prediction."""

    def error(self, predicted_s: float | None) -> float | None:
        """(predicted - measured) / measured."""
        return None if predicted_s is None else predicted_s / self.measured_s - 1


def step_rows(records: Iterable[Record], calibration: Calibration | None) -> Iterator[StepRow]:
    """A row for each Record that timed its steady steps; the others measured no time."""
    for record in records:
        pace = record.throughput
        if record.kind == "calibration" or pace is None or pace.step_s is None:
            continue
        before, after, reason = None, None, ""
        try:
            before, after = _predicted(record, calibration)
        except SizingError as error:
            reason = str(error)
        yield StepRow(
            record_id=record.record_id,
            model=record.model.name,
            measured_s=pace.step_s,
            before_s=before,
            after_s=after,
            reason=reason,
        )


def median_error(rows: Iterable[StepRow], *, calibrated: bool) -> float | None:
    """The median of the absolute errors; None of no rows."""
    errors = [
        abs(found)
        for row in rows
        if (found := row.error(row.after_s if calibrated else row.before_s)) is not None
    ]
    return statistics.median(errors) if errors else None


def _predicted(record: Record, calibration: Calibration | None) -> tuple[float, float | None]:
    from rigsize.point import point_of
    from rigsize.program.work_build import work_for
    from rigsize.steptime.step import step_time

    workload, strategy, sizes = question_of(record)
    world = record.world
    if world is not None and world.fake:
        raise SpecError("world", world.size, "ranks that nobody waits for: no time means anything")
    cluster = find_cluster(record.device, record.hardware.gpu, world.size if world else 1)
    gpu = cluster.accelerator
    source = RecordCase(record=record).source
    point = {**point_of(workload, strategy), **(sizes or {})}
    work = work_for(source, workload, strategy, gpu, point)
    before = step_time(work, strategy, cluster, draws=0).step_s.p50
    if calibration is None or calibration.accelerator != gpu.id:
        return before, None
    after = step_time(work, strategy, cluster, calibration=calibration, draws=0)
    return before, after.step_s.p50
