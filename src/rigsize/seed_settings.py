"""What an article does not say of a run: the fewest settings with which a published row comes out.

A row of the article's tables names the model, the GPUs, the batch and the way of sharding, nothing
more. Where our prediction under its stated settings falls in another size class, the policy space
is searched for the smallest sets of other settings that reproduce the class; those that contradict
the text count more than those on which it is silent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rigsize.errors import UnsupportedCombination
from rigsize.spec import Strategy

__all__ = ["Setting", "SettingSet", "possible_settings", "smallest_settings"]

SILENT, CONTRADICTS = 1, 10
"""Costs: three settings on which the article is silent are likelier than one against its words."""
MOST_SETTINGS = 3
"""More at a time reproduce anything and explain nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One departure from the table's recipe."""

    name: str
    """In words."""
    changes: Mapping[str, Any]
    """Fields of the Strategy."""
    cost: int = SILENT


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSet:
    """Settings that together reproduce a row."""

    settings: tuple[Setting, ...]
    strategy: Strategy

    @property
    def cost(self) -> int:
        """The sum over its settings."""
        return sum(setting.cost for setting in self.settings)

    @property
    def contradicts(self) -> bool:
        """Whether one of them is against the article's words."""
        return any(setting.cost >= CONTRADICTS for setting in self.settings)

    def __str__(self) -> str:
        return " + ".join(setting.name for setting in self.settings)


_SILENT = (
    Setting(name="mixed precision (amp-bf16)", changes={"precision": "amp-bf16"}),
    Setting(name="fp16 with fp32 master copies", changes={"precision": "fp16-master"}),
    Setting(name="pure bf16", changes={"precision": "bf16"}),
    Setting(name="fused AdamW", changes={"optimizer": "adamw-fused"}),
    Setting(name="recompute per block", changes={"recompute": "block"}),
    Setting(name="the output not kept through backward", changes={"hold_output": False}),
)
_OF_FSDP = (
    Setting(name="blocks kept whole after forward", changes={"reshard_after_forward": False}),
    Setting(name="no CPU offload", changes={"offload": "none"}, cost=CONTRADICTS),
)
_OF_DDP = (
    Setting(name="gradients as bucket views", changes={"bucket_view": True}),
    Setting(name="FSDP instead of DDP", changes={"parallel": "fsdp"}, cost=CONTRADICTS),
    Setting(
        name="FSDP with CPU offload instead of DDP",
        changes={"parallel": "fsdp", "offload": "cpu"},
        cost=CONTRADICTS,
    ),
)


def possible_settings(strategy: Strategy) -> tuple[Setting, ...]:
    """What may have been otherwise in a run that the article describes as `strategy`."""
    more = {"fsdp": _OF_FSDP, "ddp": _OF_DDP}.get(strategy.parallel, ())
    return tuple(
        setting
        for setting in (*_SILENT, *more)
        if any(getattr(strategy, field) != value for field, value in setting.changes.items())
    )


def smallest_settings(
    strategy: Strategy, reproduces: Callable[[Strategy], bool]
) -> list[SettingSet]:
    """Every set of the lowest cost whose strategy `reproduces`; empty if none of up to three does.

    Deterministic: sets by cost, then by number of settings, then in the order of the list.
    """
    found: list[SettingSet] = []
    for candidate in _candidates(strategy):
        if found and candidate.cost > found[0].cost:
            break
        if reproduces(candidate.strategy):
            found.append(candidate)
    return found


def _candidates(strategy: Strategy) -> list[SettingSet]:
    possible = possible_settings(strategy)
    sets = [
        made
        for number in range(1, MOST_SETTINGS + 1)
        for settings in itertools.combinations(possible, number)
        for made in _combined(strategy, settings)
    ]
    return sorted(sets, key=lambda made: (made.cost, len(made.settings)))


def _combined(strategy: Strategy, settings: tuple[Setting, ...]) -> Iterator[SettingSet]:
    """The settings together; nothing where two set one field or the strategy refuses them."""
    fields = [field for setting in settings for field in setting.changes]
    if len(set(fields)) < len(fields):
        return
    changes = {field: value for setting in settings for field, value in setting.changes.items()}
    try:
        changed = replace(strategy, **changes)
    except UnsupportedCombination:
        return
    yield SettingSet(settings=settings, strategy=changed)
