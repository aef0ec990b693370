"""Hours of a run for the search: its floors, then `run_time_of` itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from rigsize.errors import UnsupportedCombination
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.candidates import MOST_OVERSHOOT
from rigsize.plan.floors import Floors
from rigsize.plan.records import Candidate, Place, Way
from rigsize.plan.works import Works
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
        return seconds * (1 - _EPSILON) / _HOUR_S

    def floor_of_way(self, place: Place, way: Way, batches: Sequence[tuple[int, int]]) -> float:
        """Of a way whose batch is open."""
        texts = _texts(way)
        together = self.global_batch or batches[0][0] * place.cluster.devices
        most = batches[0][0]
        largest = max(together * (1 + MOST_OVERSHOOT), together + place.cluster.devices)
        seconds = self.floors.of_way(place, way, texts, most, int(largest))
        return (seconds * (1 - _EPSILON) + self._fixed(way, place)) / _HOUR_S

    def floor(self, candidate: Candidate) -> float:
        """Of a candidate."""
        seconds = self.floors.of_candidate(candidate, _texts(candidate.way))
        return (seconds * (1 - _EPSILON) + self._fixed(candidate.way, candidate.place)) / _HOUR_S

    def _fixed(self, way: Way, place: Place) -> float:
        """Start-up, download and the like, once a run of the same model and texts was timed."""
        card = place.cluster.accelerator
        return self._fixed_s.get(self.works.traces.kernels(way, card), 0.0) * (1 - _EPSILON)

    # -- answers ----------------------------------------------------------------------------

    def hours(self, candidate: Candidate) -> float | None:
        """The whole run at p50; None where the time model has no answer."""
        try:
            run = self.run_time(candidate, draws=0)
        except UnsupportedCombination:
            return None
        key = self.works.traces.kernels(candidate.way, candidate.place.cluster.accelerator)
        fixed = sum(line.seconds.p50 for line in run.lines if line.name not in _OF_CLUSTER)
        self._fixed_s[key] = min(fixed, self._fixed_s.get(key, fixed))
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
