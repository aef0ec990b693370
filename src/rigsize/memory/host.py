"""The host memory of one node: a ledger whose rows sum to the peak, and the moment it is at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.memory.host_moments import FILE_ROWS, HostRun, Moments
from rigsize.memory.host_processes import CPU_PROCESS, CUDA_PROCESS
from rigsize.memory.host_records import Weight
from rigsize.memory.ledger import LedgerRow
from rigsize.models.registry import find_bundled
from rigsize.spec.strategy import FSDPS
from rigsize.trace.sizes import evaluate, monomials_at
from rigsize.units import format_bytes

if TYPE_CHECKING:
    from rigsize.models import ModelSource
    from rigsize.program.mesh import Mesh
    from rigsize.spec import Strategy, Workload
    from rigsize.trace.profile import Profile

__all__ = ["HostEstimate", "host_memory", "run_of"]

_HALF = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEstimate:
    """One node's host memory in bytes."""

    peak_bytes: int
    low_bytes: int
    """With the smallest processes, and with no page of a file kept in memory."""
    high_bytes: int
    """With the largest processes."""
    moment: str
    """loading, a step, saving a checkpoint or exporting the model."""
    ledger: tuple[LedgerRow, ...]
    """At the peak, largest first; the rows sum to it."""
    moments: tuple[tuple[str, int], ...]
    """Each moment and its bytes."""
    ranks: int
    """Processes on the node."""
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]


def run_of(
    source: ModelSource,
    profile: Profile,
    point: Mapping[str, int],
    workload: Workload,
    strategy: Strategy,
    mesh: Mesh,
    *,
    saved: Mapping[str, list[int]],
    paged_bytes: int,
    tensors_bytes: int | None,
) -> HostRun:
    """The run as the host sees it, from what was traced of it."""
    values = monomials_at(point)
    weights: list[Weight] = []
    batch_bytes = 0
    for name, tensor, _ in profile.full_tensors():
        if name.startswith("input:"):
            batch_bytes += evaluate(tensor.size, values)
        elif not name.startswith("buffer:"):
            size = _itemsize(tensor.itemsize, strategy)
            weights.append(
                Weight(name=name, shape=tensor.shape, itemsize=size, trainable=tensor.trainable)
            )
    return HostRun(
        workload=workload,
        strategy=strategy,
        mesh=mesh,
        weights=tuple(weights),
        batch_bytes=batch_bytes,
        file_itemsize=_file_itemsize(source),
        saved=saved,
        paged_bytes=paged_bytes,
        tensors_bytes=tensors_bytes,
    )


def _itemsize(traced: int, strategy: Strategy) -> int:
    """FSDP2's mixed precision computes on 16-bit copies of shards, which are the policy's."""
    sharded = strategy.parallel in FSDPS and strategy.stored_as == "none"
    return strategy.policy.weight_bytes if sharded else traced


def _file_itemsize(source: ModelSource) -> int:
    """Of the published weights, by our table or the config's own word; fp32 where it says none."""
    bundled = find_bundled(source.name) if source.origin == "bundled" else None
    config = source.config
    dtype = bundled.checkpoint_dtype if bundled else config.get("dtype", config.get("torch_dtype"))
    return 2 if dtype in _HALF else 4


def host_memory(run: HostRun) -> HostEstimate:
    """The peak over loading and steps, and in training over checkpoint and export."""
    moments = Moments(run).rows()
    processes = CPU_PROCESS if run.on_cpu else CUDA_PROCESS
    band = processes.value.on_node(run.ranks)
    totals = {name: band.mid + sum(rows.values()) for name, rows in moments.items()}
    moment = max(totals, key=lambda name: totals[name])
    kept = max(_without_files(rows) for rows in moments.values())
    ranked = sorted(moments[moment].items(), key=lambda row: -row[1])
    ledger = [
        LedgerRow(name=name, num_bytes=size, basis="traced" if name == "tensors" else "derived")
        for name, size in ranked
        if size
    ]
    ledger.append(LedgerRow(name="processes", num_bytes=band.mid, basis=processes.basis))
    return HostEstimate(
        peak_bytes=totals[moment],
        low_bytes=band.low + kept,
        high_bytes=band.high + totals[moment] - band.mid,
        moment=moment,
        ledger=tuple(sorted(ledger, key=lambda row: -row.num_bytes)),
        moments=tuple(totals.items()),
        ranks=run.ranks,
        assumptions=(
            f"host: interpreters and libraries {format_bytes(band.mid)}"
            f" ({format_bytes(band.low)} to {format_bytes(band.high)}), {processes.basis}:"
            f" {processes.source}",
        ),
        notes=_notes(run, totals),
    )


def _without_files(rows: Mapping[str, int]) -> int:
    return sum(size for name, size in rows.items() if name not in FILE_ROWS)


def _notes(run: HostRun, totals: Mapping[str, int]) -> tuple[str, ...]:
    """What loading would take without sending from one rank."""
    if run.strategy.parallel not in FSDPS or run.ranks < 2:
        return ()
    whole = run.strategy.policy.weight_bytes * run.loaded
    everywhere = totals["loading"] - run.converted_bytes + run.ranks * whole
    return (
        f"loading takes {format_bytes(totals['loading'])} of the host, as rank 0 reads the weights"
        f" and sends them; {format_bytes(everywhere)} where every rank builds the whole model",
    )
