"""Seconds that a run does not go below, without its step being timed.

Every stream of a step works off what it is given, one thing after another: its kernels, what
travels between the ranks, what crosses PCIe, the host's own step. So a step is at least as long as
the busiest of them, each at the price that `step_time` has for it; launches, and what one stream
waits for another, come on top. Of a way, whose batch is open, the kernels are its products at the
card's peak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from rigsize.errors import SizingError
from rigsize.hardware.accelerators import Accelerator
from rigsize.plan.bounds import sent_bytes
from rigsize.plan.records import Candidate, Place, Way
from rigsize.plan.works import Works
from rigsize.program.ddp import BUCKET_BYTES
from rigsize.program.work import Work, kernel_flops
from rigsize.spec import Strategy
from rigsize.spec.strategy import SHARDS_WEIGHTS
from rigsize.steptime.gemm import peak_flops_per_s
from rigsize.steptime.links import Links
from rigsize.steptime.prices import Pricer
from rigsize.steptime.update import gradient_bytes, update_rows
from rigsize.trace.profile import TraceKey

__all__ = ["Floors"]

TYPICAL = 8
"""Texts of the micro-batch whose products stand for a way's, text by text."""
LARGE = 256
"""Texts of a micro-batch whose tiles are as good as full."""
TILES_SHARE = 0.93
"""Of its kernels' seconds a text, below which no other micro-batch goes (a test asks many)."""
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Beside:
    """What a way does at a place beside its kernels, in seconds."""

    links_s: float
    """Between the ranks, in a micro-step."""
    copies_s: float
    """Over PCIe, in a micro-step."""
    once_s: float
    """Between the ranks, once a step."""
    update_s: float
    """The update itself, behind the micro-steps, with what ZeRO-1 and 2 send around it."""
    overlap_cost: float
    """Share of the kernels that hidden collectives take."""
    waited_s: float = 0.0
    """Behind each micro-step, before the next: ZeRO-2's reductions."""

    def added_to(self, kernels_s: float, micros: float, steps: float) -> float:
        """Kernels are slowed by the collectives that they hide, and wait for those they do not."""
        links = micros * self.links_s + steps * self.once_s
        slowed = kernels_s + self.overlap_cost * min(links, kernels_s)
        waited = micros * self.waited_s + steps * self.update_s
        return max(slowed, links, micros * self.copies_s) + waited


_NOTHING = _Beside(0.0, 0.0, 0.0, 0.0, 0.0)


