"""Cluster: on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.spec.checks import integer

if TYPE_CHECKING:
    from rigsize.hardware.accelerators import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Accelerators per node times nodes."""

    accelerator: Accelerator
    per_node: int = 1
    nodes: int = 1
    host_memory_bytes: int | None = None
    """Of each node; None where nobody said."""

    def __post_init__(self) -> None:
        integer("gpus", self.per_node, 1, 1024, "devices a node")
        integer("gpus", self.nodes, 1, 100_000, "nodes")

    @property
    def devices(self) -> int:
        """Accelerators in all."""
        return self.per_node * self.nodes
