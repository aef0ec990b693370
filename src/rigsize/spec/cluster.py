"""Cluster: on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rigsize.errors import SpecError
from rigsize.spec.checks import integer
from rigsize.units import GIGABIT_BYTES

if TYPE_CHECKING:
    from rigsize.hardware.accelerators import Accelerator


MOST_NETWORK_GBIT_PER_S = 1_000_000
MOST_NETWORK_BYTES_PER_S = MOST_NETWORK_GBIT_PER_S * GIGABIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Accelerators per node times nodes."""

    accelerator: Accelerator
    per_node: int = 1
    nodes: int = 1
    host_memory_bytes: int | None = None
    """Of each node; None where nobody said."""
    network_bytes_per_s: float | None = None
    """What a node sends to the others; None where nobody said, and hours assume 100 Gbit/s."""

    def __post_init__(self) -> None:
        integer("gpus", self.per_node, 1, 1024, "devices a node")
        integer("gpus", self.nodes, 1, 100_000, "nodes")
        rate = self.network_bytes_per_s
        if rate is not None and not 0 < rate <= MOST_NETWORK_BYTES_PER_S:
            raise SpecError("network", rate, "no network, in bytes a second")

    @property
    def devices(self) -> int:
        """Accelerators in all."""
        return self.per_node * self.nodes
