"""Meters of one run's memory: the CPU allocator's events, or CUDA's own peak statistics.

What the CPU figure is: the peak, over all steps, of the bytes *requested* from c10's CPU
allocator and still alive: parameters, buffers and the batch (each storage once), and every
tensor the steps made, temporaries inside operators included. Not in it: Python, the code,
malloc's rounding, oneDNN's and BLAS's private buffers, what was freed before the first step.
It is what a replay without an allocator must give: no rounding, no segments, no context.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from rigsize.run.record import Memory

__all__ = ["CpuMeter", "CudaMeter", "Meter", "storages"]

PHASES = {
    "load": "load",
    "forward": "forward",
    "after_forward": "forward",
    "backward": "backward",
    "after_backward": "backward",
    "optimizer": "optimizer",
    "zero_grad": "optimizer",
}
"""The step's own phase names (`run/step.py`) and the four that a Record shows."""
_MARK = "rigsize:"
_NOT_ON_CPU = "not on CPU"


class Meter(Protocol):
    """What `measure` needs of a meter; all peaks are in bytes."""

    phase_peaks: dict[str, int]
    step_peaks: list[int]
    step_times: list[float]

    def mark(self, phase: str) -> None:
        """A phase of the step begins: handed to the step as its callback."""

    def begin_step(self) -> None:
        """A step begins."""

    def end_step(self) -> None:
        """It ended: its peak and its time are known."""

    def abandon(self) -> None:
        """The step failed: take what is known of it."""

    def memory(self, host_peak_bytes: int) -> Memory:
        """The peaks of all steps."""


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address, each storage once: tied weights share one."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


class CpuMeter:
    """Live requested bytes, from the allocator events that torch.profiler collects.

    The profiler is restarted at every forward pass, so that its own memory stays that of one
    micro-step however many are accumulated. It slows the step: times are upper bounds.
    """

    def __init__(self, kept: Iterable[torch.Tensor]) -> None:
        self._live = storages(kept)
        self._bytes = sum(self._live.values())
        self._profiler: Any = None
        self._phase = "load"
        self._began = 0.0
        self.phase_peaks = {"load": self._bytes}
        self.step_peaks: list[int] = []
        self.step_times: list[float] = []

    def mark(self, phase: str) -> None:
        """Restarts the profiler at a forward pass, and leaves a mark between its events."""
        if phase == "forward":
            self._collect()
            self._start()
        with record_function(_MARK + phase):
            pass

    def begin_step(self) -> None:
        """The step starts from what is alive."""
        self.step_peaks.append(self._bytes)
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """Reads the events of the last window."""
        self.step_times.append(time.perf_counter() - self._began)
        self._collect()

    def abandon(self) -> None:
        """What was alive when the step failed is known too."""
        self._collect()

    def memory(self, host_peak_bytes: int) -> Memory:
        """Allocated and host; a CPU has no caching allocator and no device memory."""
        names = ("reserved_peak_bytes", "device_peak_bytes", "context_bytes")
        return Memory(
            allocated_peak_bytes=max(self.phase_peaks.values()),
            host_peak_bytes=host_peak_bytes,
            unknown=dict.fromkeys(names, _NOT_ON_CPU),
        )

    def _start(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profiler.__enter__()

    def _collect(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        for node in _in_order(profiler.profiler.kineto_results.experimental_event_tree()):
            if node.typed[0] == _EventType.Allocation:
                self._count(node.typed[1])
            else:
                self._phase = PHASES[node.name.removeprefix(_MARK)]
            self._keep_peak()

    def _count(self, event: Any) -> None:
        if event.alloc_size > 0:
            self._live[event.ptr] = event.alloc_size
            self._bytes += event.alloc_size
        else:
            # What was not counted when it was born is not counted when it dies.
            self._bytes -= self._live.pop(event.ptr, 0)

    def _keep_peak(self) -> None:
        self.phase_peaks[self._phase] = max(self.phase_peaks.get(self._phase, 0), self._bytes)
        if self.step_peaks:
            self.step_peaks[-1] = max(self.step_peaks[-1], self._bytes)


def _in_order(roots: Iterable[Any]) -> list[Any]:
    """Allocator events and our marks, by time; without recursion, for deep trees."""
    found, waiting = [], list(roots)
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if node.typed[0] == _EventType.Allocation:
            if node.typed[1].device.type == "cpu":
                found.append(node)
        elif node.name.startswith(_MARK):
            found.append(node)
    return sorted(found, key=lambda node: node.start_time_ns)


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
