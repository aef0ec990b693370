"""From the seconds of a step to the hours of a run: everything that is waited for, line by line.

A run is: start-up, the model's download, the texts tokenised, a slow first step, the steps of all
epochs, evaluations, checkpoints and the model written at the end. Each is a `Line` of its own in
seconds; the lines sum to the run at p10, p50 and p90 alike, as if all were late together, which is
the cautious way to add intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from rigsize.program.mesh import Mesh, mesh_of
from rigsize.program.work import Work
from rigsize.provenance import Basis, Sourced
from rigsize.spec import Cluster, Strategy, Workload
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.constants import Span
from rigsize.steptime.intervals import scaled, total_of
from rigsize.steptime.muon import matrix_elements
from rigsize.steptime.rates import Rates
from rigsize.steptime.run_constants import (
    COLLATE_TOKENS_PER_S,
    COMPILE_S,
    DISK_BYTES_PER_S,
    DOWNLOAD_BYTES_PER_S,
    FIRST_STEP_S,
    POWER_SHARE,
    PROCESS_START_S,
    TOKENS_PER_S,
)
from rigsize.steptime.step import Quantiles, StepTime, step_time
from rigsize.steptime.update import states_per_param, trained_weight_bytes

__all__ = [
    "AROUND",
    "Around",
    "Line",
    "RunTime",
    "Steps",
    "checkpoint_bytes",
    "fixed_lines",
    "power_limit_kw",
    "run_time_of",
    "steps_of",
]

LEFT_OUT = (
    "booting a rented machine, waiting for it, and restarts",
    "CPUs, memory, fans, power supplies and cooling in the energy",
)


class Line(NamedTuple):
    """One thing that a run waits for."""

    name: str
    """training, warm-up, evaluation, checkpoints, start-up, download, data."""
    seconds: Quantiles
    basis: Basis
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a run does beside its steps; nothing of it changes a step."""

    evaluated: int = 0
    """Texts that are evaluated after each epoch."""
    checkpoint_every_s: float | None = 1800.0
    """As `train --save-minutes`; None writes none."""
    downloads: bool = True
    """Whether the model comes from the hub."""
    prepared: bool = False
    """Whether the texts are tokenised already."""
    mean_tokens: float | None = None
    """Of a text, where lengths are known; None for full texts."""


