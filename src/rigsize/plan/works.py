"""The work of ways at sizes, built once for all cards that run the same kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rigsize.estimate import build, with_batch
from rigsize.hardware.accelerators import Accelerator
from rigsize.models import ModelSource
from rigsize.plan.records import Way
from rigsize.plan.traces import Traces
from rigsize.point import point_of
from rigsize.program.environment import environment_of
from rigsize.program.work import Work
from rigsize.program.work_build import build_work, work_for
from rigsize.spec import Cluster
from rigsize.trace.profile import Profile

__all__ = ["Works"]


class Works:
    """`Work` by way, card and micro-batch."""

    def __init__(self, source: ModelSource, traces: Traces) -> None:
        self.source, self.traces = source, traces
        self._asked: dict[tuple[Way, Accelerator, int], Work] = {}
        self._works: dict[tuple[object, ...], Work] = {}
        self._sent_bytes: dict[tuple[object, ...], int] = {}

    def of(self, way: Way, card: Accelerator, micro_batch: int) -> Work:
        """The work of a micro-step; one object for equal kernels and sizes."""
        asked = way, card, micro_batch
        if asked not in self._asked:
            self._asked[asked] = self._built(way, card, micro_batch)
        return self._asked[asked]

    def _built(self, way: Way, card: Accelerator, micro_batch: int) -> Work:
        strategy = with_batch(way.strategy, micro_batch)
        point = point_of(way.workload, strategy)
        kernels = self.traces.kernels(way, card)
        key = kernels, tuple(point.items())
        if key not in self._works:
            profile = self.traces.works.get(self.traces.key(way, card))
            if profile is None or profile.body_at(point) is None:
                return work_for(self.source, way.workload, strategy, card, point)
            environment = environment_of(card, strategy)
            half = strategy.policy.half_dtype
            self._works[key] = build_work(profile, point, environment, half_dtype=half)
        return self._works[key]

    def profile(self, way: Way, card: Accelerator) -> Profile:
        """The profile of a way that has one."""
        profile = self.traces.profile(way, card)
        assert profile is not None, way
        return profile

    def sent_bytes(self, way: Way, card: Accelerator, point: Mapping[str, int]) -> int:
        """What `offload=activations` saves on the host in a micro-step, as its Program has it."""
        key = self.traces.kernels(way, card), tuple(point.items())
        if key not in self._sent_bytes:
            alone = replace(with_batch(way.strategy, point["B"]), parallel="single")
            cluster = Cluster(accelerator=card)
            program = build(self.source, self.profile(way, card), alone, cluster, point)
            self._sent_bytes[key] = sum(map(sum, program.saved_on_host.values()))
        return self._sent_bytes[key]
