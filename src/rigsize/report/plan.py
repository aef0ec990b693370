"""A plan as JSON and as text: what was chosen, why not the others, how much was looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from math import inf
from typing import TYPE_CHECKING, Any

from rigsize.hardware.offers import Offer
from rigsize.models import ModelSource
from rigsize.plan.records import Chosen, Confirmation, Limits, Plan
from rigsize.plan.words import bound_in_words, describe_place, describe_way, hours_in_words
from rigsize.report.answer import Answer, command_for
from rigsize.report.document import edit_document, unknown
from rigsize.report.host import host_line
from rigsize.report.text import headline, what_would_fit
from rigsize.spec import Workload
from rigsize.spec.zero import ZEROS
from rigsize.steptime.step import Quantiles
from rigsize.units import GIB, format_bytes, format_usd, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["PlanAnswer", "plan_document", "plan_text"]

_BY_A_FACT = "it fits: another replay, of no less memory, does; not replayed itself"
_NO_TIME = "no time can be given for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """A Plan with what was asked."""

    plan: Plan
    source: ModelSource
    workload: Workload
    limits: Limits
    global_batch: int | None
    today: date
    own: Offer | None = None
    """The machines one has."""
    usd_per_kwh: float | None = None
    """Of their energy; None where it has no price."""
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
        "edits": [edit_document(edit) for edit in plan.edits],
        "scaling": [asdict(point) for point in plan.scaling],
        "assumptions": list(answer.assumed),
        "notes": [*plan.notes, *_of_named(answer)],
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
        return unknown("device_peak_bytes", _BY_A_FACT) | {
            "at_most_bytes": chosen.confirmed.at_most_bytes,
            "verdict": "fits",
        }
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
    if run is None:
        return unknown("hours", _NO_TIME)
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
        "assumptions": list(run.assumptions),
    }


def _cost(chosen: Chosen, answer: PlanAnswer) -> dict[str, Any]:
    place = chosen.candidate.place
    if not place.offer.price_date and not place.usd_per_hour:
        free = {"usd": _quantiles(0.0), "usd_per_hour": 0.0, "spot": False}
        return free | unknown("price_date", "one's own machines have no price")
    run = chosen.run
    if run is None:
        return unknown("usd", _NO_TIME)
    rate, kwh = place.usd_per_hour, None
    usd = {name: hours * rate for name, hours in run.hours._asdict().items()}
    if place.offer is answer.own and run.energy_kwh is not None:
        kwh = answer.usd_per_kwh or 0.0
        usd = {name: energy * kwh for name, energy in run.energy_kwh._asdict().items()}
    return {
        "usd": usd,
        "usd_per_hour": rate,
        "usd_per_kwh": kwh,
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
        f"{answer.source.name}, {workload.task} {workload.use}:"
        f" {plural(workload.examples or 0, 'text')} of {plural(workload.max_length, 'token')},"
        f" {plural(workload.epochs, 'epoch')}{batch}"
    )
    yield from _verdict(plan)
    if plan.chosen:
        yield _table(answer)
        yield from _named(answer)
        yield from _misfit(answer)
    yield from _scaling(answer)
    yield from (f"note: {line}" for line in _of_named(answer))
    yield from (f"assumed: {line}" for line in dict.fromkeys(_assumed(answer)))
    yield from _rejected(plan)
    yield from _prices(answer)


def _verdict(plan: Plan) -> Iterator[str]:
    if plan.met:
        return
    if not plan.chosen:
        why = plan.notes or ("no way to run it is left, for the reasons below",)
        yield f"no plan: {'; '.join(why)}"
    elif plan.chosen[0].confirmed.fits:
        yield "no plan meets the limits; the nearest:"
    else:
        yield "no plan: it fits none of these machines; the nearest:"


def _misfit(answer: PlanAnswer) -> Iterator[RenderableType]:
    """Where nothing fits: the nearest as `estimate` tells it, and what would help most."""
    nearest = answer.plan.chosen[0]
    estimate = nearest.confirmed.estimate
    if nearest.confirmed.fits or estimate is None:
        return
    kept = _kept_bytes(nearest)
    shown = Answer(estimate=estimate, requested_headroom_bytes=kept, edits=answer.plan.edits)
    yield headline(shown)
    yield host_line(estimate)
    if estimate.fit.of_card == "does_not_fit":
        yield from what_would_fit(shown)


def _assumed(answer: PlanAnswer) -> Iterator[str]:
    """What the question left open, then what the hours of named plans take for granted."""
    yield from answer.assumed
    for chosen in _with_a_name(answer):
        yield from () if chosen.run is None else chosen.run.assumptions
    if any(point.nodes > 1 for point in answer.plan.scaling):
        yield _NETWORK


def _of_named(answer: PlanAnswer) -> Iterator[str]:
    """What is to be known of named plans before they are launched."""
    if any(one.candidate.strategy.parallel in ZEROS for one in _with_a_name(answer)):
        yield "`rigsize train` does not run ZeRO: `rigsize emit` writes the files for DeepSpeed"


_NETWORK = "100 Gbit/s between nodes"
"""As the time model says it of a plan of several nodes."""


def _with_a_name(answer: PlanAnswer) -> list[Chosen]:
    return [one for one in answer.plan.chosen if one.labels != ("front",)]


def _rejected(plan: Plan) -> Iterator[str]:
    if plan.rejected:
        yield "left out:"
    for one in plan.rejected:
        yield f"  {plural(one.count, one.of.removesuffix('s'))}: {one.reason}"
    searched = plan.searched
    yield (
        f"searched {plural(searched.candidates, 'candidate')} by"
        f" {plural(searched.bounds, 'bound')}, {plural(searched.evaluations, 'step time')} and"
        f" {plural(searched.replays, 'replay')} in {searched.seconds:.1f} s"
    )


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
    candidate = chosen.candidate
    label = " ".join(name for name in chosen.labels if name != "front")
    return (
        label,
        describe_place(candidate.place),
        describe_way(candidate.way) + (" *" if candidate.way.label else ""),
        f"{candidate.micro_batch} x {candidate.accumulation}",
        _gib(chosen.confirmed),
        hours_in_words(chosen.score.hours),
        _usd(chosen.score.usd),
    )


def _gib(confirmed: Confirmation) -> str:
    """`23.4`, or `<= 23.4` where the replay was another's, of no less memory."""
    if confirmed.estimate is not None:
        memory = confirmed.estimate.memory
        peak = memory.device_peak_bytes
        peak = memory.allocated_peak_bytes if peak is None else peak
        return f"{peak / GIB:,.1f}"
    most = confirmed.at_most_bytes
    return "unknown" if most is None else f"<= {most / GIB:,.1f}"


