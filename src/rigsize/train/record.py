"""The Record of a training run, and what `estimate` says of the same job."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from rigsize.run import host
from rigsize.run.record import STATISTICS, Memory, Record
from rigsize.run.record_parts import RankPeaks, Texts, Throughput, WorldRun
from rigsize.run.recording import blank_record, shorten
from rigsize.spec import Workload
from rigsize.train.outcome import Outcome
from rigsize.train.settings import TrainJob
from rigsize.train.watch import WARM_UP_STEPS, Pace

__all__ = ["NOISY", "broken_record", "record_of"]

NOISY = 0.10
"""Spread from which a median is not to be trusted; pyperf's rule."""
_LEAST_STEADY = 5


def record_of(outcome: Outcome) -> Record | None:
    """The Record, collective over the ranks; None on all but the first.

    Its memory is that of the worst rank.
    """
    peaks = outcome.world.gather(_peaks(outcome))
    if not outcome.world.first:
        return None
    job, largest = outcome.plan.job, outcome.watch.largest
    base = _blank(job, outcome.state.step)
    workload = _as_it_ran(job.workload, outcome)
    worst = max(peaks, key=lambda peak: peak["allocated_peak_bytes"] or 0)
    return replace(
        base,
        kind="train",
        workload=asdict(workload),
        outcome="ok",
        message=_message(outcome),
        memory=_memory(worst, job.device),
        step_times_s=tuple(round(sample[0], 6) for sample in outcome.pace.samples),
        notes=outcome.notes,
        sizes=largest.point if largest else {},
        world=WorldRun(
            size=outcome.world.size,
            parallel=job.strategy.parallel,
            offload=job.strategy.offload,
            fake=False,
            ranks=tuple(
                RankPeaks(rank=rank, **{k: v for k, v in peak.items() if k != "context_bytes"})
                for rank, peak in enumerate(peaks)
            ),
        ),
        throughput=_throughput(outcome.pace, len(outcome.plan.train_indices)),
        texts=_texts(outcome),
        losses=outcome.losses,
        metrics={k: v for k, v in outcome.state.metrics.items() if k != "step"},
    )


def _message(outcome: Outcome) -> str:
    if outcome.ended == "finished":
        return ""
    return f"{outcome.ended} at step {outcome.state.step:,} of {outcome.plan.steps:,}"


def broken_record(job: TrainJob, error: BaseException) -> Record:
    """The Record of a run that ran out of memory."""
    base = _blank(job, job.settings.max_steps or 1)
    return replace(base, kind="train", outcome="out_of_memory", message=shorten(str(error)))


def _blank(job: TrainJob, steps: int) -> Record:
    base = blank_record(
        job.source,
        job.workload,
        job.strategy,
        job.device,
        steps=steps,
        seed=job.settings.seed,
        command=job.command,
    )
    if job.device != "cuda":
        return base
    hardware, versions = host.with_cuda(base.hardware, base.versions, torch)
    return replace(base, hardware=hardware, versions=versions)


def _as_it_ran(workload: Workload, outcome: Outcome) -> Workload:
    """With what the data decided: whether the largest micro-batch had padding in it."""
    largest = outcome.watch.largest
    windows = outcome.plan.order.windows
    workload = replace(
        workload,
        examples=len(outcome.plan.train_indices),
        epochs=max(1, -(-outcome.state.step // windows)),
    )
    return workload if largest is None else replace(workload, padding_in_batch=largest.padded)


def _peaks(outcome: Outcome) -> dict[str, Any]:
    peaks: dict[str, Any] = {
        "allocated_peak_bytes": outcome.watch.peak_bytes,
        "reserved_peak_bytes": None,
        "device_peak_bytes": None,
        "host_peak_bytes": host.peak_host_bytes(),
    }
    if outcome.world.device.type != "cuda":
        return peaks
    device = outcome.world.device
    reserved = torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return peaks | {
        "reserved_peak_bytes": reserved,
        "device_peak_bytes": reserved + context,
        "context_bytes": context,
    }


def _memory(worst: dict[str, Any], device: str) -> Memory:
    reason = "not on CPU" if device == "cpu" else "no step was made"
    values = {name: worst.get(name) for name in STATISTICS}
    unknown = {name: reason for name, value in values.items() if value is None}
    if values["allocated_peak_bytes"] is None:
        unknown["allocated_peak_bytes"] = "no step was made under the meter"
    return Memory(**values, unknown=unknown)


def _throughput(pace: Pace, examples: int) -> Throughput:
    steady = len(pace.steady)
    times = tuple(round(sample[0], 6) for sample in pace.samples)
    if steady < _LEAST_STEADY:
        why = f"{steady} steady steps; {_LEAST_STEADY + WARM_UP_STEPS} steps or more are needed"
        names = ("step_s", "real_tokens_per_s", "examples_per_s", "spread", "epoch_hours")
        return Throughput(
            step_times_s=times,
            steady_steps=steady,
            padding_share=pace.padding_share,
            examples=examples,
            unknown=dict.fromkeys(names, why),
        )
    rate, spread = pace.rate(1), pace.spread
    assert rate is not None
    warning = ""
    if spread is not None and spread >= NOISY:
        warning = (
            f"steps vary by {spread:.0%} (p10 to p90): texts of other lengths, or a busy machine"
        )
    return Throughput(
        step_times_s=times,
        steady_steps=steady,
        step_s=pace.step_s,
        real_tokens_per_s=pace.rate(2),
        examples_per_s=rate,
        spread=spread,
        padding_share=pace.padding_share,
        examples=examples,
        epoch_hours=examples / rate / 3600,
        warning=warning,
    )


def _texts(outcome: Outcome) -> Texts:
    plan, largest = outcome.plan, outcome.watch.largest
    lengths = plan.texts.lengths[plan.train_indices]
    return Texts(
        kind="data",
        source=plan.job.data.file.name,
        texts=len(lengths),
        mean_length=float(lengths.mean()),
        micro_batches=outcome.micro_batches,
        micro_steps=outcome.watch.micro_steps,
        padded=largest is None or largest.padded,
        worst="" if largest is None else f"{largest.texts} texts, {largest.real_tokens} tokens",
    )
