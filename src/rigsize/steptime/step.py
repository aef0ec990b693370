"""The time of one optimizer step of one rank: `Work` priced, scheduled and sent through streams.

    kernels (prices) -> rows of micro-steps and update (schedule, update) -> streams -> seconds

p50 is the run with every factor at its median; p10 and p90 come from drawing the factors of
`draws`, p90 also from what published programs lose to the tables (`intervals.PROGRAM_P90`).
Formulas: docs/time.md. Left out: data loading, checkpoints and evaluation (run_time).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rigsize.program.work import Work
from rigsize.spec import Cluster, Strategy
from rigsize.spec.zero import ZEROS
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.constants import (
    DISPATCH_S,
    KERNEL_LAUNCH_S,
    PCIE_SHARE,
    Span,
)
from rigsize.steptime.draws import (
    COLLECTIVES,
    COPIES_RATE,
    DEVICE,
    HOST_RATE,
    HOST_STEP_RATE,
    Cause,
    misaligned_cause,
)
from rigsize.steptime.draws import draws as draw_factors
from rigsize.steptime.gemm import peak_flops_per_s
from rigsize.steptime.intervals import PROGRAM_P90, Quantiles, widened
from rigsize.steptime.links import Links
from rigsize.steptime.prices import ATTENTION, MISALIGNED_PRODUCTS, PRODUCTS, Pricer
from rigsize.steptime.rows import Row
from rigsize.steptime.schedule import PCIE, Schedule, schedule
from rigsize.steptime.streams import COPIES, HOST, HOST_STEP, HOST_SUM, LINKS, Clock, Stage, run
from rigsize.steptime.tables import tables_of

__all__ = ["Part", "Quantiles", "StepTime", "step_time"]

SLOWED = "compute slowed by collectives beside it"
PROGRAM = "the program against kernels alone"
# Two machines with the same GPU, assumed from what is published: whole collections of products in
# ai-dynamo/aiconfigurator differ by up to 7 % on an A100. Where no table tells the clock that a
# model sustains: NeuSight's rows reach .56 to .91 of the fp32 peak on cards of 250 W and more.
_SIGMA_DEVICE = 0.04
_SIGMA_UNMEASURED_DEVICE = 0.15
# What is left between two runs of the machine that was calibrated: assumed.
_SIGMA_CALIBRATED_DEVICE = 0.02
_SIGMA_CALIBRATED_HOST = 0.1
_BOUND_BY = {
    PRODUCTS: "compute",
    MISALIGNED_PRODUCTS: "compute",
    ATTENTION: "compute",
    HOST: "host launches",
    HOST_SUM: "the host's memory bandwidth",
    HOST_STEP: "the optimizer on the host",
    LINKS: "links between the devices",
    SLOWED: "links between the devices",
    COPIES: "PCIe",
    PCIE: "PCIe",
}
"""What holds a part up; every other part waits for the device's memory."""
_Z_TENTH = 1.2816
"""Standard deviations from the median to the 10 % and 90 % points."""
_SAME = 1e-9
"""Relative difference of two micro-steps that is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Part of a step; the parts sum to it."""

    name: str
    seconds: float
    """Its share of the p50 step."""
    basis: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of one rank, or one pass in inference."""

    step_s: Quantiles
    """Accumulation micro-steps and the update."""
    micro_s: float
    """A micro-step, the mean of a step's, at p50."""
    update_s: float
    """From the last micro-step's end to the step's, at p50."""
    parts: tuple[Part, ...]
    bound_by: str
    """What most of the step waits for, in words."""
    widest: str
    """What widens the interval most."""
    flops: int
    """Of one rank's step, recomputation included."""
    mfu: float | None
    """FLOPs over p50 and the dense peak of the dtype that does most of them."""
    assumptions: tuple[str, ...]


def step_time(
    work: Work,
    strategy: Strategy,
    cluster: Cluster,
    *,
    calibration: Calibration | None = None,
    draws: int = 1000,
    saved_bytes: int | None = None,
) -> StepTime:
    """The time of a step in seconds; pure, and with `draws=0` (p50 alone) some milliseconds.

    Args:
        work: one micro-step of one device's whole model.
        strategy: how; it must be what `work` was made for.
        cluster: on what; without a network of its own 100 Gbit/s are between its nodes.
        calibration: measured on this machine, in place of packaged constants.
        draws: of the interval; 0 leaves p10 and p90 at p50.
        saved_bytes: what `offload=activations` sends to the host in a micro-step.

    Raises:
        UnsupportedCombination: no model for the device, the dtype, the optimizer or a link.
    """
    gpu = cluster.accelerator
    pricer = Pricer(gpu, strategy, calibration)
    links = Links.of(work, strategy, cluster, calibration)
    plan = schedule(work, strategy, pricer, links, saved_bytes)
    clockwork = _Clockwork(plan, calibration, links.overlap_cost)
    causes = _causes(pricer, links, calibration)
    middle = clockwork.play({})
    p50 = middle.end_s
    drawn = sorted(clockwork.play(factors).end_s for factors in draw_factors(causes, draws))
    by_dtype = pricer.flops(work)
    flops = sum(by_dtype.values()) * plan.micro_steps
    # Its kernels were timed in the user's own software: nothing is left of what programs differ in.
    program = 1.0 if calibration is not None and calibration.gemm else PROGRAM_P90.value
    dtype = max(by_dtype, key=by_dtype.__getitem__, default=None)
    parts = _parts(middle, pricer, links)
    return StepTime(
        step_s=widened(_quantiles(drawn, p50), program) if drawn else Quantiles(p50, p50, p50),
        micro_s=middle.micro_end_s / plan.micro_steps,
        update_s=p50 - middle.micro_end_s,
        parts=parts,
        bound_by=_bound_by(parts, network=links.over_network),
        widest=_widest(clockwork, causes, p50, program) if draws else "",
        flops=flops,
        mfu=flops / p50 / peak_flops_per_s(gpu, dtype) if dtype and p50 else None,
        assumptions=_assumptions(pricer, links, strategy, calibration),
    )


