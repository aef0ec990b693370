"""The work of ways at sizes, built once for all cards that run the same kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rigsize.estimate import build, with_batch
from rigsize.hardware.accelerators import Accelerator
from rigsize.models import ModelSource
from rigsize.plan.records import Way, least_point_at, usual_point_at
from rigsize.plan.traces import Traces
from rigsize.program.work import Work
from rigsize.program.work_build import Weights, build_work, weights_of, with_published, work_for
from rigsize.spec import Cluster
from rigsize.trace.profile import Profile, TraceKey

__all__ = ["Works"]

_FEW = 4
"""Texts of the smaller of two Programs that tell what is saved on the host."""


class Works:
    """`Work` by way, card and micro-batch."""

    def __init__(self, source: ModelSource, traces: Traces) -> None:
        self.source, self.traces = source, traces
        self._asked: dict[tuple[Way, Accelerator, int], Work] = {}
        self._leasts: dict[tuple[Way, Accelerator, int], Work] = {}
        self._works: dict[tuple[object, ...], Work] = {}
        self._weights: dict[TraceKey, Weights] = {}
        self._sent_bytes: dict[tuple[object, ...], int] = {}

    def of(self, way: Way, card: Accelerator, micro_batch: int) -> Work:
        """The work of a usual micro-step; one object for equal kernels and sizes."""
        card = self.traces.like(card)
        asked = way, card, micro_batch
        if asked not in self._asked:
            self._asked[asked] = self._built(way, card, usual_point_at(way, micro_batch))
        return self._asked[asked]

    def least(self, way: Way, card: Accelerator, micro_batch: int) -> Work:
        """Of texts of the mean length: no more a text than any usual micro-step."""
        if way.lengths is None:
            return self.of(way, card, micro_batch)
        asked = way, self.traces.like(card), micro_batch
        if asked not in self._leasts:
            self._leasts[asked] = self._built(way, asked[1], least_point_at(way, micro_batch))
        return self._leasts[asked]

    def _built(self, way: Way, card: Accelerator, point: Mapping[str, int]) -> Work:
        trace, environment, half = self.traces.kernels(way, card)
        # How many multiprocessors there are makes no other kernels.
        alike = replace(environment, sm_count=1, max_threads_per_sm=1)
        key = trace, alike, half, tuple(point.items())
        if key not in self._works:
            profile = self.traces.works.get(trace)
            if profile is None or profile.body_at(point) is None:
                strategy = with_batch(way.strategy, point["B"])
                return work_for(self.source, way.workload, strategy, card, point)
            if trace not in self._weights:
                self._weights[trace] = weights_of(profile)
            work = build_work(
                profile, point, environment, half_dtype=half, weights=self._weights[trace]
            )
            self._works[key] = with_published(work, self.source)
        return self._works[key]

    def profile(self, way: Way, card: Accelerator) -> Profile:
        """The profile of a way that has one."""
        profile = self.traces.profile(way, card)
        assert profile is not None, way
        return profile

    def sent_bytes(self, way: Way, card: Accelerator, point: Mapping[str, int]) -> int:
        """What `offload=activations` saves on the host in a micro-step, as its Program has it.

        Every saved tensor is linear in the texts, so two Programs tell it of all batches but one
        text, which may be another graph.
        """
        texts = point["B"]
        if texts <= 2 * _FEW:
            return self._sent(way, card, point)
        few, more = (self._sent(way, card, {**point, "B": n}) for n in (_FEW, 2 * _FEW))
        return few + (more - few) * (texts - _FEW) // _FEW

    def _sent(self, way: Way, card: Accelerator, point: Mapping[str, int]) -> int:
        if self.profile(way, card).body_at(point) is None:
            # A usual batch of odd length, where only multiples of 8 are proved: the next one.
            point = {**point, "S": -(-point["S"] // 8) * 8}
        key = self.traces.kernels(way, card), tuple(point.items())
        if key not in self._sent_bytes:
            alone = replace(with_batch(way.strategy, point["B"]), parallel="single")
            cluster = Cluster(accelerator=card)
            program = build(self.source, self.profile(way, card), alone, cluster, point)
            self._sent_bytes[key] = sum(map(sum, program.saved_on_host.values()))
        return self._sent_bytes[key]
