"""The hours of a run from its model: work, step, then everything that is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rigsize.batches import usual_batch
from rigsize.keys import key_for
from rigsize.models import ModelSource
from rigsize.point import point_of
from rigsize.program.mesh import mesh_of
from rigsize.program.work import Work
from rigsize.program.work_build import decode_work_for, work_for
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.spec.quantization import BITSANDBYTES
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.rates import Rates, generation_of, rates_of_passes
from rigsize.steptime.run_lines import AROUND, Around, RunTime, run_time_of
from rigsize.steptime.step import StepTime, step_time
from rigsize.texts.stats import LengthHistogram
from rigsize.trace.store import stored_work

__all__ = ["RunTime", "has_stored_work", "run_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A run whose batch is a usual one, where lengths say what is usual."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    cluster: Cluster
    calibration: Calibration | None
    draws: int
    saved_bytes: int | None = None

    @property
    def point(self) -> dict[str, int]:
        """Sizes of a micro-batch."""
        return point_of(self.workload, self.strategy)

    def priced(self, work: Work) -> StepTime:
        """The step that the work makes."""
        return step_time(
            work,
            self.strategy,
            self.cluster,
            calibration=self.calibration,
            draws=self.draws,
            saved_bytes=self.saved_bytes,
        )

    @property
    def of_work(self) -> tuple[ModelSource, Workload, Strategy]:
        """What the work of a step depends on beside card and sizes."""
        return self.source, self.workload, self.strategy


def run_time(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    *,
    lengths: LengthHistogram | None = None,
    around: Around = AROUND,
    calibration: Calibration | None = None,
    draws: int = 1000,
    saved_bytes: int | None = None,
) -> RunTime:
    """Hours of a run, with its step; of inference, of one pass over all texts, with its rates.

    The work of the step is stored, cached or traced now.

    Args:
        source: the model.
        workload: without `examples` there is a step and no hours, but for the texts of `lengths`.
        strategy: its batch settled.
        cluster: on what.
        lengths: of the texts, where batches are padded to their longest or not at all: the step is
            then of a usual batch.
        around: what the run does beside its steps.
        calibration: what was measured on this machine.
        draws: of the interval; 0 gives the middle alone.
        saved_bytes: what `offload=activations` copies to the host in a micro-step.

    Raises:
        SizingError: no time can be given, and why.
    """
    asked = _Asked(
        source=source,
        workload=workload,
        strategy=strategy,
        cluster=cluster,
        calibration=calibration,
        draws=draws,
        saved_bytes=saved_bytes,
    )
    if lengths is not None:
        around = replace(around, mean_tokens=lengths.cut_to(workload.max_length).mean)
        asked = _usual(asked, lengths)
    work, step, rates = _passed(asked)
    found = run_time_of(
        work,
        step,
        asked.workload,
        asked.strategy,
        cluster,
        around=around,
        calibration=calibration,
        draws=draws,
    )
    said = found.assumptions
    if strategy.stored_as in BITSANDBYTES:
        said += ("the Python of bitsandbytes around its layers is not in the host's time",)
    return replace(found, rates=rates, assumptions=said)


def has_stored_work(
    source: ModelSource,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    lengths: LengthHistogram | None = None,
) -> bool:
    """Whether `run_time` of the same answers without a trace."""
    asked = _Asked(
        source=source,
        workload=workload,
        strategy=strategy,
        cluster=cluster,
        calibration=None,
        draws=0,
    )
    if lengths is not None:
        asked = _usual(asked, lengths)
    key = key_for(*asked.of_work, cluster.accelerator)
    found = stored_work(key, asked.point) is not None
    if found and asked.workload.generates and asked.workload.new_tokens > 1:
        found = stored_work(replace(key, cache="decode"), _half_way(asked)) is not None
    return found


def _usual(asked: _Asked, lengths: LengthHistogram) -> _Asked:
    workload, strategy = asked.workload, asked.strategy
    if workload.examples is None:
        workload = replace(workload, examples=lengths.texts)
    if workload.padding != "fixed":
        usual = usual_batch(lengths, workload, strategy)
        workload, strategy = usual.workload, usual.strategy
    return replace(asked, workload=workload, strategy=strategy)


def _passed(asked: _Asked) -> tuple[Work, StepTime, Rates | None]:
    """The work and time of a step, or of a batch of inference with its rates."""
    workload = asked.workload
    work = work_for(*asked.of_work, asked.cluster.accelerator, asked.point)
    step = asked.priced(work)
    if workload.training:
        return work, step, None
    ranks = mesh_of(asked.strategy, asked.cluster, training=False).ranks
    if not workload.generates:
        return work, step, rates_of_passes(step, work.point, ranks)
    decode = step
    if workload.new_tokens > 1:
        card = asked.cluster.accelerator
        decode = asked.priced(decode_work_for(*asked.of_work, card, _half_way(asked)))
    batch = asked.strategy.micro_batch
    step, rates = generation_of(step, decode, batch, workload.new_tokens, ranks)
    return work, step, rates


def _half_way(asked: _Asked) -> Mapping[str, int]:
    """The sizes of the decoding step in the middle: each takes a key more than the one before."""
    point = asked.point
    steps = asked.workload.new_tokens - 1
    return {**point, "C": point["C"] - (steps - 1) // 2}
