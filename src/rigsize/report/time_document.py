"""Hours and money of a run as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rigsize.report.timed import NO_EXAMPLES, Timed, per_million

if TYPE_CHECKING:
    from rigsize.money import BreakEven
    from rigsize.steptime.rates import Rates
    from rigsize.steptime.run_lines import RunTime
    from rigsize.steptime.step import Quantiles

__all__ = ["cost_document", "intervals", "quantiles", "time_document"]


def quantiles(value: Quantiles) -> dict[str, float]:
    """`{p10, p50, p90}`."""
    return {"p10": value.p10, "p50": value.p50, "p90": value.p90}


def intervals(value: Quantiles, timed: Timed) -> dict[str, Any]:
    """The same, but its middle alone where no more was made."""
    if not timed.middle:
        return quantiles(value)
    found: dict[str, Any] = {"p50": value.p50}
    for key in ("p10", "p90"):
        found |= {key: None, f"{key}_unknown_reason": timed.reason}
    return found


def _or_unknown(key: str, value: Quantiles | None, timed: Timed, reason: str) -> dict[str, Any]:
    if value is None:
        return {key: None, f"{key}_unknown_reason": reason}
    return {key: intervals(value, timed)}


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
        "step_s": intervals(step.step_s, timed),
        **_or_unknown("epoch_hours", run.epoch_hours, timed, NO_EXAMPLES),
        **_or_unknown("run_hours", run.hours if run.lines else None, timed, NO_EXAMPLES),
        "bound_by": run.bound_by,
        **_widest(step.widest, timed.reason),
        "micro_s": step.micro_s,
        "update_s": step.update_s,
        "flops": step.flops,
        **(
            {"mfu": None, "mfu_unknown_reason": "no published rate of this precision"}
            if step.mfu is None
            else {"mfu": step.mfu}
        ),
        "parts": [asdict(part) for part in step.parts],
        "lines": [
            line._asdict() | {"seconds": intervals(line.seconds, timed)} for line in run.lines
        ],
        **_counts(run),
        **_or_unknown("energy_kwh", run.energy_kwh, timed, no_power),
        **({} if timed.middle else _rates_document(run.rates)),
        "left_out": list(run.left_out),
        "notes": [timed.note] if timed.note else [],
    }


def _widest(words: str, reason: str) -> dict[str, Any]:
    if not words:
        return {"widest": None, "widest_unknown_reason": reason}
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
        **_or_unknown("usd", cost.usd if cost.lines else None, timed, NO_EXAMPLES),
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
        "lines": [{"name": line.name, "usd": intervals(line.usd, timed)} for line in cost.lines],
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
