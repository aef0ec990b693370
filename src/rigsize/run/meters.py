"""The protocol of a meter, and the CPU's: the events of its allocator.

What the CPU figure is: the peak, over all steps, of the bytes *requested* from c10's CPU
allocator and still alive: parameters, buffers and the batch (each storage once), and every
tensor the steps made, temporaries inside operators included. Not in it: Python, the code,
malloc's rounding, oneDNN's and BLAS's private buffers, what was freed before the first step.
It is what a replay without an allocator must give: no rounding, no segments, no context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from rigsize.run.record import Memory
from rigsize.run.tally import Tally

__all__ = ["NAMED_AT", "PHASES", "CpuMeter", "Meter", "Names", "StepWatch", "storages"]

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
NAMED_AT = ("forward", "optimizer")
"""Phases at whose beginning storages are named: states are there, then gradients too."""
Names = Callable[[], Mapping[int, str]]
"""Categories by address, of what is alive now."""
_MARK = "rigsize:"
_NOT_ON_CPU = "not on CPU"


class StepWatch(Protocol):
    """What the steps tell whoever watches them."""

    step_times: list[float]

    def mark(self, phase: str) -> None:
        """A phase of the step begins: handed to the step as its callback."""

    def begin_step(self) -> None:
        """A step begins."""

    def end_step(self) -> None:
        """It ended: what there is to know of it is known."""


class Meter(StepWatch, Protocol):
    """What `measure` needs of a meter; all peaks are in bytes."""

    phase_peaks: dict[str, int]
    step_peaks: list[int]

    def abandon(self) -> None:
        """The step failed: take what is known of it."""

    def memory(self, host_peak_bytes: int) -> Memory:
        """The peaks of all steps."""


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address, each storage once: tied weights share one.

    Of DTensors the local part, of torchao's weights the packed one (`trace.quantized`).
    """
    found = {}
    for tensor in tensors:
        local: Any = getattr(tensor, "to_local", None)
        held = getattr(tensor, "qdata", tensor) if local is None else local()
        storage = held.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


class CpuMeter:
    """Live requested bytes, from the allocator events that torch.profiler collects.

    The profiler is restarted at every forward pass, so that its own memory stays that of one
    micro-step however many are accumulated. It slows the step: times are upper bounds. It also
    sees storages that are resized in place, as FSDP2's gathered parameters are.

    Args:
        kept: what lives before the first step.
        names: called where gradients are whole, for the addresses of each category; with it the
            meter remembers who held the bytes at the peak.
    """

    def __init__(self, kept: Iterable[torch.Tensor], names: Names | None = None) -> None:
        self.tally = Tally(storages(kept), keeps_peak=names is not None)
        self._names = names
        self._named: list[Mapping[int, str]] = []
        self._profiler: Any = None
        self._began = 0.0
        self.phase_peaks = {"load": self.tally.bytes}
        self.step_peaks: list[int] = []
        self.step_times: list[float] = []

    def mark(self, phase: str) -> None:
        """Restarts the profiler at a forward pass, and leaves a mark between its events."""
        if phase == "forward":
            self._collect()
            self._start()
        if phase in NAMED_AT and self._names is not None:
            self._named.append(self._names())
        with record_function(_MARK + phase):
            pass

    def begin_step(self) -> None:
        """The step starts from what is alive."""
        self.step_peaks.append(self.tally.bytes)
        self.tally.step += 1
        self._start()
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """Reads the events of the last window."""
        self.step_times.append(time.perf_counter() - self._began)
        self._collect()
        if self._names is not None:
            self.tally.name(self._names())  # states that the first optimizer step made

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
                self._count(node)
            else:
                self._enter(node.name.removeprefix(_MARK))
            self._keep_peak()
        self.tally.close_window()

    def _count(self, node: Any) -> None:
        event = node.typed[1]
        if event.alloc_size > 0:
            op = _operator(node) if self._names is not None else ""
            self.tally.add(event.ptr, event.alloc_size, op)
        else:
            self.tally.remove(event.ptr)

    def _enter(self, phase: str) -> None:
        self.tally.phase = PHASES[phase]
        if phase in NAMED_AT and self._named:
            self.tally.name(self._named.pop(0))

    def _keep_peak(self) -> None:
        phase, now = self.tally.phase, self.tally.bytes
        self.phase_peaks[phase] = max(self.phase_peaks.get(phase, 0), now)
        if self.step_peaks:
            self.step_peaks[-1] = max(self.step_peaks[-1], now)


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


def _operator(node: Any) -> str:
    """`aten::linear > aten::addmm > aten::empty`, the innermost three."""
    names: list[str] = []
    while node.parent is not None and len(names) < 3:
        node = node.parent
        names.append(node.name)
    return " > ".join(reversed(names))
