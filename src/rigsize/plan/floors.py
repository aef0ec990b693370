"""Seconds that a run does not go below, without its step being timed.

Every stream of a step works off what it is given, one thing after another: kernels, the host's
launches, what travels between the ranks, what crosses PCIe, the update (`plan.beside`). So a step
is at least as long as the busiest of them, each at the price that `step_time` has for it; what one
stream waits for another comes on top. Of a way, whose batch is open, the kernels are those of a
text among very many; of ways together the products at the card's peak.
"""

from __future__ import annotations

from collections.abc import Sequence

from rigsize.errors import SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.beside import TYPICAL, Besides
from rigsize.plan.passes import sent_bytes
from rigsize.plan.records import Candidate, Place, Way, least_point_at, usual_point_at
from rigsize.plan.works import Works
from rigsize.program.work import Work, kernel_flops
from rigsize.spec import Strategy
from rigsize.steptime.constants import DISPATCH_S, KERNEL_LAUNCH_S
from rigsize.steptime.gemm import peak_flops_per_s
from rigsize.steptime.prices import Pricer

__all__ = ["Floors"]

LARGE = 256
"""Texts of a micro-batch whose tiles are as good as full."""
TILES_SHARE = 0.85
"""Of its kernels' seconds a text, below which no other micro-batch goes (a test asks many)."""
_LAUNCH_S, _DISPATCH_S = KERNEL_LAUNCH_S.value.mid, DISPATCH_S.value.mid
"""Of the host, as `step_time` has them of a machine that was not calibrated."""


class Floors:
    """Floors in seconds of the steps alone; equal work is priced once."""

    def __init__(self, works: Works) -> None:
        self.works, self.besides = works, Besides(works)
        self._rates: dict[tuple[Accelerator, str], float] = {}
        self._flops: dict[tuple[object, ...], float] = {}
        self._peaks_s: dict[tuple[Way, Accelerator], float] = {}
        self._cards_s: dict[tuple[Accelerator, Way, int], float] = {}
        self._texts_s: dict[tuple[Way, Accelerator], float] = {}
        self._kernels_s: dict[tuple[object, ...], tuple[float, float]] = {}
        self._micros_s: dict[tuple[Way, Accelerator, int], tuple[float, float]] = {}

    def peak_s(self, ways: Sequence[Way], card: Accelerator) -> float:
        """Seconds a text of the fastest of these ways on one device at the peak of its rates."""
        key = card, ways[0], len(ways)
        if key not in self._cards_s:
            self._cards_s[key] = min(self._peak_s(way, card) for way in ways)
        return self._cards_s[key]

    def of_way(
        self, place: Place, way: Way, text_s: float, texts: int, micro: int, global_batch: int
    ) -> float:
        """Seconds of the steps over so many texts, in micro-batches of `micro` at most.

        `text_s` is what the kernels of one text take at least.
        """
        beside = self.besides.of(place, way)
        share = texts / place.cluster.devices
        return beside.added_to(share * text_s, share / micro, texts / global_batch)

    def of_candidate(self, candidate: Candidate, texts: int) -> float:
        """Seconds of the steps over so many texts."""
        beside = self.besides.of(candidate.place, candidate.way)
        micros = texts / (candidate.micro_batch * candidate.mesh.ranks)
        kernels_s, host_s = self._micro_s(candidate)
        steps = texts / candidate.global_batch
        return beside.added_to(micros * kernels_s, micros, steps, micros * host_s)

    def has_rate(self, way: Way, card: Accelerator) -> bool:
        """Whether the card's rate for the way's products is known: without it there is no time."""
        return self._rate(way, card) > 0

    def _rate(self, way: Way, card: Accelerator) -> float:
        dtype = _dtype(way.strategy)
        if (card, dtype) not in self._rates:
            try:
                self._rates[card, dtype] = peak_flops_per_s(card, dtype)
            except SizingError:
                self._rates[card, dtype] = 0.0  # the step says why
        return self._rates[card, dtype]

    # -- kernels ----------------------------------------------------------------------------

    def _peak_s(self, way: Way, card: Accelerator) -> float:
        """Seconds of the linear layers of one text at the peak rate; 0 where there is none."""
        if (way, card) not in self._peaks_s:
            rate = self._rate(way, card)
            flops = self._linear_flops(way, card) if rate else 0.0
            self._peaks_s[way, card] = flops / rate if rate else 0.0
        return self._peaks_s[way, card]

    def _linear_flops(self, way: Way, card: Accelerator) -> float:
        """Of one text; attention, whose kernels differ from card to card, left out."""
        trace, _, half = self.works.traces.kernels(way, card)
        key = trace, half, tuple(least_point_at(way, TYPICAL).items())
        if key not in self._flops:
            try:
                work = self.works.least(way, card, TYPICAL)
            except SizingError:
                return 0.0
            kernels = (kernel for segment in work.segments for kernel in segment.kernels)
            total = sum(kernel_flops(k) for k in kernels if k.kind == "gemm" and k.sizes[0] == 1)
            self._flops[key] = total / TYPICAL
        return self._flops[key]

    def text_s(self, way: Way, card: Accelerator) -> float:
        """Seconds of the kernels of one text among very many, or its products' at the peak rate.

        Tiles fill better the larger a batch is; how full the last ones are may still tip the
        scales by some per cent, which `TILES_SHARE` leaves room for.
        """
        if (way, card) not in self._texts_s:
            peak = self._peak_s(way, card)
            try:
                work = self.works.least(way, card, LARGE)
                kernels = self._kernels(work, way, card)[0] / LARGE if peak else 0.0
            except SizingError:
                kernels = 0.0
            self._texts_s[way, card] = max(peak, kernels * TILES_SHARE)
        return self._texts_s[way, card]

    def _micro_s(self, candidate: Candidate) -> tuple[float, float]:
        """(device, host) of a micro-step, with activations on their way to the host and back."""
        way, card = candidate.way, candidate.place.cluster.accelerator
        key = way, card, candidate.micro_batch
        if key not in self._micros_s:
            try:
                kernels_s, host_s = self._kernels(self.works.of(*key), way, card)
                self._micros_s[key] = kernels_s + self._saved_s(candidate), host_s
            except SizingError:
                self._micros_s[key] = 0.0, 0.0
        return self._micros_s[key]

    def _kernels(self, work: Work, way: Way, card: Accelerator) -> tuple[float, float]:
        """Ways with the same work and the same dtypes share it."""
        strategy = way.strategy
        key = id(work), card, strategy.precision == "tf32", strategy.compile
        if key not in self._kernels_s:
            priced = Pricer(card, strategy, None).totals(work)
            host_s = priced.launches * _LAUNCH_S + priced.dispatches * _DISPATCH_S
            self._kernels_s[key] = sum(priced.busy_s.values()), host_s
        return self._kernels_s[key]

    def _saved_s(self, candidate: Candidate) -> float:
        """They are copied on the stream that computes."""
        way, card = candidate.way, candidate.place.cluster.accelerator
        if way.strategy.offload != "activations" or not card.pcie_bytes_per_s:
            return 0.0
        point = usual_point_at(way, candidate.micro_batch)
        sent = sent_bytes(self.works.profile(way, card), point)
        return 2 * sent / card.pcie_bytes_per_s


def _dtype(strategy: Strategy) -> str:
    """What its products are computed in."""
    half = {"bfloat16": "bf16", "float16": "fp16"}.get(strategy.policy.half_dtype)
    if half is not None:
        return half
    return "tf32" if strategy.precision == "tf32" else "fp32"
