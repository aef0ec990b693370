"""What an estimate answers: memory, fit, parameters, device by device; the records alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rigsize.memory.host import HostEstimate
from rigsize.memory.ledger import LedgerRow
from rigsize.memory.replay import Replay
from rigsize.models import ModelSource
from rigsize.program.build import Program
from rigsize.spec import Cluster, Strategy, Workload

__all__ = [
    "WORST_FIRST",
    "DeviceShare",
    "Estimate",
    "Fit",
    "MemoryEstimate",
    "Parameters",
    "Verdict",
]

Verdict = Literal["fits", "tight", "does_not_fit", "unknown"]
WORST_FIRST: tuple[Verdict, ...] = ("does_not_fit", "unknown", "tight", "fits")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """One device's memory in bytes; the rows of the ledger sum to the device peak."""

    allocated_peak_bytes: int
    """`torch.cuda.max_memory_allocated`; on cpu the live bytes of all tensors."""
    reserved_peak_bytes: int | None
    """`torch.cuda.max_memory_reserved`; None on cpu."""
    device_peak_bytes: int | None
    """Reserved plus the CUDA context and NCCL's communicators; None on cpu."""
    low_bytes: int
    high_bytes: int
    """The device peak with context and communicators at the low and high end of their bands."""
    peak_moment: str
    """When the peak is, in words."""
    ledger: tuple[LedgerRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether it fits the device, and the host where its memory is known."""

    verdict: Verdict
    """The worse of the card's and the host's."""
    capacity_bytes: int | None
    headroom_bytes: int | None
    """Capacity less the device peak; negative when it does not fit."""
    host_verdict: Verdict = "unknown"
    host_capacity_bytes: int | None = None
    """Of one node."""
    host_headroom_bytes: int | None = None
    card_verdict: Verdict | None = None
    """The card's own, where the host's memory was asked about; None elsewhere."""

    @property
    def of_card(self) -> Verdict:
        """The verdict without the host."""
        return self.card_verdict or self.verdict

    @property
    def host_is_worse(self) -> bool:
        """The host decides the verdict."""
        return self.verdict == self.host_verdict != self.of_card

    @property
    def fits(self) -> bool:
        """Tight fits are fits: one end of the context's band leaves room, the other does not."""
        return self.verdict in ("fits", "tight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Three counts that are easily taken for one another."""

    model: int
    """What is built for the task: backbone and head."""
    trainable: int
    head: int
    """Of it, the task head."""
    checkpoint: int | None
    """What the published file holds, unused parts included."""
    checkpoint_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """One of several devices that hold a model together (`program.placement`)."""

    device: int
    weight_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The whole answer."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    cluster: Cluster
    point: Mapping[str, int]
    """The sizes of the micro-batch, {B, S, T} and M, N where it has them (`rigsize.point`)."""
    memory: MemoryEstimate
    host: HostEstimate
    fit: Fit
    parameters: Parameters
    versions: dict[str, str]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    program: Program
    """The Program, for explanations; of several devices the fullest one's."""
    replay: Replay
    devices: tuple[DeviceShare, ...] = ()
    """Where one model is spread over several, each of them."""
