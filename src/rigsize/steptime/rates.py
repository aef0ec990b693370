"""How fast inference goes: texts and tokens a second, and what a million of them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rigsize.steptime.intervals import per_second, scaled, total_of
from rigsize.steptime.step import Part, Quantiles, StepTime

__all__ = ["Rates", "generation_of", "rates_of_passes", "usd_per_million"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of all ranks together, each with batches of its own: what the machines' price buys."""

    texts_per_s: Quantiles
    read_per_s: Quantiles | None
    """Positions read a second, padding included; None where tokens are written."""
    prefill_s: Quantiles | None = None
    """Of one rank: until the first token of a batch is there; None where none is written."""
    decode_s: Quantiles | None = None
    """Of one rank: a further token of every text of the batch, the cache half full."""
    written_per_s: Quantiles | None = None
    """Tokens of all texts of a batch of all ranks, prefill's time included."""


def rates_of_passes(step: StepTime, point: Mapping[str, int], ranks: int) -> Rates:
    """Of a model that reads whole texts: one pass a batch, in every rank at once.

    Args:
        step: one rank's pass over one batch.
        point: that batch's sizes.
        ranks: each with batches of its own.
    """
    B = point["B"]
    positions = point.get("N") or B * (point["S"] + point.get("T", 0))
    return Rates(
        texts_per_s=per_second(ranks * B, step.step_s),
        read_per_s=per_second(ranks * positions, step.step_s),
    )


def generation_of(
    prefill: StepTime, decode: StepTime, batch: int, new_tokens: int, ranks: int
) -> tuple[StepTime, Rates]:
    """A whole call of `generate` as one step, and its rates.

    Args:
        prefill: reads the prompts and gives each text's first token.
        decode: one more token of each text, at half of the cache's growth.
        batch: texts of one rank.
        new_tokens: of each text, one at least.
        ranks: each with batches of its own.
    """
    steps = new_tokens - 1
    whole = total_of((prefill.step_s, scaled(decode.step_s, steps)))
    parts = [_named("prefill", part, 1) for part in prefill.parts]
    parts += [_named("decode", part, steps) for part in decode.parts if steps]
    longer = decode if steps * decode.step_s.p50 > prefill.step_s.p50 else prefill
    call = replace(
        prefill,
        step_s=whole,
        micro_s=whole.p50,
        update_s=0.0,
        parts=tuple(parts),
        bound_by=longer.bound_by,
        widest=longer.widest,
        flops=prefill.flops + steps * decode.flops,
        mfu=_mfu(prefill, decode, steps, whole.p50),
        assumptions=tuple(dict.fromkeys((*prefill.assumptions, *decode.assumptions))),
    )
    rates = Rates(
        texts_per_s=per_second(ranks * batch, whole),
        read_per_s=None,
        prefill_s=prefill.step_s,
        decode_s=decode.step_s,
        written_per_s=per_second(ranks * batch * new_tokens, whole),
    )
    return call, rates


def _named(kind: str, part: Part, times: int) -> Part:
    return replace(part, name=f"{kind}: {part.name}", seconds=part.seconds * times)


def _mfu(prefill: StepTime, decode: StepTime, steps: int, seconds: float) -> float | None:
    """Of both: each pass's share of the peak, weighted by its time."""
    if prefill.mfu is None or decode.mfu is None or not seconds:
        return None
    busy = prefill.mfu * prefill.step_s.p50 + decode.mfu * steps * decode.step_s.p50
    return busy / seconds


def usd_per_million(rate: Quantiles, usd_per_hour: float) -> Quantiles:
    """USD a million at so many a second: the low rate is the high price."""
    each = usd_per_hour / 3600 * 1e6
    return Quantiles(each / rate.p90, each / rate.p50, each / rate.p10)
