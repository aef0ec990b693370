"""Device memory outside torch's allocator: the context, and what NCCL keeps a communicator.

NCCL allocates at a communicator's first collective, by channels and connected peers, and never
gives it back. Nothing here is measured yet: published logs (NVIDIA/nccl#964: 544 to 688 MB on
four A100 with NVLink; #864, #1685) span 0.5 to 1.6 GB, boxes without NVLink far less.
"""

from __future__ import annotations

from functools import lru_cache

from rigsize.hardware.accelerators import Accelerator, Band
from rigsize.program.mesh import Mesh
from rigsize.provenance import Sourced
from rigsize.units import GIB

__all__ = ["communication", "communicators", "outside"]

_SOURCE = "a prior over published observations (nccl#964, #864, #1685)"
LINKED = Sourced(
    value=Band(int(0.3 * GIB), int(0.7 * GIB), int(1.1 * GIB)),
    source=_SOURCE,
    as_of="2026-11-22",
    basis="assumed",
)
"""One communicator where devices are linked (NVLink, xGMI)."""
UNLINKED = Sourced(
    value=Band(int(0.05 * GIB), int(0.15 * GIB), int(0.3 * GIB)),
    source=_SOURCE,
    as_of="2026-11-22",
    basis="assumed",
)
"""One communicator over PCIe alone."""


def communicators(mesh: Mesh) -> int:
    """How many a rank takes part in: one over the shards, one over the copies."""
    return (mesh.shard > 1) + (mesh.replicas > 1)


def communication(mesh: Mesh, accelerator: Accelerator) -> Sourced[Band] | None:
    """What all of a rank's communicators keep; None where there are none, or on the CPU."""
    number = communicators(mesh)
    if not number or accelerator.is_cpu:
        return None
    one = UNLINKED if accelerator.link_kind == "none" else LINKED
    return Sourced(
        value=Band(*(number * size for size in one.value)),
        source=one.source,
        as_of=one.as_of,
        basis=one.basis,
    )


@lru_cache(maxsize=4096)
def outside(mesh: Mesh, accelerator: Accelerator) -> Band:
    """Context and communicators, low and high ends together."""
    context, added = accelerator.context_bytes.value, communication(mesh, accelerator)
    if added is None:
        return context
    return Band(*(a + b for a, b in zip(context, added.value, strict=True)))