def _usd(usd: float) -> str:
    """A dash for one's own machines where power has no price."""
    if usd == inf:
        return "unknown"
    return format_usd(usd) if usd else "-"


def _named(answer: PlanAnswer) -> Iterator[str]:
    """Interval, what binds, and the command of each plan that has a name."""
    for chosen in _with_a_name(answer):
        names = [name for name in chosen.labels if name != "front"]
        run = chosen.run
        hours = "hours unknown"
        if run is not None:
            p10, _, p90 = run.hours
            span = f"{hours_in_words(p10)} to {hours_in_words(p90)}"
            hours = f"{span} hours, bound by {bound_in_words(run)}"
        estimate = chosen.confirmed.estimate
        yield f"{', '.join(names)}: {hours}; global batch {chosen.candidate.global_batch:,}"
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
            hours_in_words(point.hours),
            _usd(point.usd),
            f"{point.efficiency:.0%}",
            point.bound_by,
        )
    yield f"scaling of {points[0].machine}, efficiency against the fewest GPUs that it fits:"
    yield made
    yield answer.plan.scaling_breaks


def _prices(answer: PlanAnswer) -> Iterator[str]:
    """Where the prices come from and how old they are."""
    spot = answer.limits.spot
    offers = {id(c.candidate.place.offer): c.candidate.place.offer for c in answer.plan.chosen}
    sources: Mapping[str, None] = dict.fromkeys(
        f"{offer.provider} {offer.price_date or 'undated'} ({offer.source})"
        for offer in offers.values()
        if offer.usd_per_hour(spot)
    )
    if sources:
        kind = " spot" if spot else " on demand"
        kind = "" if all(offer is answer.own for offer in offers.values()) else kind
        yield f"prices{kind}, as of: {', '.join(sources)}"
    stale = [o for o in offers.values() if o.usd_per_hour(spot) and o.is_stale(answer.today)]
    if stale:
        are = "is" if len(stale) == 1 else "are"
        yield f"! warning: {plural(len(stale), 'price')} {are} old: `rigsize offers refresh`"
