"""The run's own memory and pace, without slowing it.

On CUDA the caching allocator keeps its peaks. On a CPU torch.profiler is the only witness,
so one step is made under it, the one with the largest micro-batch; its time counts for nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from rigsize.run.meters import CpuMeter
from rigsize.train.collate import Sizes
from rigsize.train.feed import Step

__all__ = ["Pace", "Watch"]

WARM_UP_STEPS = 2
"""The first makes the optimizer's states, the second may still compile or tune kernels."""


@dataclass(slots=True)
class Pace:
    """Steps timed so far: (seconds, examples, real tokens, computed tokens), all ranks."""

    samples: list[tuple[float, int, int, int]] = field(default_factory=list)

    @property
    def steady(self) -> list[tuple[float, int, int, int]]:
        """Without the warm-up."""
        return self.samples[WARM_UP_STEPS:]

    @property
    def step_s(self) -> float | None:
        """Median of the steady steps; None before there are any."""
        times = [seconds for seconds, *_ in self.steady]
        return statistics.median(times) if times else None

    @property
    def spread(self) -> float | None:
        """(p90 - p10) / median of the steady steps."""
        times = [seconds for seconds, *_ in self.steady]
        if len(times) < 3:
            return None
        deciles = statistics.quantiles(times, n=10)
        return (deciles[-1] - deciles[0]) / statistics.median(times)

    def rate(self, column: int) -> float | None:
        """Per second over the steady steps: 1 examples, 2 real tokens, 3 computed tokens."""
        seconds = sum(sample[0] for sample in self.steady)
        return sum(sample[column] for sample in self.steady) / seconds if seconds else None

    @property
    def padding_share(self) -> float | None:
        """Of all positions computed so far."""
        computed = sum(sample[3] for sample in self.samples)
        real = sum(sample[2] for sample in self.samples)
        return 1 - real / computed if computed else None


class Watch:
    """Memory of one rank."""

    def __init__(self, device: torch.device, metered_step: int | None) -> None:
        self._device = device
        self._metered_step = metered_step
        self.meter: CpuMeter | None = None
        self.largest: Sizes | None = None
        """The largest micro-batch of the steps that the peaks are of."""
        self.micro_steps = 1
        """Micro-batches of that step."""

    def begin(self, step: int, what: Step, kept: Iterable[torch.Tensor]) -> Any:
        """A step begins; returns the callback for its phases, None where nobody listens."""
        if self._device.type == "cpu" and step != self._metered_step:
            return None
        if self.largest is None or what.largest.computed_tokens > self.largest.computed_tokens:
            self.largest, self.micro_steps = what.largest, len(what.micro_batches)
        if self._device.type != "cpu":
            return None
        self.meter = CpuMeter(kept)
        self.meter.begin_step()
        return self.meter.mark

    def end(self) -> bool:
        """The step ended; whether it ran under the profiler."""
        if self.meter is None or len(self.meter.step_times) == len(self.meter.step_peaks):
            return False
        self.meter.end_step()
        return True

    @property
    def peak_bytes(self) -> int | None:
        """Allocated, so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(self.meter.phase_peaks.values()) if self.meter else None
