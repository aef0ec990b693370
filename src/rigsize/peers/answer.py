"""One estimator's answer, in the terms that all of them are laid beside one another in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TERMS", "PeerAnswer"]

TERMS = (
    "weights",
    "gradients",
    "master_copy",
    "optimizer_states",
    "activations",
    "logits",
    "temporaries",
    "communication",
    "workspaces",
    "allocator",
    "context",
    "other",
)
"""Rows of a comparison: the first part of our ledger's names, inputs and buffers being `other`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAnswer:
    """What one estimator, rule or run says of a device's memory, in bytes."""

    name: str
    version: str = ""
    total_bytes: int | None
    """The one figure it prints; None where it prints none for this run."""
    unknown_reason: str = ""
    """Why there is none, in one line."""
    terms: Mapping[str, int] = field(default_factory=dict)
    """Of TERMS, those that it counts apart."""
    lumped: tuple[str, ...] = ()
    """Of TERMS, those that its total holds without saying how much of each."""
    left_out: tuple[str, ...] = ()
    """Of TERMS, those that this run takes memory for and that it does not count."""
    host_bytes: int | None = None
    """Of one node's host memory, where it says so."""
    note: str = ""
    """What its figure stands for."""

    @property
    def counted(self) -> tuple[str, ...]:
        """Every term that the total holds in some way."""
        return (*self.terms, *self.lumped)
