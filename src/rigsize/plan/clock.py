"""Hours of a run for the search: its floors, then `run_time_of` itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from rigsize.errors import SizingError, UnsupportedCombination
from rigsize.estimate import with_batch
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.floors import TYPICAL, Floors
from rigsize.plan.records import Candidate, Place, Way
from rigsize.plan.works import Works
from rigsize.spec import Cluster
from rigsize.steptime.run_lines import RunTime, run_time_of
from rigsize.steptime.step import step_time

__all__ = ["PipelineClock"]

_HOUR_S = 3600.0
_EPSILON = 1e-9
"""A floor is a sum in another order than the hours: it stays below them by this share."""
_OF_CLUSTER = ("training", "inference", "evaluation", "checkpoints")
"""Lines of a run that depend on more than model and texts."""


class PipelineClock:
    """Asks `work_for`, `step_time` and `run_time_of`; equal work is built and priced once."""

    def __init__(self, works: Works, global_batch: int | None) -> None:
        self.works, self.floors = works, Floors(works)
        self.global_batch = global_batch
        self._cards_s: dict[tuple[Accelerator, Way, int], float] = {}
        self._least_s: dict[tuple[Accelerator, Way, int], float] = {}
        self._fixed_s: dict[tuple[object, ...], float] = {}

    def answers(self, way: Way, card: Accelerator) -> bool:
        """Whether a time can be given at all, as far as the card's rates say."""
        return self.floors.has_rate(way, card)

    # -- floors -----------------------------------------------------------------------------

    def floor_of_place(self, place: Place, ways: Sequence[Way]) -> float:
        """Kernels of the fastest way, spread over all devices."""
        card = place.cluster.accelerator
        if not ways:
            return 0.0
        key = card, ways[0], len(ways)
        if key not in self._cards_s:
            self._cards_s[key] = self.floors.of_card(ways, card)
        seconds = _texts(ways[0]) * self._cards_s[key] / place.cluster.devices
        return (seconds * (1 - _EPSILON) + self._least_fixed(ways, card)) / _HOUR_S

    def floor_of_way(self, place: Place, way: Way, batches: Sequence[tuple[int, int]]) -> float:
        """Of a way whose batch is open."""
        texts = _texts(way)
        most = batches[0][0]
        largest = max(micro * times for micro, times in batches) * place.cluster.devices
        seconds = self.floors.of_way(place, way, texts, most, largest)
        return (seconds * (1 - _EPSILON) + self._fixed(way, place.cluster.accelerator)) / _HOUR_S

    def floor(self, candidate: Candidate) -> float:
        """Of a candidate."""
        seconds = self.floors.of_candidate(candidate, _texts(candidate.way))
        fixed = self._fixed(candidate.way, candidate.place.cluster.accelerator)
        return (seconds * (1 - _EPSILON) + fixed) / _HOUR_S

    def _fixed(self, way: Way, card: Accelerator) -> float:
        """Seconds of start-up, download and the like: lines of a run on one device alone."""
        key = self.works.traces.key(way, card), way.strategy.precision, way.workload
        if key not in self._fixed_s:
            try:
                self._fixed_s[key] = self._beside_steps(way, card) * (1 - _EPSILON)
            except SizingError:
                return 0.0
        return self._fixed_s[key]

    def _least_fixed(self, ways: Sequence[Way], card: Accelerator) -> float:
        key = card, ways[0], len(ways)
        if key not in self._least_s:
            self._least_s[key] = min(self._fixed(way, card) for way in ways)
        return self._least_s[key]

    def _beside_steps(self, way: Way, card: Accelerator) -> float:
        alone = Cluster(accelerator=card)
        plain = replace(
            with_batch(way.strategy, TYPICAL), parallel="single", offload="none", shard_size=None
        )
        work = self.works.of(way, card, TYPICAL)
        step = step_time(work, plain, alone, draws=0)
        run = run_time_of(work, step, way.workload, plain, alone, draws=0)
        return sum(line.seconds.p50 for line in run.lines if line.name not in _OF_CLUSTER)

    # -- answers ----------------------------------------------------------------------------

    def hours(self, candidate: Candidate) -> float | None:
        """The whole run at p50; None where the time model has no answer."""
        try:
            run = self.run_time(candidate, draws=0)
        except UnsupportedCombination:
            return None
        return run.hours.p50

    def run_time(self, candidate: Candidate, *, draws: int) -> RunTime:
        """The run of a candidate; raises UnsupportedCombination where no time can be given."""
        way, cluster, strategy = candidate.way, candidate.place.cluster, candidate.strategy
        card = cluster.accelerator
        work = self.works.of(way, card, candidate.micro_batch)
        saves = strategy.offload == "activations"
        sent = self.works.sent_bytes(way, card, candidate.point) if saves else None
        step = step_time(work, strategy, cluster, draws=draws, saved_bytes=sent)
        return run_time_of(work, step, way.workload, strategy, cluster, draws=draws)

    def usd(self, place: Place, hours: float) -> float:
        """All nodes for so long."""
        return place.usd_per_hour * hours if hours < inf else inf


def _texts(way: Way) -> int:
    """Texts of the whole run."""
    workload = way.workload
    return (workload.examples or 0) * (workload.epochs if workload.training else 1)
