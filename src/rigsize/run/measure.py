"""Really runs a Workload x Strategy and writes down what it took.

The model is the one that is traced (`trace.model.build`), the step is the one that is traced
(`run.step`); weights are random, ids are random, nothing is downloaded. torch is imported at the
first call. On CUDA a fresh process is assumed: what ran before would count.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from rigsize.errors import MeasurementFailed
from rigsize.models.source import ModelSource
from rigsize.run import host
from rigsize.run.checks import DEVICES, check_job
from rigsize.run.job import Job
from rigsize.run.record import STATISTICS, Memory, Record
from rigsize.run.recording import blank_record, failed_record
from rigsize.run.specs import LEAST_STEPS
from rigsize.spec import Strategy, Workload

if TYPE_CHECKING:
    from rigsize.run.cuda_meter import CudaMeter
    from rigsize.run.execution import Execution

__all__ = ["DEVICES", "check_job", "failed_record", "measure"]


def measure(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str = "cuda",
    *,
    steps: int = LEAST_STEPS,
    seed: int = 0,
    command: str = "",
) -> Record:
    """The Record of at least three real steps; running out of memory is a result.

    A job that cannot be run at all, a task without a head or a CUDA that is not there, is an
    error; a run that breaks on its way is a Record with the outcome `failed`.
    """
    check_job(source, workload, strategy, device, steps=steps, seed=seed)
    # Read when torch is imported: the profiler otherwise reports every start on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # Before CUDA starts: afterwards this process's own context would be part of it.
    used_before = host.gpu_used_bytes() if device == "cuda" else None
    base = blank_record(source, workload, strategy, device, steps=steps, seed=seed, command=command)
    base = _start(base, device)
    from rigsize.run.execution import execute

    job = Job(
        source=source, workload=workload, strategy=strategy, device=device, steps=steps, seed=seed
    )
    return _finished(base, job, execute(job, used_before))


def _start(base: Record, device: str) -> Record:
    import torch

    if device == "cpu":
        return base
    if not torch.cuda.is_available():
        raise MeasurementFailed(
            "device", "cuda", "torch sees no CUDA device", hint="measure with --device cpu"
        )
    hardware, versions = host.with_cuda(base.hardware, base.versions, torch)
    return replace(base, hardware=hardware, versions=versions)


def _finished(base: Record, job: Job, found: Execution) -> Record:
    meter = found.meter
    record = replace(
        base, outcome=found.outcome, message=found.message, notes=tuple(_notes(job, found))
    )
    if meter is None:
        unknown = dict.fromkeys(STATISTICS, "the run ended before the model was loaded")
        return replace(record, memory=Memory(unknown=unknown))
    return replace(
        record,
        memory=meter.memory(host.peak_host_bytes()),
        phase_peaks_bytes=dict(meter.phase_peaks),
        step_peaks_bytes=tuple(meter.step_peaks),
        step_times_s=tuple(meter.step_times),
    )


def _notes(job: Job, found: Execution) -> list[str]:
    notes = []
    if found.skipped_steps:
        notes.append(f"{found.skipped_steps} optimizer steps skipped: gradients overflowed")
    if job.device == "cpu":
        notes.append("step times include the profiler")
        if job.strategy.attention == "flash":
            notes.append("attention 'flash' has no effect on a CPU")
        return notes
    meter: CudaMeter | None = found.meter  # type: ignore[assignment]
    return notes + (meter.notes() if meter is not None else [])
