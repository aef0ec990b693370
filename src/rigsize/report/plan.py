"""A plan as JSON and as text: what was chosen, why not the others, how much was looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from rigsize.models import ModelSource
from rigsize.plan.records import Chosen, Limits, Plan
from rigsize.plan.words import describe_place, describe_way
from rigsize.report.answer import command_for
from rigsize.report.document import unknown
from rigsize.spec import Workload
from rigsize.steptime.step import Quantiles
from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["PlanAnswer", "plan_document", "plan_text"]

_BY_A_FACT = "it fits: another replay, of no less memory, does; not replayed itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """A Plan with what was asked."""

    plan: Plan
    source: ModelSource
    workload: Workload
    limits: Limits
    global_batch: int | None
    today: date
    assumed: tuple[str, ...] = ()


def command(chosen: Chosen, workload: Workload, verb: str = "estimate") -> str:
    """The command that asks for this very plan, or with `emit` writes its launch files."""
    candidate = chosen.candidate
    cluster = candidate.place.cluster
    kept = _kept_bytes(chosen) if verb == "estimate" else 0
    words = command_for(verb, candidate.way.workload, candidate.strategy, cluster, kept)
    if workload.examples is not None and "--examples" not in words:
        words += f" --examples {workload.examples}"
    if workload.epochs != 1 and "--epochs" not in words:
        words += f" --epochs {workload.epochs}"
    return words


def _kept_bytes(chosen: Chosen) -> int:
    """Of the card, what its capacity was lessened by."""
    whole = chosen.candidate.place.offer.accelerator.capacity_bytes or 0
    return whole - (chosen.candidate.place.cluster.accelerator.capacity_bytes or 0)


# -- JSON ---------------------------------------------------------------------------------------


def plan_document(answer: PlanAnswer) -> dict[str, Any]:
    """By the contract: plans[], rejected[], searched."""
    plan = answer.plan
    return {
        "model": {"name": answer.source.name, "config_digest": answer.source.digest},
        "workload": asdict(answer.workload),
        "limits": _limits(answer.limits),
        "global_batch": answer.global_batch,
        "met": plan.met,
        "plans": [_chosen(one, answer) for one in plan.chosen],
        "rejected": [
            {"class": one.kind, "of": one.of, "reason": one.reason, "count": one.count}
            for one in plan.rejected
        ],
        "searched": asdict(plan.searched),
        "scaling": [asdict(point) for point in plan.scaling],
        "assumptions": list(answer.assumed),
        "notes": list(plan.notes),
    }


def _limits(limits: Limits) -> dict[str, Any]:
    return asdict(limits)


def _chosen(chosen: Chosen, answer: PlanAnswer) -> dict[str, Any]:
    candidate = chosen.candidate
    place, way = candidate.place, candidate.way
    cluster = place.cluster
    return {
        "labels": list(chosen.labels),
        "misses": list(chosen.misses),
        "provider": place.offer.provider,
        "instance": place.offer.instance,
        "region": place.offer.region,
        "gpu": cluster.accelerator.id,
        "gpus": cluster.devices,
        "per_node": cluster.per_node,
        "nodes": cluster.nodes,
        "recipe": way.recipe,
        "changes": way.label,
        "workload": asdict(way.workload),
        "strategy": asdict(candidate.strategy),
        "plan": {
            "micro_batch": candidate.micro_batch,
            "accumulation": candidate.accumulation,
            "global_batch": candidate.global_batch,
        },
        "memory": _memory(chosen),
        "host": _host(chosen),
        "time": _time(chosen),
        "cost": _cost(chosen, answer),
        "command": command(chosen, answer.workload),
        "emit_command": f"{command(chosen, answer.workload, 'emit')} --out launch",
    }


def _memory(chosen: Chosen) -> dict[str, Any]:
    estimate = chosen.confirmed.estimate
    if estimate is None:
        return unknown("device_peak_bytes", _BY_A_FACT) | {"verdict": "fits"}
    memory = estimate.memory
    return {
        "allocated_peak_bytes": memory.allocated_peak_bytes,
        "reserved_peak_bytes": memory.reserved_peak_bytes,
        "device_peak_bytes": memory.device_peak_bytes,
        "low_bytes": memory.low_bytes,
        "high_bytes": memory.high_bytes,
        "capacity_bytes": estimate.fit.capacity_bytes,
        "verdict": estimate.fit.verdict,
    }


def _host(chosen: Chosen) -> dict[str, Any]:
    estimate = chosen.confirmed.estimate
    if estimate is None:
        return unknown("peak_bytes", _BY_A_FACT)
    return {"peak_bytes": estimate.host.peak_bytes, "moment": estimate.host.moment}


def _time(chosen: Chosen) -> dict[str, Any]:
    run = chosen.run
    assert run is not None, "a chosen plan is timed"
    epoch = run.epoch_hours
    return {
        "step_s": run.step.step_s._asdict(),
        "hours": run.hours._asdict(),
        "epoch_hours": None if epoch is None else epoch._asdict(),
        "bound_by": run.bound_by,
        "mfu": run.step.mfu,
        "lines": [
            {"name": line.name, "seconds": line.seconds._asdict(), "note": line.note}
            for line in run.lines
        ],
    }


def _cost(chosen: Chosen, answer: PlanAnswer) -> dict[str, Any]:
    place = chosen.candidate.place
    if not place.offer.price_date and not place.usd_per_hour:
        return {"usd": _quantiles(0.0), "price_date": None, "usd_per_hour": 0.0, "spot": False}
    run = chosen.run
    assert run is not None
    rate = place.usd_per_hour
    return {
        "usd": {name: hours * rate for name, hours in run.hours._asdict().items()},
        "usd_per_hour": rate,
        "price_date": place.offer.price_date or None,
        "source": place.offer.source,
        "stale": place.offer.is_stale(answer.today),
        "spot": answer.limits.spot,
    }


def _quantiles(value: float) -> dict[str, float]:
    return Quantiles(value, value, value)._asdict()


# -- text ---------------------------------------------------------------------------------------


def plan_text(answer: PlanAnswer) -> Iterator[RenderableType]:
    """The table, the commands of the named plans, what was left out and how much was searched."""
    plan, workload = answer.plan, answer.workload
    batch = "" if answer.global_batch is None else f", global batch {answer.global_batch:,}"
    yield (
        f"{answer.source.name}, {workload.task} {workload.use}: {workload.examples:,} texts of"
        f" {workload.max_length:,} tokens, {workload.epochs:,} epochs{batch}"
    )
    if answer.assumed:
        yield from (f"assumed: {line}" for line in answer.assumed)
    if not plan.met:
        yield (
            "no plan meets the limits; the nearest:"
            if plan.chosen
            else "no plan: nothing in this grid fits any of these machines"
        )
    if plan.chosen:
        yield _table(answer)
        yield from _named(answer)
    yield from _scaling(answer)
    yield "left out:"
    for one in plan.rejected:
        yield f"  {one.count:,} {one.of}: {one.reason}"
    searched = plan.searched
    yield (
        f"searched {searched.candidates:,} candidates by {searched.bounds:,} bounds,"
        f" {searched.evaluations:,} step times and {searched.replays:,} replays"
        f" in {searched.seconds:.1f} s"
    )
    yield from plan.notes
    yield from _prices(answer)


def _table(answer: PlanAnswer) -> RenderableType:
    from rigsize.report.console import table

    made = table(
        None, "", "machine", "how", "batch", "GiB a GPU", "hours", "USD",
        right=("GiB a GPU", "hours", "USD"),
    )  # fmt: skip
    for chosen in answer.plan.chosen:
        made.add_row(*_row(chosen))
    return made


def _row(chosen: Chosen) -> tuple[str, ...]:
    candidate, estimate = chosen.candidate, chosen.confirmed.estimate
    peak = None if estimate is None else estimate.memory.device_peak_bytes
    label = " ".join(name for name in chosen.labels if name != "front")
    return (
        label,
        describe_place(candidate.place),
        describe_way(candidate.way) + (" *" if candidate.way.label else ""),
        f"{candidate.micro_batch} x {candidate.accumulation}",
        "fits" if peak is None else f"{peak / 2**30:.1f}",
        _hours(chosen.score.hours),
        f"{chosen.score.usd:,.2f}",
    )


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.3f}"


def _named(answer: PlanAnswer) -> Iterator[str]:
    """Interval, what binds, and the command of each plan that has a name."""
    for chosen in answer.plan.chosen:
        names = [name for name in chosen.labels if name != "front"]
        run = chosen.run
        if not names or run is None:
            continue
        p10, _, p90 = run.hours
        estimate = chosen.confirmed.estimate
        yield (
            f"{', '.join(names)}: {_hours(p10)} to {_hours(p90)} hours, bound by {run.bound_by};"
            f" global batch {chosen.candidate.global_batch:,}"
        )
        if chosen.candidate.way.label:
            yield f"  * {chosen.candidate.way.label}"
        if estimate is not None:
            yield f"  host memory {format_bytes(estimate.host.peak_bytes)} a node"
        yield from (f"  {miss}" for miss in chosen.misses)
        yield f"  {command(chosen, answer.workload)}"


def _scaling(answer: PlanAnswer) -> Iterator[RenderableType]:
    points = answer.plan.scaling
    if not points:
        return
    from rigsize.report.console import table

    made = table(
        None, "nodes", "GPUs", "how", "batch", "hours", "USD", "efficiency", "bound by",
        right=("nodes", "GPUs", "hours", "USD", "efficiency"),
    )  # fmt: skip
    for point in points:
        made.add_row(
            str(point.nodes),
            str(point.gpus),
            point.how,
            point.batch,
            _hours(point.hours),
            f"{point.usd:,.2f}",
            f"{point.efficiency:.0%}",
            point.bound_by,
        )
    yield f"scaling of {points[0].machine}, efficiency against the fewest nodes that it fits:"
    yield made
    yield answer.plan.scaling_breaks


def _prices(answer: PlanAnswer) -> Iterator[str]:
    """Where the prices come from and how old they are."""
    offers = {id(c.candidate.place.offer): c.candidate.place.offer for c in answer.plan.chosen}
    sources: Mapping[str, None] = dict.fromkeys(
        f"{offer.provider} {offer.price_date or 'undated'}"
        for offer in offers.values()
        if offer.usd_per_hour(answer.limits.spot)
    )
    if sources:
        kind = "spot" if answer.limits.spot else "on demand"
        yield f"prices {kind}, as of: {', '.join(sources)}"
    stale = [o for o in offers.values() if o.usd_per_hour() and o.is_stale(answer.today)]
    if stale:
        yield f"! warning: {len(stale)} of these prices are old: `rigsize offers refresh`"
