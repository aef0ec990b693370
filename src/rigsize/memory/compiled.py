"""What `torch.compile` leaves of an eager peak: bounds, for nobody can say more without a run."""

from __future__ import annotations

from collections.abc import Iterable

from rigsize.memory.ledger import LedgerRow

__all__ = ["COMPILE_NOTE", "as_assumed", "least_bytes"]

_SHRINKS = ("activations", "temporaries", "weights.autocast_casts", "allocator")
"""Ledger rows that compiling changes. Weights, gradients, states, inputs, logits and workspaces are
there whoever runs the model."""
COMPILE_NOTE = (
    "--compile is answered by the eager step, which bounds it from above: torch.compile's"
    " partitioner saves fewer tensors and fusion makes fewer. The low end has no activations and no"
    " temporaries at all, so the truth is between; measure it. Tuning kernels in the first step"
    " comes on top."
)


def _shrinks(row: LedgerRow) -> bool:
    return row.name.startswith(_SHRINKS)


def least_bytes(rows: Iterable[LedgerRow]) -> int:
    """The rows that no compiler removes."""
    return sum(row.num_bytes for row in rows if not _shrinks(row))


def as_assumed(rows: Iterable[LedgerRow]) -> tuple[LedgerRow, ...]:
    """The eager ledger, where compiling changes a row no better founded than an assumption."""
    return tuple(
        LedgerRow(name=row.name, num_bytes=row.num_bytes, basis="assumed") if _shrinks(row) else row
        for row in rows
    )
