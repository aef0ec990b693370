"""Time and price of a run as the reports show them, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rigsize.money import BreakEven, Cost
    from rigsize.steptime.run_lines import RunTime
    from rigsize.steptime.step import Quantiles

__all__ = ["NOT_ASKED", "NOT_TIMED", "NO_EXAMPLES", "Timed", "per_million"]

NOT_ASKED = "not asked for: --time"
NO_EXAMPLES = "no number of texts: --examples N, or --data FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Time and price of a run, or why there is none."""

    run: RunTime | None = None
    reason: str = NOT_ASKED
    """Why there is no time, or with `middle` no interval."""
    middle: bool = False
    """Only the middle was made: no interval, and of `estimate` no hours and no price."""
    cost: Cost | None = None
    cost_reason: str = NOT_ASKED
    """Why there is no price."""
    bought: BreakEven | None = None
    explained: bool = False
    """Whether the step's parts are wanted too."""
    note: str = ""
    """What is to be known of time and price alike; empty for nothing."""
    command: tuple[str, ...] = ()
    """The words that ask for it."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Of the time model and the run."""
        return () if self.run is None else self.run.assumptions


NOT_TIMED = Timed()


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
