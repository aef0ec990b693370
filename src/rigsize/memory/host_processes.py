"""What a rank's process takes of the host before it holds a single tensor of the run."""

from __future__ import annotations

from typing import NamedTuple

from rigsize.hardware.accelerators import Band
from rigsize.provenance import Sourced
from rigsize.units import GIB, MIB

__all__ = ["CPU_PROCESS", "CUDA_PROCESS", "Process"]


class Process(NamedTuple):
    """Interpreter and libraries, in bytes."""

    private: Band
    """Of each process: heaps, relocated and written pages."""
    shared: Band
    """Pages of library files, which the processes of a node have in common."""

    def on_node(self, ranks: int) -> Band:
        """Of all the ranks of one node."""
        both = zip(self.private, self.shared, strict=True)
        return Band(*(ranks * own + common for own, common in both))


CPU_PROCESS = Sourced(
    value=Process(
        private=Band(230 * MIB, 265 * MIB, 330 * MIB), shared=Band(80 * MIB, 93 * MIB, 120 * MIB)
    ),
    source=(
        "RssAnon and RssFile after one step: torch 2.13 (CPU), transformers 5.23 and this package"
    ),
    as_of="2026-11-25",
    basis="measured",
)
CUDA_PROCESS = Sourced(
    value=Process(
        private=Band(717 * MIB, 1536 * MIB, 2560 * MIB), shared=Band(307 * MIB, 1 * GIB, 1536 * MIB)
    ),
    source=(
        "between the CPU build's and those from before lazy loading (pytorch#12873, #63555, #19397)"
    ),
    as_of="2026-11-25",
    basis="assumed",
)
"""CUDA's libraries are larger and its driver keeps kernels in anonymous memory; not measured."""