AROUND = Around()
"""What `rigsize train` does where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How often what is done."""

    examples: int
    """Texts an epoch."""
    epochs: int
    global_batch: int
    """Texts an optimizer step, of all ranks."""
    micro_steps: int
    """Of one rank in an epoch; the last may be smaller and is counted whole."""
    updates: int
    """Optimizer steps in an epoch, the last of fewer micro-steps included."""
    last_batch: int
    """Texts of an epoch's last optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTime:
    """The hours of a run on a cluster; of inference, of one pass over all texts."""

    step: StepTime
    steps: Steps | None
    """None where nobody said how many texts there are; then only the step is known."""
    lines: tuple[Line, ...]
    """They sum to `total_s`."""
    tokens: int | None
    """Computed in training, padding included."""
    energy_kwh: Quantiles | None
    """Of the accelerators alone; None where their power is unknown or nothing runs for long."""
    bound_by: str
    assumptions: tuple[str, ...]
    rates: Rates | None = None
    """Of inference; None in training."""
    left_out: tuple[str, ...] = LEFT_OUT

    @property
    def total_s(self) -> Quantiles:
        """The sum of the lines."""
        return total_of(line.seconds for line in self.lines)

    @property
    def hours(self) -> Quantiles:
        """The whole run."""
        return scaled(self.total_s, 1 / 3600)

    @property
    def epoch_hours(self) -> Quantiles | None:
        """Training steps of one epoch, what is beside them left out."""
        if self.steps is None:
            return None
        return scaled(self.lines[0].seconds, 1 / 3600 / self.steps.epochs)


def steps_of(workload: Workload, strategy: Strategy, mesh: Mesh) -> Steps | None:
    """Micro-steps and updates of an epoch; None without a number of examples.

    A last optimizer step takes what texts are left in as few micro-steps as hold them
    (`train.order`).
    """
    examples = workload.examples
    if examples is None:
        return None
    together = strategy.micro_batch * mesh.ranks
    accumulation = strategy.accumulation if workload.training else 1
    global_batch = together * accumulation
    whole, rest = divmod(examples, global_batch)
    return Steps(
        examples=examples,
        epochs=workload.epochs if workload.training else 1,
        global_batch=global_batch,
        micro_steps=whole * accumulation + -(-rest // together),
        updates=whole + (1 if rest else 0),
        last_batch=rest or global_batch,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Everything that the lines are made from."""

    work: Work
    step: StepTime
    workload: Workload
    strategy: Strategy
    cluster: Cluster
    around: Around
    mesh: Mesh
    steps: Steps
    calibration: Calibration | None
    draws: int

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch, padding included, and the tokens that are written."""
        point = self.work.point
        written = self.workload.new_tokens if self.workload.generates else 0
        return point.get("N") or point["B"] * (point["S"] + point.get("T", 0) + written)


def run_time_of(
    work: Work,
    step: StepTime,
    workload: Workload,
    strategy: Strategy,
    cluster: Cluster,
    *,
    around: Around = AROUND,
    calibration: Calibration | None = None,
    draws: int = 1000,
) -> RunTime:
    """The run whose step is known.

    Args:
        work: of one micro-step; where lengths of texts are known, of a usual one.
        step: what `step_time` says of it.
        workload: with the number of texts and epochs; without a number only the step is known.
        strategy: how.
        cluster: on what; all its devices use power, busy or not.
        around: evaluations, checkpoints, download; by default those of `rigsize train`.
        calibration: as for `step_time`, for the evaluation's pass.
        draws: likewise.
    """
    mesh = mesh_of(strategy, cluster, training=workload.training)
    steps = steps_of(workload, strategy, mesh)
    if steps is None:
        return RunTime(
            step=step,
            steps=None,
            lines=(),
            tokens=None,
            energy_kwh=None,
            bound_by=step.bound_by,
            assumptions=step.assumptions,
        )
    run = _Run(
        work=work,
        step=step,
        workload=workload,
        strategy=strategy,
        cluster=cluster,
        around=around,
        mesh=mesh,
        steps=steps,
        calibration=calibration,
        draws=draws,
    )
    main, slow = _supplied(_steps_line(run), run)
    lines = (main, *_beside(run, main))
    return RunTime(
        step=step,
        steps=steps,
        lines=lines,
        tokens=steps.epochs * steps.micro_steps * mesh.ranks * run.tokens,
        energy_kwh=_energy(total_of(line.seconds for line in lines), run),
        bound_by="the data loader" if slow else step.bound_by,
        assumptions=(*step.assumptions, *_assumptions(run)),
    )


def _steps_line(run: _Run) -> Line:
    """Micro-steps, and once an update what else the step takes."""
    step, steps, training = run.step, run.steps, run.workload.training
    accumulation = run.strategy.accumulation if training else 1
    update_s = max(0.0, step.step_s.p50 - accumulation * step.micro_s)
    seconds = steps.epochs * (steps.micro_steps * step.micro_s + steps.updates * update_s)
    note = f"{steps.micro_steps:,} batches"
    if training:
        note = f"{steps.micro_steps:,} micro-steps a rank, {steps.updates:,} optimizer steps"
    if steps.last_batch != steps.global_batch:
        note += f", the last of {steps.last_batch:,} texts"
    if steps.epochs > 1:
        note += f", {steps.epochs:,} times"
    spread = scaled(step.step_s, seconds / step.step_s.p50)
    return Line("training" if training else "inference", spread, "derived", note)


def _supplied(line: Line, run: _Run) -> tuple[Line, bool]:
    """The steps, no faster than a process makes batches; and whether that is slower at p50."""
    positions = run.steps.epochs * run.steps.micro_steps * run.tokens
    needed = _seconds(positions, COLLATE_TOKENS_PER_S)
    if needed.p50 <= line.seconds.p50:
        return line, False
    slower = Quantiles(*(max(pair) for pair in zip(line.seconds, needed, strict=True)))
    note = f"{line.note}; one process makes batches more slowly than they are used"
    return Line(line.name, slower, "assumed", note), True


def _beside(run: _Run, main: Line) -> Iterator[Line]:
    """The lines after the steps' own."""
    warm_up, *others = fixed_lines(run.work, run.workload, run.strategy, run.around)
    yield warm_up
    if run.workload.training and run.around.evaluated:
        yield _evaluation(run)
    if run.workload.training and run.around.checkpoint_every_s is not None:
        yield _checkpoints(run, main)
    yield from others


def fixed_lines(
    work: Work, workload: Workload, strategy: Strategy, around: Around = AROUND
) -> Iterator[Line]:
    """What no step and no cluster changes: warm-up, start-up, download, texts."""
    yield _warm_up(strategy)
    num_bytes, dtype = _published(work, strategy)
    size = f"{num_bytes / 1e9:,.1f} GB"
    start = total_of((_of(PROCESS_START_S), _seconds(num_bytes, DISK_BYTES_PER_S)))
    note = f"imports, context, process groups; {size} of weights read from a disk"
    yield Line("start-up", start, "assumed", note)
    if around.downloads:
        seconds = _seconds(num_bytes, DOWNLOAD_BYTES_PER_S)
        yield Line("download", seconds, "assumed", f"{size} to each machine, once; {dtype}")
    if not (around.prepared or workload.generates):
        mean, examples = around.mean_tokens or workload.max_length, workload.examples or 0
        note = f"{examples:,} texts of {mean:,.0f} tokens tokenised, once"
        yield Line("data", _seconds(examples * mean, TOKENS_PER_S), "assumed", note)


