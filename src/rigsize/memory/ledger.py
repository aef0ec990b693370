"""A row of a ledger, of the device's memory or the host's."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LedgerRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """A named, additive part of the peak."""

    name: str
    num_bytes: int
    basis: str
