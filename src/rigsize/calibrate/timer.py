"""Times of one call on a device: warm-up dropped, several repetitions, within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Timer"]

_LEAST, _MOST = 5, 25
"""Repetitions."""
_AT_ONCE_S = 5e-3
"""A repetition lasts at least this long, over as many calls as that takes: an event's own
resolution is half a microsecond, and the host's cost of a launch is hidden behind the queue."""


class Timer:
    """Times calls on one device; a CUDA device by its own events, the host by its clock."""

    def __init__(self, device: str, budget_s: float) -> None:
        self.device, self.budget_s = device, budget_s

    def __call__(self, call: Callable[[], Any]) -> tuple[float, ...]:
        """Seconds of one call, for each repetition."""
        call()
        self.wait()
        once = self._repetition(call, 1)
        calls = max(1, math.ceil(_AT_ONCE_S / max(once, 1e-7)))
        repetitions = int(self.budget_s / max(once * calls, 1e-7))
        times = [self._repetition(call, calls) for _ in range(min(_MOST, max(_LEAST, repetitions)))]
        return tuple(times)

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _repetition(self, call: Callable[[], Any], calls: int) -> float:
        if self.device != "cuda":
            began = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - began) / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms / 1e3 / calls
