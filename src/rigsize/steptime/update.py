"""The optimizer step: clipping, the update and what travels for it, as rows of a schedule.

Bytes follow the states' real sizes (`program.optimizer_sizes`); how often an implementation goes
over them is assumed in `constants`, AdamW's fused step being one pass.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from rigsize.errors import UnsupportedCombination
from rigsize.program.optimizer_sizes import paged_sizes, state_bytes
from rigsize.program.work import Work
from rigsize.spec import Strategy
from rigsize.spec.zero import ZEROS
from rigsize.steptime.constants import (
    ADAFACTOR_KERNELS,
    ADAMW_KERNELS,
    FOREACH_PASSES,
    LOOP_PASSES,
    MOMENTUM_KERNELS,
    MOMENTUM_PASSES,
    RMSPROP_KERNELS,
)
from rigsize.steptime.links import Links
from rigsize.steptime.muon import matrices_of, matrix_elements, muon_row
from rigsize.steptime.prices import OPTIMIZER, Pricer
from rigsize.steptime.rows import Row

__all__ = [
    "gradient_bytes",
    "moved_bytes_per_param",
    "states_per_param",
    "trained_weight_bytes",
    "update_rows",
]

CLIPPING = "gradient clipping"
_FP32_BYTES = 4
_SIDE = 1024
"""States are asked for a square matrix: factored ones cost next to nothing beside it."""
_CHUNK_NUMEL = 320 * 65536
_CHUNK_TENSORS = 110
"""What one launch of a multi-tensor kernel takes (ATen/native/cuda/MultiTensorApply.cuh)."""
_FOREACH, _LOOP = FOREACH_PASSES.value.mid, LOOP_PASSES.value.mid


class _Way(NamedTuple):
    """How an implementation goes over the parameters."""

    passes: float
    """Traffic against one fused pass."""
    kernels: int
    """Launches: of all tensors together, or of each."""
    each: bool
    """Each tensor alone."""


_ADAMW, _RMSPROP, _MOMENTUM, _ADAFACTOR = (
    round(kernels.value.mid)
    for kernels in (ADAMW_KERNELS, RMSPROP_KERNELS, MOMENTUM_KERNELS, ADAFACTOR_KERNELS)
)
_WAYS: dict[str, _Way] = {
    "adamw-foreach": _Way(_FOREACH, _ADAMW, False),
    "adamw-fused": _Way(1.0, 1, False),
    "adamw-loop": _Way(_LOOP, _ADAMW, True),
    "rmsprop": _Way(_FOREACH, _RMSPROP, False),
    "sgd": _Way(1.0, 1, False),
    "sgd-momentum": _Way(MOMENTUM_PASSES.value.mid, _MOMENTUM, False),
    "adafactor-foreach": _Way(_LOOP, _ADAFACTOR, False),
    "adafactor": _Way(_LOOP, _ADAFACTOR, True),
    "adafactor-hf": _Way(_LOOP, _ADAFACTOR, True),
    "adamw-8bit-torchao": _Way(1.0, 1, True),
    "adamw-4bit": _Way(1.0, 1, True),
    "adamw-fp8": _Way(1.0, 1, True),
    "adamw-sr": _Way(1.0, 1, True),
    "adamw-8bit": _Way(1.0, 1, True),
    "paged-adamw": _Way(1.0, 1, True),
    "paged-adamw-8bit": _Way(1.0, 1, True),
    "lion": _Way(1.0, 1, True),
    "lion-8bit": _Way(1.0, 1, True),
}


def gradient_bytes(strategy: Strategy) -> int:
    """Bytes an element of a gradient as the backward pass leaves it."""
    if strategy.method != "full" and strategy.adapter_dtype == "fp32":
        return _FP32_BYTES
    return strategy.policy.gradient_bytes or _FP32_BYTES


def moved_bytes_per_param(strategy: Strategy) -> float:
    """Traffic of an update on the device: fused, 4 reads and 3 writes with AdamW's two states."""
    way = _way(strategy.optimizer)
    gradient = gradient_bytes(strategy)
    weight = trained_weight_bytes(strategy)
    master = strategy.policy.master_bytes
    stepped = master or weight
    written_back = weight if master and weight != master else 0
    states = states_per_param(strategy)
    return way.passes * (2 * stepped + gradient + 2 * states) + written_back


def trained_weight_bytes(strategy: Strategy) -> int:
    """Bytes an element of a weight that trains; adapters have a dtype of their own."""
    adapted = strategy.method != "full"
    return gradient_bytes(strategy) if adapted else strategy.policy.weight_bytes


def states_per_param(strategy: Strategy) -> float:
    """Bytes of the optimizer's states for a trained parameter; the master copy left out."""
    stepped = strategy.policy.master_bytes or trained_weight_bytes(strategy)
    return _states_per_param(strategy.optimizer, stepped)


