"""Hours and money of a run, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rigsize.units import format_count, format_duration, format_usd

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rigsize.money import BreakEven, Cost
    from rigsize.steptime.rates import Rates
    from rigsize.steptime.run_lines import RunTime
    from rigsize.steptime.step import Quantiles

__all__ = [
    "NOT_ASKED",
    "NOT_TIMED",
    "Timed",
    "cost_document",
    "quantiles",
    "time_document",
    "time_text",
]

NOT_ASKED = "not asked for: --time"
NO_EXAMPLES = "no number of texts: --examples N, or --data FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Time and price of a run, or why there is none."""

    run: RunTime | None = None
    reason: str = NOT_ASKED
    """Why there is no time."""
    middle: bool = False
    """Only the middle of the step was made: no interval, no hours, no price."""
    cost: Cost | None = None
    cost_reason: str = NOT_ASKED
    """Why there is no price."""
    bought: BreakEven | None = None
    explained: bool = False
    """Whether the step's parts are wanted too."""
    command: tuple[str, ...] = ()
    """The words that ask for it."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Of the time model and the run."""
        return () if self.run is None else self.run.assumptions


NOT_TIMED = Timed()


# -- text ---------------------------------------------------------------------------------------


def time_text(timed: Timed) -> Iterator[RenderableType]:
    """The step, what the run waits for with its price, energy, and renting against buying."""
    if timed.run is None:
        yield f"\ntime: {timed.reason}"
        return
    if timed.middle:
        yield _middle(timed.run)
        return
    yield _step(timed.run)
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
    rate = f"{cost.usd_per_hour:,.2f} USD/h {kind}, price of {dated}"
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


def per_million(timed: Timed) -> dict[str, Quantiles]:
    """USD a million texts and tokens of inference, by what is counted."""
    from rigsize.steptime.rates import usd_per_million

    cost = timed.cost
    rates = None if timed.run is None else timed.run.rates
    if rates is None or cost is None:
        return {}
    counted = {"tokens written": rates.written_per_s, "tokens read": rates.read_per_s}
    counted["texts"] = rates.texts_per_s
    return {
        words: usd_per_million(rate, cost.usd_per_hour)
        for words, rate in counted.items()
        if rate is not None
    }


# -- JSON ---------------------------------------------------------------------------------------


def quantiles(value: Quantiles) -> dict[str, float]:
    """`{p10, p50, p90}`."""
    return {"p10": value.p10, "p50": value.p50, "p90": value.p90}


def _or_unknown(key: str, value: Quantiles | None, reason: str) -> dict[str, Any]:
    if value is None:
        return {key: None, f"{key}_unknown_reason": reason}
    return {key: quantiles(value)}


def time_document(timed: Timed) -> dict[str, Any]:
    """`time` of the contract."""
    run = timed.run
    if run is None:
        keys = ("step_s", "epoch_hours", "run_hours", "bound_by")
        unknown: dict[str, Any] = {}
        for key in keys:
            unknown |= {key: None, f"{key}_unknown_reason": timed.reason}
        return unknown | {"parts": [], "lines": []}
    step = run.step
    no_power = "nobody published its power limit" if run.lines else NO_EXAMPLES
    return {
        "step_s": _middle_alone(step.step_s) if timed.middle else quantiles(step.step_s),
        **_or_unknown("epoch_hours", run.epoch_hours, NO_EXAMPLES),
        **_or_unknown("run_hours", run.hours if run.lines else None, NO_EXAMPLES),
        "bound_by": run.bound_by,
        **_widest(step.widest),
        "micro_s": step.micro_s,
        "update_s": step.update_s,
        "flops": step.flops,
        **(
            {"mfu": None, "mfu_unknown_reason": "no published rate of this precision"}
            if step.mfu is None
            else {"mfu": step.mfu}
        ),
        "parts": [asdict(part) for part in step.parts],
        "lines": [line._asdict() | {"seconds": quantiles(line.seconds)} for line in run.lines],
        **_counts(run),
        **_or_unknown("energy_kwh", run.energy_kwh, no_power),
        **({} if timed.middle else _rates_document(run.rates)),
        "left_out": list(run.left_out),
    }


def _middle_alone(value: Quantiles) -> dict[str, Any]:
    found: dict[str, Any] = {"p50": value.p50}
    for key in ("p10", "p90"):
        found |= {key: None, f"{key}_unknown_reason": NOT_ASKED}
    return found


def _widest(words: str) -> dict[str, Any]:
    if not words:
        return {"widest": None, "widest_unknown_reason": NOT_ASKED}
    return {"widest": words}


def _counts(run: RunTime) -> dict[str, Any]:
    steps = run.steps
    if steps is None or run.tokens is None:
        return {}
    return {
        "counts": {
            "examples": steps.examples,
            "epochs": steps.epochs,
            "global_batch": steps.global_batch,
            "last_batch": steps.last_batch,
            "updates": steps.updates * steps.epochs,
            "micro_steps": steps.micro_steps * steps.epochs,
            "tokens": run.tokens,
        }
    }


def _rates_document(rates: Rates | None) -> dict[str, Any]:
    if rates is None:
        return {}
    found = {
        "texts_per_s": rates.texts_per_s,
        "tokens_read_per_s": rates.read_per_s,
        "prefill_s": rates.prefill_s,
        "decode_s": rates.decode_s,
        "tokens_written_per_s": rates.written_per_s,
    }
    return {"rates": {k: quantiles(v) for k, v in found.items() if v is not None}}


def cost_document(timed: Timed) -> dict[str, Any]:
    """`cost` of the contract."""
    cost = timed.cost
    if cost is None:
        reason = timed.cost_reason
        return {
            "usd": None,
            "usd_unknown_reason": reason,
            "price_date": None,
            "price_date_unknown_reason": reason,
        }
    offer = cost.offer
    return {
        **_or_unknown("usd", cost.usd if cost.lines else None, NO_EXAMPLES),
        **(
            {"price_date": cost.price_date}
            if cost.price_date
            else {"price_date": None, "price_date_unknown_reason": "its source is undated"}
        ),
        "stale": cost.stale,
        "provider": offer.provider,
        "instance": offer.instance,
        "region": offer.region,
        "machines": cost.machines,
        "spot": cost.spot,
        "usd_per_hour": cost.usd_per_hour,
        "source": offer.source,
        "lines": [{"name": line.name, "usd": quantiles(line.usd)} for line in cost.lines],
        "usd_per_million": {
            words.replace(" ", "_"): quantiles(value) for words, value in per_million(timed).items()
        },
        "notes": list(cost.notes),
        **_bought_document(timed.bought),
    }


def _bought_document(bought: BreakEven | None) -> dict[str, Any]:
    if bought is None:
        return {}
    why = "power alone costs as much as renting"
    hours: dict[str, Any] = {"hours": bought.hours}
    if bought.hours is None:
        hours |= {"hours_unknown_reason": why}
    hours |= {"runs": bought.runs}
    if bought.runs is None:
        hours |= {"runs_unknown_reason": why if bought.hours is None else NO_EXAMPLES}
    return {
        "break_even": {
            "own_usd": bought.own_usd,
            "rent_usd_per_hour": bought.rent_usd_per_hour,
            "power_usd_per_hour": bought.power_usd_per_hour,
            **hours,
            "notes": list(bought.notes),
        }
    }
