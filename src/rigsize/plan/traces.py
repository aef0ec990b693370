"""The profiles that a plan's ways need: stored ones, and those that are traced for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rigsize.errors import SizingError, UnsupportedCombination
from rigsize.estimate import with_batch
from rigsize.hardware.accelerators import Accelerator
from rigsize.keys import FLASH_CAPABILITY, check_on, flash_capability, key_for
from rigsize.models import ModelSource
from rigsize.plan.records import Way, point_at
from rigsize.point import point_of
from rigsize.program.environment import Environment, environment_of
from rigsize.program.work_build import half_dtype_on
from rigsize.spec import Strategy
from rigsize.trace.profile import Profile, TraceKey
from rigsize.trace.store import (
    WORK,
    find_profile,
    find_work,
    read_packaged,
    stored_profile,
    stored_work,
)

__all__ = ["Told", "Traces"]

Told = Callable[[int, TraceKey], None]
"""Hears of a trace before it is made: the how many-th, and of what."""


class Traces:
    """By way and card: the trace key, and its profile where there is one."""

    def __init__(
        self,
        source: ModelSource,
        *,
        makes: bool = True,
        copies: bool = True,
        told: Told | None = None,
    ) -> None:
        """What `makes` traces where nothing is stored; with `copies` of `offload=activations`, too.

        Else what ships of these is enough: hardly a plan takes them, and what it answers shall not
        depend on what was traced before.
        """
        self.source, self.makes, self.copies, self.told = source, makes, copies, told
        self.made = 0
        self.works: dict[TraceKey, Profile | None] = {}
        """The profiles of work behind them."""
        self._keys: dict[tuple[Accelerator, Way], TraceKey | SizingError] = {}
        self._traced: dict[tuple[Way, bool, bool], TraceKey] = {}
        self._kernels: dict[tuple[Accelerator, Way], tuple[TraceKey, Environment, str]] = {}
        self._profiles: dict[TraceKey, Profile | None] = {}
        self._by_way: dict[tuple[Way, Accelerator], Profile | None] = {}
        self._least: dict[tuple[Way, Accelerator], int] = {}
        self._like: dict[Accelerator, Accelerator] = {}
        self._kinds: dict[tuple[object, ...], Accelerator] = {}

    def like(self, card: Accelerator) -> Accelerator:
        """The first card that was asked of which torch asks the same: it has the same keys."""
        if card not in self._like:
            kind = (
                card.software_stack,
                card.is_cpu,
                card.compute_capability,
                card.gfx,
                card.dtypes,
                card.supports_bf16,
                card.training_capable,
            )
            self._like[card] = self._kinds.setdefault(kind, card)
        return self._like[card]

    def key(self, way: Way, accelerator: Accelerator) -> TraceKey:
        """The key of a way on a card; UnsupportedCombination for what the card cannot do."""
        card = self.like(accelerator)
        found = self._keys.get((card, way))
        if found is None:
            try:
                environment_of(card, way.strategy)
                check_on(way.strategy, card)
                found = self._of_kernels(way, card)
            except SizingError as error:
                found = error
            self._keys[card, way] = found
        if isinstance(found, SizingError):
            raise found
        return found

    def _of_kernels(self, way: Way, card: Accelerator) -> TraceKey:
        """Of all that a card changes in a trace, whether it has FlashAttention is left."""
        kernels = way, card.is_cpu, flash_capability(card) >= FLASH_CAPABILITY
        if kernels not in self._traced:
            self._traced[kernels] = key_for(self.source, way.workload, way.strategy, card)
        return self._traced[kernels]

    def kernels(self, way: Way, accelerator: Accelerator) -> tuple[TraceKey, Environment, str]:
        """What decides a way's kernels on a card, beside the sizes: equal for like cards."""
        if (accelerator, way) not in self._kernels:
            environment = environment_of(accelerator, way.strategy)
            half = half_dtype_on(accelerator, way.strategy)
            self._kernels[accelerator, way] = (self.key(way, accelerator), environment, half)
        return self._kernels[accelerator, way]

    def lacks_dtype(self, way: Way, accelerator: Accelerator) -> bool:
        """Whether the card cannot compute as the way's precision says, or not faster for it."""
        precision = way.strategy.precision
        if precision == "tf32" and "tf32" not in accelerator.dtypes:
            return True
        if way.strategy.policy.half_dtype == "float16" and "fp16" not in accelerator.dtypes:
            return True
        try:
            self.key(way, accelerator)
        except UnsupportedCombination as error:
            return error.field in ("precision", "quantization", "method")
        return False

    def profile(self, way: Way, accelerator: Accelerator) -> Profile | None:
        """The profile of a way on a card: stored, else traced now."""
        asked = way, self.like(accelerator)
        if asked not in self._by_way:
            self._by_way[asked] = self._of_way(*asked)
        return self._by_way[asked]

    def _of_way(self, way: Way, accelerator: Accelerator) -> Profile | None:
        try:
            key = self.key(way, accelerator)
        except SizingError:
            return None
        if key not in self._profiles:
            self._profiles[key] = self._find(key, point_of(way.workload, _small(way)))
        return self._profiles[key]

    def least_batch(self, way: Way, accelerator: Accelerator) -> int:
        """The smallest micro-batch that the profile is proved for: one text may be another graph.

        0 where it is proved for none.
        """
        asked = way, self.like(accelerator)
        if asked not in self._least:
            profile = self.profile(*asked)
            sizes = () if profile is None else (1, 2)
            proved = (n for n in sizes if profile is not None and profile.covers(point_at(way, n)))
            self._least[asked] = next(proved, 0)
        return self._least[asked]

    def _find(self, key: TraceKey, point: Mapping[str, int]) -> Profile | None:
        only_shipped = key.saves_on_host and not self.copies
        if only_shipped:
            found = (read_packaged(key, what) for what in ("", WORK))
            stored, work = (one if one and one.body_at(point) else None for one in found)
        else:
            stored, work = stored_profile(key, point), stored_work(key, point)
        both = stored is not None and work is not None
        self.works[key] = work if both else None
        if both or only_shipped or not self.makes:
            return stored if both else None
        self.made += 1
        if self.told is not None:
            self.told(self.made, key)
        try:
            self.works[key] = find_work(self.source, key, point)
            return find_profile(self.source, key, point)
        except SizingError:  # a model without a block to recompute, say
            return None


def _small(way: Way) -> Strategy:
    """Two texts a micro-batch: one alone is another graph in most decoders."""
    return with_batch(way.strategy, 2)
