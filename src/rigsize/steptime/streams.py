"""The streams of one rank: host queue, compute, collectives, copies to the device and from it.

Work goes through in stages (a layer's forward or backward pass). Of a stage

    start = max(compute is free, host has reached it, its parameters are gathered)
    end   = max(start + busy, host has launched the last of it)

and what it asks of the other streams queues there: the next stage's gather is issued when this
one starts, a reduction when its gradients are there. Several micro-steps go through one after
another without waiting for the host: it runs ahead as far as it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["COPIES", "HOST", "HOST_STEP", "HOST_SUM", "LINKS", "Clock", "Stage", "run"]

HOST = "waiting for host launches"
LINKS = "waiting for collectives"
COPIES = "waiting for copies over PCIe"
HOST_SUM = "gradient accumulation on the host"
HOST_STEP = "optimizer on the host"
_STREAMS = ("compute", "host", "links", "fetches", "stores", "gathered")


class Stage(NamedTuple):
    """What one stage takes of each stream, in seconds."""

    busy_s: float = 0.0
    """Compute."""
    host_s: float = 0.0
    """Dispatching and launching it."""
    fetch_s: float = 0.0
    """Copy of its parameters to the device, before they are gathered."""
    gather_s: float = 0.0
    """All-gather of its parameters, before it starts."""
    reductions: tuple[tuple[float, float], ...] = ()
    """(share of the stage after which it can start, seconds) of each reduction, in order."""
    store_s: float = 0.0
    """Copy of reduced gradients to the host."""
    host_step_s: float = 0.0
    """Work of the host on what was copied, for which it stops launching."""
    waits: bool = False
    """Starts when every stream has run dry."""


@dataclass(slots=True)
class Clock:
    """When each stream is free, and what compute has waited for."""

    compute: float = 0.0
    host: float = 0.0
    links: float = 0.0
    fetches: float = 0.0
    stores: float = 0.0
    gathered: float = 0.0
    """When the parameters of the stage that comes next are there."""
    links_s: float = 0.0
    """Seconds of collectives so far."""
    late: str = HOST
    """Why the host is late, if it is."""
    waits: dict[str, float] = field(default_factory=dict)

    def wait(self, cause: str, until: float) -> None:
        """Compute is idle up to `until`."""
        if until > self.compute:
            self.waits[cause] = self.waits.get(cause, 0.0) + until - self.compute
            self.compute = until

    def drain(self) -> None:
        """Compute waits for all that is under way."""
        self.wait(LINKS, self.links)
        self.wait(COPIES, max(self.stores, self.fetches))
        self.wait(self.late, self.host)
        self.late = HOST
        self.host = self.compute

    @property
    def ends(self) -> tuple[float, ...]:
        """When each stream is free, compute and host first, and the seconds of collectives."""
        return tuple(getattr(self, name) for name in (*_STREAMS, "links_s"))

    def advance(self, took: Sequence[float], times: int) -> None:
        """Further micro-steps, each of which takes so much of every stream, as in `ends`."""
        for name, seconds in zip((*_STREAMS, "links_s"), took, strict=True):
            setattr(self, name, getattr(self, name) + seconds * times)

    def delay(self, seconds: float) -> None:
        """The same state, later."""
        for name in _STREAMS:
            setattr(self, name, getattr(self, name) + seconds)


def run(clock: Clock, stages: Sequence[Stage]) -> None:
    """Sends one micro-step, or the optimizer step, through the streams."""
    clock.gathered = clock.compute
    last = len(stages) - 1
    for number, stage in enumerate(stages):
        if stage.waits:
            clock.drain()
        if number == 0 or stage.waits:
            _gather(clock, stage, clock.compute)
        if clock.gathered > clock.compute:
            _wait_for_parameters(clock)
        if clock.host > clock.compute:
            clock.wait(clock.late, clock.host)
        clock.late = HOST
        start = clock.compute
        if number < last and not stages[number + 1].waits:
            _gather(clock, stages[number + 1], start)
        clock.compute = start + stage.busy_s
        clock.host += stage.host_s
        if clock.host > clock.compute:
            clock.wait(HOST, clock.host)
        if stage.reductions or stage.store_s:
            _reduce(clock, stage, start)
        if stage.host_step_s:
            _on_host(clock, stage)


def _gather(clock: Clock, stage: Stage, issued: float) -> None:
    if not stage.fetch_s and not stage.gather_s:
        return
    ready = issued
    if stage.fetch_s:
        ready = clock.fetches = max(clock.fetches, ready) + stage.fetch_s
    if stage.gather_s:
        ready = clock.links = max(clock.links, ready) + stage.gather_s
        clock.links_s += stage.gather_s
    clock.gathered = ready


def _wait_for_parameters(clock: Clock) -> None:
    """The wait is the copy's up to its end, the collective's behind it."""
    if clock.fetches > clock.compute:
        clock.wait(COPIES, min(clock.fetches, clock.gathered))
    clock.wait(LINKS, clock.gathered)


def _reduce(clock: Clock, stage: Stage, start: float) -> None:
    span = clock.compute - start
    for share, seconds in stage.reductions:
        clock.links = max(clock.links, start + share * span) + seconds
        clock.links_s += seconds
    if stage.store_s:
        ready = clock.links if stage.reductions else clock.compute
        clock.stores = max(clock.stores, ready) + stage.store_s


def _on_host(clock: Clock, stage: Stage) -> None:
    """The host waits for the copy, works, and only then launches what follows.

    Compute may have launches queued; the next stage finds the host late and waits.
    """
    clock.host = max(clock.host, clock.stores, clock.compute if stage.waits else 0.0)
    clock.host += stage.host_step_s
    clock.late = HOST_STEP if stage.waits else HOST_SUM
    if stage.waits:
        clock.wait(COPIES, clock.stores)
        clock.wait(HOST_STEP, clock.host)
        clock.late = HOST
