"""Hours of a run for the search: its floors, then `run_time_of` itself."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from rigsize.errors import UnsupportedCombination
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.floors import Floors
from rigsize.plan.records import Candidate, Place, Way
from rigsize.plan.search import Batches, Ways
from rigsize.plan.works import Works
from rigsize.spec import Cluster
from rigsize.steptime.run_constants import DISK_BYTES_PER_S
from rigsize.steptime.run_lines import (
    AROUND,
    Around,
    RunTime,
    checkpoint_bytes,
    fixed_lines,
    run_time_of,
)
from rigsize.steptime.step import step_time

__all__ = ["PipelineClock"]

_HOUR_S = 3600.0
_EVERY_S = AROUND.checkpoint_every_s or inf
_EPSILON = 1e-9
"""A floor is a sum in another order than the hours: it stays below them by this share."""


class PipelineClock:
    """Asks `work_for`, `step_time` and `run_time_of`; equal work is built and priced once."""

    def __init__(self, works: Works, global_batch: int | None) -> None:
        self.works, self.floors = works, Floors(works)
        self.global_batch = global_batch
        self._least_s: dict[tuple[Accelerator, Way, int], tuple[float, float]] = {}
        self._beside_s: dict[tuple[Way, Accelerator], tuple[float, float]] = {}

    def answers(self, way: Way, card: Accelerator) -> bool:
        """Whether a time can be given at all, as far as the card's rates say."""
        return self.floors.has_rate(way, card)

    # -- floors -----------------------------------------------------------------------------

    def floor_of_place(self, place: Place, ways: Ways, batches: Batches) -> float:
        """Products of the least way at the card's peak over all devices, gradients between nodes.

        The larger of the two: one may hide the other.
        """
        if not ways or not batches:
            return 0.0
        cluster, texts = place.cluster, _texts(ways[0])
        products_s = texts * self.floors.peak_s(ways, cluster.accelerator) / cluster.devices
        network_s = 0.0
        if cluster.nodes > 1:
            steps = texts / _largest(batches, place)
            network_s = steps * self.floors.besides.network_s(ways, cluster)
        return self._hours(max(products_s, network_s), ways, cluster)

    def alike(self, way: Way) -> object:
        """Equal for ways that do the same beside their kernels."""
        return self.floors.besides.alike(way)

    def floor_of_group(self, place: Place, ways: Ways, batches: Batches) -> float:
        """By the card's peak, and what they do beside their kernels."""
        card = place.cluster.accelerator
        return self._spread(place, ways, self.floors.peak_s(ways, card), batches)

    def floor_of_way(self, place: Place, way: Way, batches: Batches) -> float:
        """By its kernels, and what it does beside them."""
        card = place.cluster.accelerator
        return self._spread(place, (way,), self.floors.text_s(way, card), batches)

    def _spread(self, place: Place, ways: Ways, text_s: float, batches: Batches) -> float:
        """By the largest micro-batch and the largest global batch of some."""
        run = (_texts(ways[0]), batches[0][0], _largest(batches, place))
        seconds = self.floors.of_way(place, ways[0], text_s, *run)
        return self._hours(seconds, ways, place.cluster)

    def floor_of_batch(self, candidate: Candidate) -> float:
        """Of a way with this batch alone."""
        batch = candidate.micro_batch, candidate.accumulation
        return self.floor_of_way(candidate.place, candidate.way, (batch,))

    def floor(self, candidate: Candidate) -> float:
        """Of a candidate by its own kernels."""
        seconds = self.floors.of_candidate(candidate, _texts(candidate.way))
        return self._hours(seconds, (candidate.way,), candidate.place.cluster)

    def _hours(self, seconds: float, ways: Ways, cluster: Cluster) -> float:
        """With what is beside the steps of any of the ways: checkpoints, and what is fixed."""
        card = self.works.traces.like(cluster.accelerator)
        key = card, ways[0], len(ways)
        least = self._least_s.get(key)
        if least is None:
            fixed, saved = zip(*(self._beside_steps_s(way, card) for way in ways), strict=True)
            least = self._least_s[key] = min(fixed), min(saved)
        fixed_s, saved_s = least
        if saved_s:
            seconds += (int(seconds / _EVERY_S) + 1) * saved_s / cluster.nodes
        return (seconds + fixed_s) / _HOUR_S * (1 - _EPSILON)

    def _beside_steps_s(self, way: Way, card: Accelerator) -> tuple[float, float]:
        """Start-up, download and the like, whatever the cluster; a checkpoint of one machine."""
        found = self._beside_s.get((way, card))
        if found is None:
            found, work = (0.0, 0.0), self.floors.besides.work(way, card)
            if work is not None:
                lines = fixed_lines(work, way.workload, way.strategy, _around(way))
                saved = checkpoint_bytes(work, way.strategy) if work.training else 0
                fixed_s = sum(line.seconds.p50 for line in lines)
                found = fixed_s, saved / DISK_BYTES_PER_S.value.mid
            self._beside_s[way, card] = found
        return found

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
        way, cluster = candidate.way, candidate.place.cluster
        workload, strategy = candidate.usual
        card = cluster.accelerator
        work = self.works.of(way, card, candidate.micro_batch)
        saves = strategy.offload == "activations"
        sent = self.works.sent_bytes(way, card, work.point) if saves else None
        step = step_time(work, strategy, cluster, draws=draws, saved_bytes=sent)
        around = _around(way)
        return run_time_of(work, step, workload, strategy, cluster, around=around, draws=draws)

    def usd(self, place: Place, hours: float) -> float:
        """All nodes for so long."""
        return place.usd_per_hour * hours if hours < inf else inf


def _largest(batches: Batches, place: Place) -> int:
    """Texts of the largest global batch of some."""
    return max(micro * times for micro, times in batches) * place.cluster.devices


def _around(way: Way) -> Around:
    """As `rigsize train` does it; lengths say how many tokens are to be tokenised."""
    return AROUND if way.lengths is None else replace(AROUND, mean_tokens=way.lengths.mean)


def _texts(way: Way) -> int:
    """Texts of the whole run."""
    workload = way.workload
    return (workload.examples or 0) * (workload.epochs if workload.training else 1)
