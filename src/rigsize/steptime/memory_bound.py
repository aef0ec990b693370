"""Operators that only move bytes: t = t0 + (bytes + b_half) / (B e).

Written with e(bytes) = e bytes / (bytes + b_half), b_half is the traffic at which half the speed
is reached. Fitted per card on NeuSight's fp32 tables for elementwise operators, LayerNorm and
softmax; classes nobody measured take a stated share of elementwise speed.

A card whose products were measured and whose memory-bound operators were not (H100, H200, B200,
L40S, RTX PRO 6000) takes from its own table how far its L2 cache serves operands, as in `gemm`:
what the operator before has just written is still there. Fits of their own contain this already,
and optimizer states and embedding tables were touched a step ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import Accelerator
from rigsize.provenance import Basis
from rigsize.steptime.kernel_time import KernelTime
from rigsize.steptime.tables import fits, fitted_json

__all__ = ["MemoryClass", "Traffic", "memory_bound", "traffic_of"]

MemoryClass = Literal[
    "elementwise",
    "copy",
    "optimizer",
    "softmax",
    "softmax-backward",
    "layernorm",
    "layernorm-backward",
    "reduction",
    "embedding",
    "embedding-backward",
]

_START_S = 3e-6
_SIGMA_MEASURED = 0.15
_SIGMA_OTHER_CARD = 0.2
_SIGMA_ASSUMED = 0.3

# (class that was measured, share of its bandwidth). The shares below one are assumed:
# LayerNorm's backward pass sums over rows too, an embedding's gradients are added row by row.
_CLASSES: dict[str, tuple[str, float]] = {
    "elementwise": ("elementwise", 1.0),
    "copy": ("elementwise", 1.0),
    "optimizer": ("elementwise", 1.0),
    "softmax": ("softmax", 1.0),
    "softmax-backward": ("softmax", 1.0),
    "layernorm": ("layernorm", 1.0),
    "layernorm-backward": ("layernorm", 0.75),
    "reduction": ("elementwise", 0.9),
    "embedding": ("elementwise", 0.7),
    "embedding-backward": ("elementwise", 0.35),
}
_COLD = ("optimizer", "embedding", "embedding-backward")
_MEASURED_CLASSES = ("elementwise", "softmax", "layernorm")

# The same memory system on a board of another power or form.
_SIBLINGS = {
    "A100-80GB-SXM": "A100-80GB-PCIe",
    "A100-40GB-SXM": "A100-40GB-PCIe",
    "V100-16GB-PCIe": "V100-32GB-PCIe",
    "V100-16GB-SXM2": "V100-32GB-PCIe",
    "V100-32GB-SXM2": "V100-32GB-PCIe",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How a card moves bytes in one class of operators."""

    share: float
    """Share of the datasheet bandwidth that large operands reach."""
    half_bytes: float
    """The traffic at which half of that is reached."""
    basis: Basis
    """derived on this card's own memory or on others', or assumed."""
    sigma: float
    """Standard deviation of log(measured / predicted)."""


@lru_cache(maxsize=65_536)
def memory_bound(
    gpu: Accelerator, moved_bytes: int, kind: MemoryClass = "elementwise"
) -> KernelTime:
    """The time of one kernel that reads and writes `moved_bytes` in all."""
    if gpu.memory_bytes_per_s is None or gpu.software_stack not in ("cuda", "rocm"):
        raise UnsupportedCombination("gpus", gpu.id, "no time model for its memory")
    traffic = traffic_of(gpu, kind)
    rate = gpu.memory_bytes_per_s * traffic.share
    seconds = _START_S
    if moved_bytes:
        from_memory = traffic.half_bytes + moved_bytes * _from_memory(gpu, moved_bytes, kind)
        seconds += from_memory / rate
    return KernelTime(seconds=seconds, sigma=traffic.sigma, basis=traffic.basis)


def _from_memory(gpu: Accelerator, moved_bytes: int, kind: MemoryClass) -> float:
    """The share of the time of a transfer from memory that traffic of this size takes."""
    own = _SIBLINGS.get(gpu.id, gpu.id) in fitted_json()["memory"]["elementwise"]
    if own or kind in _COLD:
        return 1.0
    fit = fits()["gemm_16bit"].get(gpu.id)
    if fit is None or not fit.cache_bytes:
        return 1.0
    hot = 1 / (1 + (moved_bytes / fit.cache_bytes) ** 2)
    return 1 - hot + hot / fit.cache_speedup


@lru_cache(maxsize=512)
def traffic_of(gpu: Accelerator, kind: MemoryClass) -> Traffic:
    """The constants of a class on a card: its own, else the mean of the measured cards."""
    measured, factor = _CLASSES[kind]
    rows = fitted_json()["memory"][measured]
    own = rows.get(_SIBLINGS.get(gpu.id, gpu.id))
    chosen = [own] if own else list(rows.values())
    share = sum(row["share"] for row in chosen) / len(chosen) * factor
    half_s = sum(row["half_s"] for row in chosen) / len(chosen)
    sigma = _SIGMA_MEASURED if own else _SIGMA_OTHER_CARD
    assumed = kind not in _MEASURED_CLASSES and kind not in ("copy", "optimizer")
    return Traffic(
        share=share,
        half_bytes=half_s * share * (gpu.memory_bytes_per_s or 0.0),
        basis="assumed" if assumed else "derived",
        sigma=_SIGMA_ASSUMED if assumed else sigma,
    )