class _Played(NamedTuple):
    end_s: float
    micro_end_s: float
    busy_s: Mapping[str, float]
    waits_s: Mapping[str, float]


class _Clockwork:
    """Turns a schedule into seconds under a set of factors; rows that are alike are scaled once."""

    def __init__(
        self, plan: Schedule, calibration: Calibration | None, overlap_cost: float
    ) -> None:
        self.micro_steps = plan.micro_steps
        self.overlap_cost = overlap_cost
        known = calibration
        self.launch_s = (known and known.launch_s) or KERNEL_LAUNCH_S.value.mid
        self.dispatch_s = (known and known.dispatch_s) or DISPATCH_S.value.mid
        self._templates: list[Row] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self._first, self._middle, self._last, self._update = (
            [self._template(row) for row in rows]
            for rows in (plan.first, plan.middle, plan.last, plan.update)
        )
        self._busy_s: dict[str, float] = {}
        micros = ((plan.first, 1), (plan.middle, plan.micro_steps - 2), (plan.last, 1))
        for rows, times in (*micros, (plan.update, 1)):
            for row in rows:
                for part, seconds in row.busy_s.items():
                    self._busy_s[part] = self._busy_s.get(part, 0.0) + seconds * times

    def _template(self, row: Row) -> int:
        number = self._numbers.setdefault(row.key, len(self._templates))
        if number == len(self._templates):
            self._templates.append(row)
        return number

    def play(self, factors: Mapping[str, float]) -> _Played:
        """The whole step; a factor that is not named is one."""
        stages = [self._stage(row, factors) for row in self._templates]
        first, middle, last, update = (
            [stages[index] for index in rows]
            for rows in (self._first, self._middle, self._last, self._update)
        )
        clock = Clock()
        run(clock, first)
        if middle:
            _repeat(clock, middle, self.micro_steps - 2)
        run(clock, last)
        clock.drain()
        busy = {part: s * _factor(part, factors) for part, s in self._busy_s.items()}
        hidden = max(0.0, clock.links_s - clock.waits.get(LINKS, 0.0))
        slowed = self.overlap_cost * min(hidden, clock.compute)
        if slowed:
            busy[SLOWED] = slowed
            clock.delay(slowed)
        micro_end = clock.compute
        run(clock, update)
        clock.drain()
        return _Played(clock.compute, micro_end, busy, clock.waits)

    def _stage(self, row: Row, factors: Mapping[str, float]) -> Stage:
        links, copies = factors.get(COLLECTIVES, 1.0), factors.get(COPIES_RATE, 1.0)
        host = row.launches * self.launch_s + row.dispatches * self.dispatch_s
        return Stage(
            busy_s=sum(s * _factor(part, factors) for part, s in row.busy_s.items()),
            host_s=host * factors.get(HOST_RATE, 1.0),
            fetch_s=row.fetch_s * copies,
            gather_s=row.gather_s * links,
            reductions=tuple((share, seconds * links) for share, seconds in row.reductions),
            store_s=row.store_s * copies,
            host_step_s=row.host_step_s * factors.get(HOST_STEP_RATE, 1.0),
            waits=row.waits,
        )


def _repeat(clock: Clock, stages: list[Stage], times: int) -> None:
    """Micro-steps alike: played until each takes of every stream what the one before it took."""
    took: tuple[float, ...] = ()
    for played in range(1, times + 1):
        before, waited = clock.ends, dict(clock.waits)
        run(clock, stages)
        last, took = took, tuple(b - a for a, b in zip(before, clock.ends, strict=True))
        if last and _is_steady(last, took):
            more = times - played
            clock.advance(took, more)
            for cause, seconds in clock.waits.items():
                clock.waits[cause] = seconds + (seconds - waited.get(cause, 0.0)) * more
            return


def _is_steady(last: tuple[float, ...], took: tuple[float, ...]) -> bool:
    """Whether what follows takes the same: a host that is still ahead by less each time will not.

    What a queue is behind with may grow at its own rate; nobody waits for it before the end.
    """
    compute_s, host_s = took[:2]
    caught_up = host_s > compute_s * (1 + _SAME)
    alike = all(
        math.isclose(a, b, rel_tol=_SAME, abs_tol=1e-15) for a, b in zip(last, took, strict=True)
    )
    return alike and not caught_up


