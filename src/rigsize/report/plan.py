"""A plan as text: what was chosen, why not the others, how much was looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING

from rigsize.hardware.offers import STALE_DAYS
from rigsize.plan.records import Chosen, Confirmation, Plan
from rigsize.plan.words import bound_in_words, describe_place, describe_way, hours_in_words
from rigsize.report.answer import Answer
from rigsize.report.host import host_line
from rigsize.report.plan_answer import (
    NETWORK,
    PlanAnswer,
    command,
    kept_bytes,
    notes_of_named,
    with_a_name,
)
from rigsize.report.text import headline, what_would_fit
from rigsize.units import GIB, format_bytes, format_usd, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["plan_text"]


def plan_text(answer: PlanAnswer) -> Iterator[RenderableType]:
    """The table, the commands of the named plans, what was left out and how much was searched."""
    plan, workload = answer.plan, answer.workload
    batch = "" if answer.global_batch is None else f", global batch {answer.global_batch:,}"
    yield (
        f"{answer.source.name}, {workload.task} {workload.use}:"
        f" {plural(workload.examples or 0, 'text')} of {_tokens(answer)},"
        f" {plural(workload.epochs, 'epoch')}{batch}"
    )
    yield from _verdict(plan)
    if plan.chosen:
        yield _table(answer)
        yield from _named(answer)
        yield from _misfit(answer)
    yield from _scaling(answer)
    yield from (f"note: {line}" for line in notes_of_named(answer))
    yield from (f"assumed: {line}" for line in dict.fromkeys(_assumed(answer)))
    yield from _rejected(plan)
    yield from _prices(answer)


def _tokens(answer: PlanAnswer) -> str:
    """`128 tokens`, or where lengths are known `31 tokens on average, the longest of 97`."""
    limit, lengths = answer.workload.max_length, answer.lengths
    if lengths is None:
        return plural(limit, "token")
    cut = lengths.cut_to(limit)
    return f"{cut.mean:,.0f} tokens on average, the longest of {cut.longest:,}"


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
    kept = kept_bytes(nearest)
    shown = Answer(estimate=estimate, requested_headroom_bytes=kept, edits=answer.plan.edits)
    yield headline(shown)
    yield host_line(estimate)
    if estimate.fit.of_card == "does_not_fit":
        yield from what_would_fit(shown)


def _assumed(answer: PlanAnswer) -> Iterator[str]:
    """What the question left open, then what the hours of named plans take for granted."""
    yield from answer.assumed
    for chosen in with_a_name(answer):
        yield from () if chosen.run is None else chosen.run.assumptions
    if any(point.nodes > 1 and not point.network_known for point in answer.plan.scaling):
        yield NETWORK


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
    for chosen in with_a_name(answer):
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
            yield f"  host memory {_host(chosen, estimate.host.peak_bytes, answer)}"
        yield from (f"  {miss}" for miss in chosen.misses)
        yield f"  {command(chosen, answer)}"


def _host(chosen: Chosen, need_bytes: int, answer: PlanAnswer) -> str:
    """What a node needs; where nobody says what it has, that this was not checked."""
    place = chosen.candidate.place
    words = f"{format_bytes(need_bytes)} a node"
    if place.cluster.host_memory_bytes is not None:
        return words
    if place.offer is answer.own:
        return f"{words}; --host-memory checks it"
    return f"{words}, not checked: this offer states none"


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
        yield (
            f"! warning: {plural(len(stale), 'price')} {are} undated or more than {STALE_DAYS} days"
            " old: `rigsize offers refresh`, or a newer --offers FILE"
        )