class Floors:
    """Floors in seconds of the steps alone; equal work is priced once."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self._rates: dict[tuple[Accelerator, str], float] = {}
        self._flops: dict[tuple[TraceKey, str], float] = {}
        self._peaks_s: dict[tuple[Way, Accelerator], float] = {}
        self._texts_s: dict[tuple[Way, Accelerator], float] = {}
        self._kernels_s: dict[tuple[object, ...], float] = {}
        self._micros_s: dict[tuple[Way, Accelerator, int], float] = {}
        self._alike: dict[Way, int] = {}
        self._names: dict[Strategy, int] = {}
        self._besides: dict[tuple[object, ...], _Beside] = {}

    def of_card(self, ways: Sequence[Way], card: Accelerator) -> float:
        """Seconds a text of the fastest of these ways on one device.

        Ways whose products at the peak rate take longer than another's kernels are not priced.
        """
        least = inf
        for _, _, way in sorted((self._peak_s(way, card), way.order, way) for way in ways):
            if self._peak_s(way, card) >= least:
                break
            least = min(least, self._text_s(way, card))
        return 0.0 if least == inf else least

    def of_way(self, place: Place, way: Way, texts: int, micro: int, global_batch: int) -> float:
        """Seconds of the steps over so many texts, in micro-batches of `micro` at most."""
        beside = self._beside(place, way)
        share = texts / place.cluster.devices
        kernels = share * self._text_s(way, place.cluster.accelerator)
        return beside.added_to(kernels, share / micro, texts / global_batch)

    def of_candidate(self, candidate: Candidate, texts: int) -> float:
        """Seconds of the steps over so many texts."""
        beside = self._beside(candidate.place, candidate.way)
        micros = texts / (candidate.micro_batch * candidate.mesh.ranks)
        kernels = micros * self._micro_s(candidate)
        return beside.added_to(kernels, micros, texts / candidate.global_batch)

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
        if (trace, half) not in self._flops:
            try:
                work = self.works.of(way, card, TYPICAL)
            except SizingError:
                return 0.0
            kernels = (kernel for segment in work.segments for kernel in segment.kernels)
            total = sum(kernel_flops(k) for k in kernels if k.kind == "gemm" and k.sizes[0] == 1)
            self._flops[trace, half] = total / TYPICAL
        return self._flops[trace, half]

    def _text_s(self, way: Way, card: Accelerator) -> float:
        """Seconds of the kernels of one text among very many, or its products' at the peak rate.

        Tiles fill better the larger a batch is; how full the last ones are may still tip the
        scales by some per cent, which `TILES_SHARE` leaves room for.
        """
        if (way, card) not in self._texts_s:
            peak = self._peak_s(way, card)
            try:
                kernels = self._kernels(way, card, LARGE) / LARGE if peak else 0.0
            except SizingError:
                kernels = 0.0
            self._texts_s[way, card] = max(peak, kernels * TILES_SHARE)
        return self._texts_s[way, card]

    def _micro_s(self, candidate: Candidate) -> float:
        """The kernels of a micro-step, and activations on their way to the host and back."""
        way, card = candidate.way, candidate.place.cluster.accelerator
        key = way, card, candidate.micro_batch
        if key not in self._micros_s:
            try:
                self._micros_s[key] = self._kernels(*key) + self._saved_s(candidate)
            except SizingError:
                self._micros_s[key] = 0.0
        return self._micros_s[key]

    def _kernels(self, way: Way, card: Accelerator, micro_batch: int) -> float:
        """Ways with the same work and the same dtypes share it."""
        work, strategy = self.works.of(way, card, micro_batch), way.strategy
        key = id(work), card, strategy.precision == "tf32", strategy.compile
        if key not in self._kernels_s:
            priced = Pricer(card, strategy, None).work(work)
            self._kernels_s[key] = sum(sum(one.busy_s.values()) for one in priced)
        return self._kernels_s[key]

    def _saved_s(self, candidate: Candidate) -> float:
        """They are copied on the stream that computes."""
        way, card = candidate.way, candidate.place.cluster.accelerator
        if way.strategy.offload != "activations" or not card.pcie_bytes_per_s:
            return 0.0
        sent = sent_bytes(self.works.profile(way, card), candidate.point)
        return 2 * sent / card.pcie_bytes_per_s

    # -- beside them ------------------------------------------------------------------------

    def _beside(self, place: Place, way: Way) -> _Beside:
        """Equal for all ways that shard, send and update alike."""
        cluster = place.cluster
        if way not in self._alike:
            plain = replace(way.strategy, recompute="none", loss="all", hold_output=True)
            self._alike[way] = self._names.setdefault(plain, len(self._names))
        key = self._alike[way], cluster.accelerator, cluster.per_node, cluster.nodes
        if key not in self._besides:
            try:
                self._besides[key] = self._new_beside(place, way)
            except SizingError:
                self._besides[key] = _NOTHING
        return self._besides[key]

    def _new_beside(self, place: Place, way: Way) -> _Beside:
        cluster, strategy = place.cluster, way.strategy
        work = self.works.of(way, cluster.accelerator, TYPICAL)
        links = Links.of(work, strategy, cluster, None, None)
        if not work.training:
            return _Beside(_travels_s(work, strategy, links), 0.0, 0.0, 0.0, links.overlap_cost)
        once = 0.0
        if strategy.parallel == "ddp":
            once = _least_s(sum(work.trainable) * gradient_bytes(strategy), links)
        rows = update_rows(work, strategy, Pricer(cluster.accelerator, strategy, None), links)
        update = max(
            sum(row.host_step_s for row in rows), sum(sum(row.busy_s.values()) for row in rows)
        )
        waited = 0.0
        if strategy.parallel in ("zero1", "zero2"):
            gradients = sum(work.trainable) * gradient_bytes(strategy)
            reduced = links.within_copy("reduce_scatter", gradients)
            update += links.within_copy("all_gather", gradients)
            update += reduced if strategy.parallel == "zero1" else 0.0
            waited = reduced if strategy.parallel == "zero2" else 0.0
        travels, fetched = _travels_s(work, strategy, links), _fetches_s(work, strategy, links)
        return _Beside(travels, fetched, once, update, links.overlap_cost, waited)


def _travels_s(work: Work, strategy: Strategy, links: Links) -> float:
    """Weights gathered and gradients reduced, layer by layer as `schedule` has them.

    Not in one piece: an L40S node takes longer over a large message than over its parts.
    """
    if strategy.parallel not in SHARDS_WEIGHTS:
        return 0.0
    forward = {0, *(s.layer for s in work.segments if s.phase != "backward")}
    backward = {s.layer for s in work.segments if s.phase == "backward"}
    again = backward - {0} if work.training and strategy.reshard_after_forward else set()
    gathered = Counter(work.weight_bytes[layer] for layer in (*forward, *again))
    seconds = sum(n * links.within_copy("all_gather", size) for size, n in gathered.items())
    if not work.training:
        return seconds
    element = min(_FP32_BYTES, gradient_bytes(strategy))
    reduced = Counter(work.trainable[layer] * element for layer in backward | {0})
    for size, count in reduced.items():
        seconds += count * links.within_copy("reduce_scatter", size)
        if links.mesh.replicas > 1:
            seconds += count * links.between_copies(size // links.mesh.shard)
    return seconds


def _least_s(total_bytes: int, links: Links) -> float:
    """All-reduced in buckets of any size between DDP's and the whole, the cheapest a byte."""
    sizes = [total_bytes]
    while sizes[-1] // 2 > BUCKET_BYTES:
        sizes.append(sizes[-1] // 2)
    sizes.append(min(total_bytes, BUCKET_BYTES))
    return min(total_bytes / size * links.between_copies(size) for size in sizes if size)


def _fetches_s(work: Work, strategy: Strategy, links: Links) -> float:
    """The shards of the weights from the host, in the dtype that they are gathered in."""
    if strategy.offload not in ("cpu", "cpu-params"):
        return 0.0
    layers = sum(work.weight_bytes[1:])
    again = layers if work.training and strategy.reshard_after_forward else 0
    shard = links.mesh.shard
    return links.to_device((work.weight_bytes[0] + layers + again) / shard)


def _dtype(strategy: Strategy) -> str:
    """What its products are computed in."""
    half = {"bfloat16": "bf16", "float16": "fp16"}.get(strategy.policy.half_dtype)
    if half is not None:
        return half
    return "tf32" if strategy.precision == "tf32" else "fp32"