def _published(work: Work, strategy: Strategy) -> tuple[int, str]:
    """Bytes of the checkpoint that is downloaded and read, and in which dtype."""
    if work.published_bytes is None:
        why = work.published_note
        note = f"as the run keeps them: the size {why} is not known" if why else "as kept"
        return _weight_bytes(work, strategy), note
    return work.published_bytes, work.published_note


def _seconds(amount: float, rate: Sourced[Span]) -> Quantiles:
    """An amount at a rate: the high rate is the short time."""
    span = rate.value
    return Quantiles(amount / span.high, amount / span.mid, amount / span.low)


def _of(span: Sourced[Span]) -> Quantiles:
    return Quantiles(*span.value)


def _warm_up(strategy: Strategy) -> Line:
    seconds = _of(FIRST_STEP_S)
    note = "the first step beyond a usual one"
    if strategy.compile:
        seconds = total_of((seconds, _of(COMPILE_S)))
        note += ", torch.compile in it"
    return Line("warm-up", seconds, "assumed", note)


def _evaluation(run: _Run) -> Line:
    """The forward segments of the step, over the held-out texts, after each epoch."""
    forward = tuple(segment for segment in run.work.segments if segment.phase == "forward")
    one = step_time(
        replace(run.work, segments=forward, training=False),
        replace(run.strategy, accumulation=1),
        run.cluster,
        calibration=run.calibration,
        draws=run.draws,
    ).step_s
    batches = -(-run.around.evaluated // (run.strategy.micro_batch * run.mesh.ranks))
    epochs = run.steps.epochs
    note = f"{run.around.evaluated:,} texts in {batches:,} batches a rank"
    note += f", {epochs:,} times" if epochs > 1 else ""
    return Line("evaluation", scaled(one, batches * epochs), "derived", note)


def _checkpoints(run: _Run, main: Line) -> Line:
    """`train` waits while they are written; of sharded states each machine writes its part."""
    every = run.around.checkpoint_every_s
    assert every is not None
    num_bytes = checkpoint_bytes(run.work, run.strategy)
    writers = run.cluster.nodes if run.mesh.shard > 1 else 1
    counts = [math.floor(bound / every) + 1 for bound in main.seconds]
    each = _seconds(num_bytes / writers, DISK_BYTES_PER_S)
    seconds = Quantiles(*(n * one for n, one in zip(counts, each, strict=True)))
    note = f"{counts[1]:,} of {num_bytes / 1e9:,.1f} GB: every {every / 60:g} min and at the end"
    return Line("checkpoints", seconds, "assumed", note)


def checkpoint_bytes(work: Work, strategy: Strategy) -> int:
    """One checkpoint of the run, all ranks together."""
    trained = sum(work.trainable)
    weights = _weight_bytes(work, strategy)
    if strategy.method != "full":
        # The frozen base is read from where it came from (train.checkpoint_states).
        weights = trained * trained_weight_bytes(strategy)
    kept = _kept_bytes(strategy) * trained
    if strategy.optimizer == "muon":
        # Of a matrix it keeps the momentum alone, one state instead of AdamW's two.
        kept -= states_per_param(strategy) / 2 * matrix_elements(work)
    return weights + round(kept)


def _weight_bytes(work: Work, strategy: Strategy) -> int:
    """As a checkpoint of the run keeps them: autocast's weights are fp32, sharded ones too.

    FSDP2 casts what it gathers, so the trace of a sharded run has half of these bytes.
    """
    stored = sum(work.weight_bytes)
    policy, plain = strategy.policy, strategy.stored_as == "none"
    if policy.compute == "amp" and plain:
        return max(stored, policy.weight_bytes * sum(work.parameters))
    return stored


def _kept_bytes(strategy: Strategy) -> float:
    """Of a trained parameter beside its weight: the optimizer's states and a master copy."""
    return states_per_param(strategy) + strategy.policy.master_bytes


def power_limit_kw(cluster: Cluster) -> float | None:
    """Of all accelerators; None where nobody published it."""
    card = cluster.accelerator
    return None if card.tdp_w is None else card.tdp_w / card.devices * cluster.devices / 1000


def _energy(total: Quantiles, run: _Run) -> Quantiles | None:
    """Of the accelerators, in kWh: their power limit times a share of it."""
    kw, shares = power_limit_kw(run.cluster), POWER_SHARE.value
    if kw is None:
        return None
    return Quantiles(*(kw * s / 3600 * share for s, share in zip(total, shares, strict=True)))


def _assumptions(run: _Run) -> Iterator[str]:
    if run.around.mean_tokens is None and not run.workload.generates:
        yield "every text takes max-length tokens: --data or --histogram gives real lengths"
    low, mid, high = POWER_SHARE.value
    yield f"energy: {mid:.0%} of the accelerators' power limit, {low:.0%} to {high:.0%}"
