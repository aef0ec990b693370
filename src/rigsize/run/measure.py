"""Really runs a Workload x Strategy and writes down what it took.

The model is the one that is traced (`trace.model.build`), the step is the one that is traced
(`run.step`); weights are random, ids are random, nothing is downloaded. torch is imported at the
first call. On CUDA a fresh process is assumed: what ran before would count.
"""

from __future__ import annotations

import os
from dataclasses import replace

from rigsize.errors import MeasurementFailed
from rigsize.models.source import ModelSource
from rigsize.run import host
from rigsize.run.checks import DEVICES, check_job
from rigsize.run.job import Job, MeasureOptions
from rigsize.run.record import Record
from rigsize.run.recording import blank_record, failed_record
from rigsize.run.specs import LEAST_STEPS
from rigsize.spec import Strategy, Workload

__all__ = ["DEVICES", "MeasureOptions", "check_job", "failed_record", "measure"]


def measure(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    device: str = "cuda",
    *,
    steps: int = LEAST_STEPS,
    seed: int = 0,
    command: str = "",
    options: MeasureOptions | None = None,
) -> Record:
    """The Record of at least three real steps; running out of memory is a result.

    Collective over the ranks of torchrun: every rank returns the Record of all, with the worst
    rank's peaks; a rank that breaks returns its own. A job that cannot be run at all, a task
    without a head or a CUDA that is not there, is an error; a run that breaks on its way is a
    Record with the outcome `failed`.
    """
    options = options or MeasureOptions()
    check_job(source, workload, strategy, device, steps=steps, seed=seed, options=options)
    # Read when torch is imported: the profiler otherwise reports every start on stderr, and
    # each block that is older than it.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Before CUDA starts: afterwards this process's own context would be part of it.
    used_before = host.gpu_used_bytes() if device == "cuda" else None
    base = blank_record(source, workload, strategy, device, steps=steps, seed=seed, command=command)
    base = _start(base, device, options)
    job = Job(
        source=source,
        workload=workload,
        strategy=strategy,
        device=device,
        steps=steps,
        seed=seed,
        options=options,
    )
    return _run(base, job, used_before)


def _start(base: Record, device: str, options: MeasureOptions) -> Record:
    import torch

    if device == "cpu":
        return base
    if not torch.cuda.is_available():
        raise MeasurementFailed(
            "device", "cuda", "torch sees no CUDA device", hint="measure with --device cpu"
        )
    if options.keeps_peak:
        from rigsize.run.cuda_history import start_history

        start_history(stacks=options.snapshot is not None)
    hardware, versions = host.with_cuda(base.hardware, base.versions, torch)
    return replace(base, hardware=hardware, versions=versions)


def _run(base: Record, job: Job, used_before_bytes: int | None) -> Record:
    from rigsize.run.execution import execute
    from rigsize.run.finish import figures_of, finish_record
    from rigsize.run.snapshot import write_snapshot
    from rigsize.run.worlds import enter_world, leave_world

    world, clean = enter_world(job), False
    try:
        found = execute(job, world, used_before_bytes)
        figures = [figures_of(world, found)]
        clean = found.outcome == "ok"
        if clean:
            figures = world.gather(figures[0])
        record = finish_record(base, job, world, found, figures)
    finally:
        leave_world(world, clean=clean)
    if job.options.snapshot is not None and found.meter is not None and world.first:
        note = write_snapshot(job.options.snapshot, found.meter)
        record = replace(record, notes=(*record.notes, note))
    return record
