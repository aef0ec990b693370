"""What DeepSpeed's hooks cost the host: around modules in ZeRO-3, on gradients in ZeRO-1 and 2.

Counted in the source of deepspeed 0.19.8: runtime/zero/parameter_offload.py
(`_register_deepspeed_module`: four hooks a module), partitioned_param_coordinator.py
(`fetch_sub_module`, `release_sub_module`), partition_parameters.py (`AllGatherCoalescedHandle`),
stage3.py and stage_1_and_2.py (a hook a gradient). Timed on the CPU, without a network
(benchmarks/deepspeed_hooks.py; docs/time.md has the figures), in CPU seconds of a host that takes
5 us an operator; a calibrated host's own time of an operator scales them. Left out: modules
without parameters, the optimizer step's own Python, and whatever `zero_quantized_*` adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from rigsize.program.work import Modules, Work
from rigsize.program.zero3_fetch import Limits
from rigsize.provenance import Sourced
from rigsize.spec import Strategy
from rigsize.spec.recompute import recompute_period
from rigsize.steptime.constants import DISPATCH_S
from rigsize.steptime.rows import Row

__all__ = ["add_hooks"]

_SOURCE = "benchmarks/deepspeed_hooks.py, deepspeed 0.19.8, torch 2.13.0"


def _measured(value: float) -> Sourced[float]:
    return Sourced(value=value, source=_SOURCE, as_of="2026-11-28", basis="measured")


FORWARD_S = _measured(1.8e-3)
"""ZeRO-3: the engine's own, once a micro-step."""
BACKWARD_S = _measured(1.3e-3)
MODULE_FORWARD_S = _measured(155e-6)
"""ZeRO-3: the hooks before and behind a module's forward pass."""
MODULE_BACKWARD_S = _measured(78e-6)
PARAMETER_FORWARD_S = _measured(15e-6)
"""ZeRO-3: looked at by its module's hooks."""
GRADIENT_S = _measured(66e-6)
"""ZeRO-3: put into the bucket and, when that is reduced, cut into parts."""
GRADIENT_RANK_S = _measured(1.7e-6)
"""The same for each rank's part."""
GATHER_S = _measured(140e-6)
"""ZeRO-3: a parameter gathered, put together and let go once."""
GATHER_RANK_S = _measured(2e-6)
"""The same for each rank's part: a view, one after another."""
ALONE_S = _measured(80e-6)
"""ZeRO-3 on one rank: a parameter taken and let go, nothing gathered."""
ZERO1_GRADIENT_S = _measured(4e-6)
"""ZeRO-1, in a micro-step that reduces nothing."""
BUCKET_GRADIENT_S = _measured(26e-6)
"""ZeRO-1 in a step's last micro-step (22 us) and ZeRO-2 in each (28 us): copied into a bucket."""
GATHER_LAUNCHES = 3
"""The collective, its input put together, and each parameter put together from its parts: a
parameter of more than the prefetch's share comes alone."""

_PERSISTENCE = Limits().persistence
"""Elements up to which a parameter stays whole."""


def add_hooks(
    rows: Sequence[Row],
    work: Work,
    strategy: Strategy,
    ranks: int,
    places: tuple[Mapping[int, int], Mapping[int, int], Mapping[int, int]],
    *,
    closes: bool,
) -> None:
    """Puts the hooks' host time on the rows of a micro-step, as operators and launches.

    `places` are, by layer, its first forward, first backward and last backward row.
    """
    if not work.modules:
        return
    if strategy.parallel == "zero3":
        _around_modules(rows, work, strategy, ranks, places)
    elif strategy.parallel in ("zero1", "zero2") and work.training:
        reduces = closes or strategy.parallel == "zero2"
        each = BUCKET_GRADIENT_S if reduces else ZERO1_GRADIENT_S
        for row, held in _at(rows, work, places[2]):
            _add(row, len(held.trained) * each.value, len(held.trained) * reduces)


def _around_modules(
    rows: Sequence[Row],
    work: Work,
    strategy: Strategy,
    ranks: int,
    places: tuple[Mapping[int, int], Mapping[int, int], Mapping[int, int]],
) -> None:
    gather_s = GATHER_S.value + ranks * GATHER_RANK_S.value if ranks > 1 else ALONE_S.value
    gradient_s = GRADIENT_S.value + ranks * GRADIENT_RANK_S.value
    launches = GATHER_LAUNCHES if ranks > 1 else 0
    forward, backward, _ = places
    for place, engine in ((forward, FORWARD_S), (backward, BACKWARD_S)):
        if place:
            _add(rows[min(place.values())], engine.value, 0)
    for row, held in _at(rows, work, forward):
        gathers = _gathered(held)
        _add(row, _forward_s(held) + gathers * gather_s, gathers * launches)
    for row, held in _at(rows, work, backward):
        gathers = _gathered(held)
        hooks_s = held.modules * MODULE_BACKWARD_S.value + len(held.trained) * gradient_s
        if held is not work.modules[0]:
            # Its modules are passed through once more, when its weights are whole.
            hooks_s += _passes_again(strategy) * _forward_s(held)
        hooks_s += gathers * gather_s
        _add(row, hooks_s, gathers * launches + len(held.trained))


def _forward_s(held: Modules) -> float:
    modules_s = held.modules * MODULE_FORWARD_S.value
    return modules_s + len(held.shapes) * PARAMETER_FORWARD_S.value


def _passes_again(strategy: Strategy) -> float:
    """Of a layer, by recomputing it in the backward pass."""
    period = recompute_period(strategy.recompute)
    return 1 / period if period else 0.0


def _gathered(held: Modules) -> int:
    """Parameters that are cut over the ranks: small ones stay whole."""
    return sum(prod(shape) > _PERSISTENCE for shape in held.shapes)


def _at(
    rows: Sequence[Row], work: Work, places: Mapping[int, int]
) -> Iterable[tuple[Row, Modules]]:
    return ((rows[places[n]], held) for n, held in enumerate(work.modules) if n in places)


def _add(row: Row, host_s: float, launches: int) -> None:
    row.dispatches += host_s / DISPATCH_S.value.mid
    row.launches += launches
