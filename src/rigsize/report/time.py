"""Hours and money of a run, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rigsize.report.timed import NO_EXAMPLES, Timed, per_million
from rigsize.units import format_count, format_duration, format_usd

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.money import Cost
    from rigsize.steptime.run_lines import RunTime
    from rigsize.steptime.step import Quantiles

__all__ = ["time_text"]


def time_text(timed: Timed) -> Iterator[RenderableType]:
    """The step, what the run waits for with its price, energy, and renting against buying."""
    if timed.run is None:
        yield f"\ntime: {timed.reason}"
        return
    if timed.middle:
        yield _middle(timed.run)
        yield from _note(timed)
        return
    yield _step(timed.run)
    yield from _note(timed)
    if timed.run.rates is not None:
        yield _rates(timed)
    if timed.explained:
        yield _parts(timed.run)
    if timed.run.lines:
        yield _lines(timed)
        yield _run(timed.run)
    else:
        yield f"  no hours: {NO_EXAMPLES}"
    yield from _money(timed)


def _between(value: Quantiles) -> str:
    """`1.2 s (1.0 s to 1.5 s)`."""
    low, mid, high = map(format_duration, value)
    return f"{mid} ({low} to {high})"


def _usd(value: Quantiles) -> str:
    return f"{format_usd(value.p50)} ({format_usd(value.p10)} to {format_usd(value.p90)})"


def _step(run: RunTime) -> str:
    mfu = "" if run.step.mfu is None else f"; MFU {run.step.mfu:.0%}"
    return (
        f"\ntime: a step {_between(run.step.step_s)}, bound by {run.bound_by}{mfu}; widest:"
        f" {run.step.widest}"
    )


def _note(timed: Timed) -> Iterator[str]:
    if timed.note:
        yield f"  {timed.note}"


def _middle(run: RunTime) -> str:
    mfu = "" if run.step.mfu is None else f"; MFU {run.step.mfu:.0%}"
    return (
        f"\ntime: a step {format_duration(run.step.step_s.p50)}, bound by {run.bound_by}{mfu};"
        " --time: its interval and parts, with --examples hours, energy and price"
    )


def _rates(timed: Timed) -> str:
    assert timed.run is not None
    rates = timed.run.rates
    assert rates is not None
    found = [f"{_rate(rates.texts_per_s)} texts/s"]
    if rates.read_per_s is not None:
        found.append(f"{_rate(rates.read_per_s)} tokens/s read")
    if rates.prefill_s is not None and rates.written_per_s is not None:
        found.append(f"prefill {_between(rates.prefill_s)}")
        found.append(f"{_rate(rates.written_per_s)} tokens/s written")
    return "  " + ", ".join(found)


def _rate(value: Quantiles) -> str:
    low, mid, high = (format_count(round(v)) if v >= 1000 else f"{v:.3g}" for v in value)
    return f"{mid} ({low} to {high})"


def _parts(run: RunTime) -> RenderableType:
    from rigsize.report.console import table  # JSON needs no rich

    made = table(None, "of a step", "time", "share", "basis", "note", right=("time", "share"))
    total = run.step.step_s.p50
    for part in run.step.parts:
        share = f"{100 * part.seconds / total:.1f} %" if total else ""
        made.add_row(part.name, format_duration(part.seconds), share, part.basis, part.note)
    made.add_section()
    made.add_row("step", format_duration(total), "100.0 %", "", "")
    return made


def _lines(timed: Timed) -> RenderableType:
    """Line by line; they add up to the run, and their prices to its price."""
    from rigsize.report.console import table

    run, cost = timed.run, timed.cost
    assert run is not None
    money = ("USD",) if cost is not None else ()
    made = table(
        None,
        *("of the run", "time", "p10 to p90", *money, "basis", "note"),
        right=("time", "p10 to p90", "USD"),
    )
    prices = [format_usd(line.usd.p50) for line in cost.lines] if cost is not None else []
    for number, line in enumerate(run.lines):
        made.add_row(
            line.name, *_span(line.seconds), *prices[number : number + 1], line.basis, line.note
        )
    made.add_section()
    whole = [format_usd(cost.usd.p50)] if cost is not None else []
    made.add_row("run", *_span(run.total_s), *whole, "", "")
    return made


def _span(value: Quantiles) -> tuple[str, str]:
    low, mid, high = map(format_duration, value)
    return mid, f"{low} to {high}"


def _run(run: RunTime) -> str:
    energy = run.energy_kwh
    words = []
    if run.tokens is not None:
        words.append(f"{format_count(run.tokens)} tokens computed, padding included")
    if energy is not None:
        words.append(f"energy {energy.p50:,.3g} kWh ({energy.p10:,.3g} to {energy.p90:,.3g})")
    return f"  {'; '.join(words)}; left out: {', '.join(run.left_out)}"


def _money(timed: Timed) -> Iterator[str]:
    cost = timed.cost
    if cost is None:
        yield f"  price: {timed.cost_reason}"
        return
    kind = "spot" if cost.spot else "on demand"
    machines = f"{cost.machines:,} x " if cost.machines > 1 else ""
    offer = cost.offer
    gpus = f"{offer.gpu_count:g} GPUs, " if offer.gpu_count > 1 else ""
    where = f"{machines}{offer.provider} {offer.instance} ({gpus}{offer.region})"
    dated = cost.price_date or "an unknown day"
    source = f" from {offer.source}" if offer.source else ""
    rate = f"{cost.usd_per_hour:,.2f} USD/h {kind}, price of {dated}{source}"
    total = f"{_usd(cost.usd)} USD on {where}" if cost.lines else where
    yield f"  price: {total}, {rate}{_other(cost)}"
    for words, value in per_million(timed).items():
        yield f"  {_usd(value)} USD a million {words}"
    bought = timed.bought
    if bought is None:
        return
    runs = "" if bought.runs is None else f", {bought.runs:,.1f} of these runs"
    after = (
        "never cheaper: power alone costs as much as renting"
        if bought.hours is None
        else f"cheaper after {bought.hours:,.0f} hours of use{runs}"
    )
    yield f"  buying for {bought.own_usd:,.0f} USD: {after}; {'; '.join(bought.notes)}"


def _other(cost: Cost) -> str:
    if cost.other_usd is None or not cost.lines:
        return ""
    return f"; {format_usd(cost.other_usd)} USD {'on demand' if cost.spot else 'spot'}"