@lru_cache
def _states_per_param(optimizer: str, stepped_bytes: int) -> float:
    shape = (_SIDE, _SIDE)
    states = state_bytes(optimizer, [shape], stepped_bytes)
    return (states + sum(paged_sizes(optimizer, shape))) / _SIDE**2


def _way(optimizer: str) -> _Way:
    if optimizer not in _WAYS:
        raise UnsupportedCombination(
            "optim",
            optimizer,
            "no time model goes over all parameters alike",
            allowed=tuple(_WAYS),
            nearest="adamw-fused",
        )
    return _WAYS[optimizer]


def update_rows(work: Work, strategy: Strategy, pricer: Pricer, links: Links) -> list[Row]:
    """Rows of clipping, the step, and the copies and collectives that belong to them."""
    numel = sum(work.trainable)
    if not numel:
        return []
    shard = links.mesh.shard
    share = numel / shard
    rows: list[Row] = []
    if strategy.steps_on_host:
        if strategy.optimizer == "muon":
            raise UnsupportedCombination(
                "optim", "muon", "no time model of its products on the host"
            )
        rows += _host_rows(strategy, links, share)
    else:
        rows += _clip_rows(work, strategy, pricer, links, share)
        if strategy.optimizer == "muon":
            rows += _muon_rows(work, strategy, pricer)
        else:
            rows.append(_step_row(strategy, pricer, share, work.tensors))
    if strategy.parallel in ("zero1", "zero2"):
        weights = numel * (gradient_bytes(strategy))
        gather = links.within_copy("all_gather", weights)
        rows.append(Row(waits=True, gather_s=gather))
    return rows


def _host_rows(strategy: Strategy, links: Links, share: float) -> list[Row]:
    clipped = 3 * _FP32_BYTES * share if strategy.max_grad_norm else 0.0
    step = links.host_step(share, clipped_bytes=clipped)
    gradient = gradient_bytes(strategy)
    if strategy.offload == "cpu":
        return [Row(waits=True, host_step_s=step)]
    # ZeRO has copied its gradients already; one device copies them now, and waits.
    stored = 0.0 if strategy.parallel in ZEROS else links.to_host(share * gradient)
    back = links.to_device(share * gradient)
    return [
        Row(waits=True, store_s=stored, host_step_s=step),
        Row(waits=True, fetch_s=back),
    ]


def _clip_rows(
    work: Work, strategy: Strategy, pricer: Pricer, links: Links, share: float
) -> list[Row]:
    """Unscaling reads and writes the gradients; clipping reads them, then reads and writes."""
    gradient = gradient_bytes(strategy)
    passes = (2 if strategy.policy.loss_scaling else 0) + (3 if strategy.max_grad_norm else 0)
    if not passes:
        return [Row(waits=True)] if links.mesh.ranks > 1 else []
    calls = _launches(_Way(1.0, 3, False), work.tensors, share)
    seconds = pricer.moved(CLIPPING, passes * gradient * share, "optimizer", calls)
    # Of shards, the norm goes around as one number.
    norm_s = links.within_copy("all_reduce", _FP32_BYTES) if links.mesh.shard > 1 else 0.0
    return [
        Row(
            busy_s={CLIPPING: seconds},
            launches=calls,
            dispatches=work.tensors,
            waits=links.mesh.ranks > 1,
            gather_s=norm_s,
        )
    ]


def _muon_rows(work: Work, strategy: Strategy, pricer: Pricer) -> list[Row]:
    """Whole matrices on every rank, then fused AdamW on all else."""
    weight, master = trained_weight_bytes(strategy), strategy.policy.master_bytes
    written_back = weight if master and weight != master else 0
    row = muon_row(work, pricer, (master or weight, gradient_bytes(strategy), written_back))
    rest = sum(work.trainable) - matrix_elements(work)
    tensors = work.tensors - matrices_of(work).total()
    others = replace(strategy, optimizer="adamw-fused")
    return [row, _step_row(others, pricer, rest, tensors)] if rest else [row]


def _step_row(strategy: Strategy, pricer: Pricer, share: float, tensors: int) -> Row:
    way = _way(strategy.optimizer)
    tensors = 1 if strategy.parallel in ZEROS else tensors
    calls = _launches(way, tensors, share)
    moved = moved_bytes_per_param(strategy) * share
    seconds = pricer.moved(OPTIMIZER, moved, "optimizer", calls)
    return Row(
        busy_s={OPTIMIZER: seconds},
        launches=calls,
        dispatches=calls if way.each else tensors,
    )


def _launches(way: _Way, tensors: int, numel: float) -> int:
    if way.each:
        return way.kernels * tensors
    chunks = max(-(-round(numel) // _CHUNK_NUMEL), -(-tensors // _CHUNK_TENSORS), 1)
    return way.kernels * chunks
