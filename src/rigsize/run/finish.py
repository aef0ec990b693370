"""From what a run found to its Record; with several ranks, from what all of them found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rigsize.run import host
from rigsize.run.clock import LEAST_TIMED_STEPS, pace, timed
from rigsize.run.execution import Execution
from rigsize.run.job import Job
from rigsize.run.record import (
    STATISTICS,
    Attribution,
    Cap,
    HostMemory,
    Memory,
    Record,
    Throughput,
    WorldRun,
)
from rigsize.run.record_parts import RankPeaks
from rigsize.run.worlds import world_note
from rigsize.train.parallel import World
from rigsize.units import format_bytes

__all__ = ["RankFigures", "figures_of", "finish_record", "host_memory", "worst_rank"]

_NO_PSS = "no smaps_rollup on this system"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """What one rank measured; plain data that travels to the first."""

    rank: int
    memory: Memory
    phase_peaks_bytes: Mapping[str, int]
    step_peaks_bytes: tuple[int, ...]
    step_times_s: tuple[float, ...]
    pss_peak_bytes: int | None
    pinned_bytes: int | None
    pinned_unknown_reason: str


def figures_of(world: World, found: Execution) -> RankFigures:
    """This rank's own."""
    meter = found.meter
    pinned, reason = host.pinned_peak_bytes()
    unknown = dict.fromkeys(STATISTICS, "the run ended before the model was loaded")
    return RankFigures(
        rank=world.rank,
        memory=Memory(unknown=unknown) if meter is None else meter.memory(host.peak_host_bytes()),
        phase_peaks_bytes={} if meter is None else dict(meter.phase_peaks),
        step_peaks_bytes=() if meter is None else tuple(meter.step_peaks),
        step_times_s=() if meter is None else tuple(meter.step_times),
        pss_peak_bytes=found.pss_peak_bytes,
        pinned_bytes=pinned,
        pinned_unknown_reason=reason,
    )


def worst_rank(figures: Sequence[RankFigures]) -> RankFigures:
    """The one that a card must be large enough for."""

    def height(one: RankFigures) -> int:
        memory = one.memory
        return memory.device_peak_bytes or memory.allocated_peak_bytes or 0

    return max(figures, key=height)


def finish_record(
    base: Record, job: Job, world: World, found: Execution, figures: Sequence[RankFigures]
) -> Record:
    """The Record of a run: `base` with the worst rank's figures and everything beside them.

    Args:
        base: `recording.blank_record`, with the hardware.
        job: what was asked.
        world: the ranks.
        found: what this rank found.
        figures: what every rank measured; of one that broke, its own alone.
    """
    worst, feed = worst_rank(figures), found.feed
    record = replace(
        base,
        outcome=found.outcome,
        message=found.message,
        memory=worst.memory,
        phase_peaks_bytes=worst.phase_peaks_bytes,
        step_peaks_bytes=worst.step_peaks_bytes,
        step_times_s=worst.step_times_s,
        world=_world(job, world, found, figures),
        host=host_memory(figures),
        attribution=_attribution(job, found),
        notes=tuple(_notes(job, world, found)),
    )
    if feed is not None:
        record = replace(
            record,
            sizes={name: size for name, size in feed.largest.point.items() if size},
            texts=feed.texts,
            throughput=_throughput(job, world, found) if found.outcome == "ok" else None,
        )
    return replace(record, cap=_cap(job, found, record))


def _world(job: Job, world: World, found: Execution, figures: Sequence[RankFigures]) -> WorldRun:
    card = found.card
    return WorldRun(
        size=world.size,
        parallel=job.strategy.parallel,
        offload=job.strategy.offload,
        fake=world.fake,
        note=world_note(job, world),
        ranks=tuple(
            RankPeaks(
                rank=one.rank,
                allocated_peak_bytes=one.memory.allocated_peak_bytes,
                reserved_peak_bytes=one.memory.reserved_peak_bytes,
                device_peak_bytes=one.memory.device_peak_bytes,
                host_peak_bytes=one.memory.host_peak_bytes,
            )
            for one in figures
        ),
        context_start_bytes=card.context_start_bytes,
        communicator_bytes=card.communicator_bytes,
        unknown=card.unknown,
    )


def host_memory(figures: Sequence[RankFigures]) -> HostMemory:
    """Summed over the ranks of one machine."""
    cgroup, no_cgroup = host.cgroup_peak_bytes()
    pss = _total([one.pss_peak_bytes for one in figures])
    pinned = _total([one.pinned_bytes for one in figures])
    reasons = {
        "pss_peak_bytes": "" if pss is not None else _NO_PSS,
        "pinned_bytes": figures[0].pinned_unknown_reason,
        "cgroup_peak_bytes": no_cgroup,
    }
    return HostMemory(
        pss_peak_bytes=pss,
        pinned_bytes=pinned,
        cgroup_peak_bytes=cgroup,
        unknown={name: reason for name, reason in reasons.items() if reason},
    )


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _throughput(job: Job, world: World, found: Execution) -> Throughput:
    assert found.feed is not None
    watch = found.clock or found.meter
    times = watch.step_times if watch is not None else []
    sizes = ([one.sizes for one in found.feed.step(number)] for number in range(len(times)))
    # Of a fake world only this rank's part is worked through, in a time that means nothing.
    ranks = 1 if world.fake else world.size
    return pace(timed(times, sizes, ranks), found.feed.examples, _doubt(job, world, found))


def _doubt(job: Job, world: World, found: Execution) -> str:
    if world.fake:
        return "a fake process group communicates in no time"
    if job.device == "cpu" and found.clock is None:
        return f"the steps ran under the profiler; from --steps {LEAST_TIMED_STEPS} on some do not"
    return ""


def _attribution(job: Job, found: Execution) -> Attribution | None:
    tally = getattr(found.meter, "tally", None)
    if not job.options.attribution or tally is None:
        return None
    peak = tally.peak
    return Attribution(
        step=peak.step,
        phase=peak.phase,
        categories=peak.by_category(),
        total_bytes=peak.total_bytes,
    )


def _cap(job: Job, found: Execution, record: Record) -> Cap | None:
    cap, limit = job.options.cap_bytes, found.allocator_limit_bytes
    if cap is None or limit is None:
        return None
    device = record.memory.device_peak_bytes
    within = device is not None and device <= cap
    note = ""
    if record.outcome == "ok" and not within:
        shown = "unknown" if device is None else format_bytes(device)
        note = f"it ran, but the device peak is {shown}: the context grew during the run"
    return Cap(
        cap_bytes=cap,
        allocator_limit_bytes=limit,
        proven=record.outcome == "ok" and within,
        note=note,
    )


def _notes(job: Job, world: World, found: Execution) -> list[str]:
    notes = [note for note in (world_note(job, world),) if note]
    if found.skipped_steps:
        notes.append(f"{found.skipped_steps} optimizer steps skipped: gradients overflowed")
    if world.size > 1 and not world.fake and found.outcome != "ok":
        notes.append(f"rank {world.rank} of {world.size} ended the run; these are its figures")
    if job.device == "cpu":
        notes.append("step times include the profiler")
        if job.strategy.attention == "flash":
            notes.append("attention 'flash' has no effect on a CPU")
        if job.strategy.offload != "none":
            notes.append(f"offload {job.strategy.offload} has no effect on a CPU")
        return notes
    more = getattr(found.meter, "notes", None)
    return notes + (more() if more is not None else [])