def _factor(part: str, factors: Mapping[str, float]) -> float:
    if part == PCIE:
        return factors.get(COPIES_RATE, 1.0)
    return factors.get(DEVICE, 1.0) * factors.get(part, 1.0)


def _causes(pricer: Pricer, links: Links, calibration: Calibration | None) -> tuple[Cause, ...]:
    gpu = pricer.gpu
    measured = calibration is not None and bool(calibration.gemm)
    own = _SIGMA_DEVICE if tables_of(gpu) or measured else _SIGMA_UNMEASURED_DEVICE
    found = [Cause(name=DEVICE, sigma=_SIGMA_CALIBRATED_DEVICE if measured else own)]
    for part, spread in pricer.spreads.items():
        if part == MISALIGNED_PRODUCTS and spread.basis != "measured":
            found.append(misaligned_cause(part, spread.sigma))
        else:
            found.append(Cause(name=part, sigma=spread.sigma))
    if links.sigmas:
        found.append(Cause(name=COLLECTIVES, sigma=max(links.sigmas.values())))
    low, mid, high = PCIE_SHARE.value
    found.append(Cause(name=COPIES_RATE, span=Span(mid / high, 1.0, mid / low)))
    low, mid, high = KERNEL_LAUNCH_S.value
    if calibration is not None and calibration.launch_s is not None:
        found.append(Cause(name=HOST_RATE, sigma=_SIGMA_CALIBRATED_HOST))
    else:
        found.append(Cause(name=HOST_RATE, span=Span(low / mid, 1.0, high / mid)))
    low, mid, high = links.host_adam
    found.append(Cause(name=HOST_STEP_RATE, span=Span(low / mid, 1.0, high / mid)))
    return tuple(found)


def _quantiles(drawn: list[float], p50: float) -> Quantiles:
    at = len(drawn) - 1
    low, high = drawn[round(0.1 * at)], drawn[round(0.9 * at)]
    return Quantiles(min(low, p50), p50, max(high, p50))


def _widest(clockwork: _Clockwork, causes: tuple[Cause, ...], p50: float, program: float) -> str:
    """The cause that alone moves the step most between its 10 % and 90 % points."""

    def width(cause: Cause) -> float:
        ends = [clockwork.play({cause.name: cause.at(sign * _Z_TENTH)}).end_s for sign in (-1, 1)]
        return abs(math.log(ends[1] / ends[0])) if min(ends) > 0 else 0.0

    if not p50:
        return ""
    widest = max(causes, key=width)
    return PROGRAM if math.log(program) > width(widest) else widest.name


def _parts(played: _Played, pricer: Pricer, links: Links) -> tuple[Part, ...]:
    parts = []
    for name, seconds in played.busy_s.items():
        spread = pricer.spreads.get(name)
        basis = spread.basis if spread else "derived"
        note = "; ".join(spread.notes) if spread else ""
        parts.append(Part(name=name, seconds=seconds, basis=basis, note=note))
    for name, seconds in played.waits_s.items():
        note = "; ".join(links.notes) if name == LINKS else ""
        parts.append(Part(name=name, seconds=seconds, basis="derived", note=note))
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def _bound_by(parts: tuple[Part, ...], *, network: bool) -> str:
    sums: dict[str, float] = {}
    for part in parts:
        resource = _BOUND_BY.get(part.name, "memory bandwidth")
        sums[resource] = sums.get(resource, 0.0) + part.seconds
    found = max(sums, key=sums.__getitem__, default="nothing")
    return "the network" if network and found == _BOUND_BY[LINKS] else found


def _assumptions(
    pricer: Pricer, links: Links, strategy: Strategy, calibration: Calibration | None
) -> tuple[str, ...]:
    lines = [note for spread in pricer.spreads.values() for note in spread.notes]
    lines += list(links.notes)
    if calibration is not None:
        lines.append(f"calibrated by Record {calibration.record[:8] or 'given'} of this device")
    misaligned = pricer.spreads.get(MISALIGNED_PRODUCTS)
    if misaligned is not None and misaligned.basis != "measured":
        lines.append("products with misaligned rows at twice their time, between 1 and 3 times")
    if not (calibration and calibration.launch_s):
        lines.append(
            f"{KERNEL_LAUNCH_S.value.mid * 1e6:g} us of the host a launch and"
            f" {DISPATCH_S.value.mid * 1e6:g} us an operator; `rigsize calibrate` measures yours"
        )
    if strategy.parallel in ZEROS:
        lines.append(
            "DeepSpeed's hooks as timed on a CPU, scaled by the host's time of an operator; modules"
            " without parameters and the optimizer's own Python are not counted"
        )
    if strategy.compile:
        lines.append("torch.compile leaves half the traffic between products, not measured")
    if strategy.offload == "cpu" or strategy.offload == "optimizer":
        lines.append("the host's optimizer has all threads; the ranks of a node share its memory")
    return tuple(dict.fromkeys(lines))
