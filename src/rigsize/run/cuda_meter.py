"""CUDA's meter: the caching allocator's own statistics and what the driver says of the card."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from rigsize.run.meters import PHASES
from rigsize.run.record import Memory

__all__ = ["CudaMeter"]


class CudaMeter:
    """The caching allocator's peaks, reset at every phase, and the card's used memory.

    The statistics are kept by the host at every call, so that no synchronisation is needed.
    """

    def __init__(self, used_before_bytes: int | None) -> None:
        self._used_before = used_before_bytes
        self._phase = "load"
        self._began = 0.0
        self._reserved = 0
        self._contexts: list[int] = []
        self.phase_peaks: dict[str, int] = {}
        self.step_peaks: list[int] = []
        self.step_times: list[float] = []
        self._close()

    def mark(self, phase: str) -> None:
        """Closes the phase before."""
        self._close()
        self._phase = PHASES[phase]

    def begin_step(self) -> None:
        """Waits for what is running, then starts the clock."""
        torch.cuda.synchronize()
        self._close()
        self.step_peaks.append(torch.cuda.memory_allocated())
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """From the second step on, the context is what the card has in use beside reserved."""
        torch.cuda.synchronize()
        self.step_times.append(time.perf_counter() - self._began)
        self._close()
        if len(self.step_times) >= 2:
            free, total = torch.cuda.mem_get_info()
            used = total - free - (self._used_before or 0)
            self._contexts.append(used - torch.cuda.memory_reserved())

    def abandon(self) -> None:
        """The statistics hold up to the failing request."""
        self._close()

    def memory(self, host_peak_bytes: int) -> Memory:
        """All five statistics; no context where the run ended before its second step."""
        context = max(self._contexts) if self._contexts else None
        unknown = (
            {}
            if context is not None
            else dict.fromkeys(("context_bytes", "device_peak_bytes"), "no second step ended")
        )
        return Memory(
            allocated_peak_bytes=max(self.phase_peaks.values()),
            reserved_peak_bytes=self._reserved,
            device_peak_bytes=None if context is None else self._reserved + context,
            context_bytes=context,
            host_peak_bytes=host_peak_bytes,
            unknown=unknown,
        )

    def notes(self) -> list[str]:
        """What qualifies the figures."""
        statistics: Mapping[str, int] = torch.cuda.memory_stats()
        retries = statistics.get("num_alloc_retries", 0)
        notes = []
        if retries:
            notes.append(f"the allocator freed its cache and retried {retries} times")
        if self._used_before is None:
            notes.append("nvidia-smi did not answer: others' use of the card counts as context")
        elif self._used_before:
            notes.append(f"{self._used_before} bytes of the card were in use before this process")
        return notes

    def _close(self) -> None:
        peak = torch.cuda.max_memory_allocated()
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved())
        self.phase_peaks[self._phase] = max(self.phase_peaks.get(self._phase, 0), peak)
        if self.step_peaks:
            self.step_peaks[-1] = max(self.step_peaks[-1], peak)
        torch.cuda.reset_peak_memory_stats()
