"""Steps timed without the profiler, and what a Record says of their pace."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.run.record import Throughput

if TYPE_CHECKING:
    from rigsize.run.job import Job
    from rigsize.train.collate import Sizes

__all__ = [
    "LEAST_TIMED_STEPS",
    "NOISY",
    "WARM_UP_STEPS",
    "Clock",
    "TimedStep",
    "pace",
    "timed",
    "times_apart",
]

WARM_UP_STEPS = 2
"""The first makes the optimizer's states, the second may still tune kernels."""
LEAST_STEADY_STEPS = 5
LEAST_TIMED_STEPS = WARM_UP_STEPS + LEAST_STEADY_STEPS
NOISY = 0.10
"""pyperf warns when the deviation reaches this share of the mean."""
_FEW = f"fewer than {LEAST_STEADY_STEPS} steady steps: --steps {LEAST_TIMED_STEPS} or more"
_RATES = ("step_s", "real_tokens_per_s", "examples_per_s", "spread", "epoch_hours")


def times_apart(job: Job) -> bool:
    """Whether steps are timed beside the metered ones: the CPU's meter is the profiler."""
    return job.device == "cpu" and job.steps >= LEAST_TIMED_STEPS and not job.fake_world


class Clock:
    """Watches the time of steps alone."""

    def __init__(self) -> None:
        self.step_times: list[float] = []
        self._began = 0.0

    def mark(self, phase: str) -> None:
        """Phases are not told apart."""

    def begin_step(self) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """Stops it."""
        self.step_times.append(time.perf_counter() - self._began)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """One step's time and what it worked through, on all ranks."""

    time_s: float
    texts: int
    real_tokens: int
    computed_tokens: int


def timed(
    times_s: Sequence[float], sizes: Iterable[Sequence[Sizes]], ranks: int
) -> list[TimedStep]:
    """The steps of one rank, the others taken to have as much."""
    return [
        TimedStep(
            time_s=time_s,
            texts=ranks * sum(one.texts for one in step),
            real_tokens=ranks * sum(one.real_tokens for one in step),
            computed_tokens=ranks * sum(one.computed_tokens for one in step),
        )
        for time_s, step in zip(times_s, sizes, strict=False)
    ]


def pace(steps: Sequence[TimedStep], examples: int | None, doubt: str = "") -> Throughput:
    """The Throughput of timed steps; `doubt` says why their times mean nothing, empty if they do.

    Batches may differ in size, so it is the rate that has a median and a spread, not the time.
    """
    steady = steps[WARM_UP_STEPS:]
    computed = sum(step.computed_tokens for step in steps)
    padding = 1 - sum(step.real_tokens for step in steps) / computed if computed else None
    common = {
        "step_times_s": tuple(step.time_s for step in steps),
        "steady_steps": len(steady),
        "padding_share": padding,
        "examples": examples,
    }
    reason = doubt or (_FEW if len(steady) < LEAST_STEADY_STEPS else "")
    if reason:
        return Throughput(**common, unknown=dict.fromkeys(_RATES, reason))  # type: ignore[arg-type]
    tokens = [step.real_tokens / step.time_s for step in steady]
    texts_per_s = statistics.median(step.texts / step.time_s for step in steady)
    spread = _interquartile(tokens) / statistics.median(tokens)
    return Throughput(
        **common,  # type: ignore[arg-type]
        step_s=statistics.median(step.time_s for step in steady),
        real_tokens_per_s=statistics.median(tokens),
        examples_per_s=texts_per_s,
        spread=spread,
        epoch_hours=examples / texts_per_s / 3600 if examples else None,
        warning=_warning(spread),
        unknown={} if examples else {"epoch_hours": "no number of examples: --examples or --data"},
    )


def _interquartile(values: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def _warning(spread: float) -> str:
    if spread < NOISY:
        return ""
    return (
        f"the rate varies by {100 * spread:.0f} % between steady steps: more --steps, and a"
        " machine that does nothing else"
    )
