"""What was measured on the machine at hand, in place of the constants of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Calibration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Figures of `rigsize calibrate`; None is not measured, and the packaged constant is used."""

    accelerator: str
    """The id of the device it was measured on; it speaks for no other."""
    record: str = ""
    """The Record it was read from."""
    dispatch_s: float | None = None
    """Host seconds of one dispatched operator beside its launches."""
    launch_s: float | None = None
    """Host seconds of one kernel launch."""
    gemm: Mapping[str, float] = field(default_factory=dict)
    """By dtype (bf16, fp16, tf32, fp32): measured over predicted seconds, the median over sizes."""
    misaligned: float | None = None
    """Measured over aligned seconds of a product with the 250,002 vocabulary."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """By `MemoryClass`: measured over predicted seconds, the median over sizes."""
    attention: float | None = None
    """Measured over predicted seconds of the fused attention."""
    to_device_bytes_per_s: float | None = None
    """Pinned host memory to the device."""
    to_host_bytes_per_s: float | None = None
    collective: Mapping[str, float] = field(default_factory=dict)
    """By collective: measured over predicted seconds between this machine's devices."""
    cpu_adam_s_per_param: float | None = None
    """torch.optim.AdamW on the host, its loop, with all the threads torch takes."""
    cpu_adam_fused_s_per_param: float | None = None
    """The same fused, which is vectorised as DeepSpeed's CPUAdam is."""
