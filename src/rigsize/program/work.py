"""What one micro-step computes: its kernels in order, layer by layer. No torch here.

The same trace that gives memory its births and deaths gives time its kernels: `Work` is to the
time replay what `Timeline` is to the memory replay. It holds no seconds and knows no device; a
kernel's sizes are numbers at one point {B, S, ...}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Kernel", "Modules", "Work", "WorkSegment"]


class Kernel(NamedTuple):
    """Launches of one kernel with the same sizes, one after another in one segment."""

    kind: str
    """gemm, gemm_4bit, attention, attention_backward, or a `steptime.memory_bound.MemoryClass`."""
    dtype: str
    """Of the operands: float32, bfloat16, float16, float8_e4m3fn, int8."""
    sizes: tuple[int, ...]
    """gemm and gemm_4bit: (batch, m, n, k). attention: (B, S of queries, heads, head size, S of
    keys, heads of keys). All else: (bytes read and written,)."""
    detail: str = ""
    """gemm: its layout (`steptime.gemm.Layout`). attention: `causal` or empty."""
    op: str = ""
    """The operator, without `aten::`."""
    launches: int = 1


class WorkSegment(NamedTuple):
    """A stretch of the micro-step that belongs to one layer, or to none."""

    phase: str
    """forward or backward, as in `MicroStep.phases`."""
    layer: int
    """0 outside the layers, else the full layer's number from 1 through all stacks."""
    kernels: tuple[Kernel, ...]
    """The same object for every layer that runs the same code."""
    dispatches: int
    """Operators that the host dispatches here, views included."""


class Modules(NamedTuple):
    """What Python sees of one layer: DeepSpeed hangs its hooks on it."""

    modules: int
    """That hold parameters, themselves or inside; lists of modules are none. The root is one of
    layer 0. Modules without parameters of their own (activations, dropout, a tied head) are not
    known."""
    shapes: tuple[tuple[int, ...], ...]
    """Of each parameter."""
    trained: tuple[tuple[int, ...], ...]
    """Of those that are trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One micro-step (training) or one pass (inference) of one device's whole model."""

    segments: tuple[WorkSegment, ...]
    parameters: tuple[int, ...]
    """Elements by layer, index 0 what is outside all layers."""
    trainable: tuple[int, ...]
    """The trainable ones among them."""
    tensors: int
    """Trainable parameters, counted as tensors: launches of a looping optimizer."""
    weight_bytes: tuple[int, ...]
    """Bytes of the weights as they are stored, by layer like `parameters`."""
    training: bool
    point: Mapping[str, int]
    """The sizes, {B, S, ...}."""
    modules: tuple[Modules, ...] = ()
    """By layer like `parameters`; empty where nobody asks for hooks."""
    published_bytes: int | None = None
    """Of the checkpoint's file, whatever dtype the run has; None where nobody knows."""
    published_note: str = ""
    """In which dtype that is."""

    @property
    def flops(self) -> int:
        """Of the products and the fused attention, a multiply and an add counted as two."""
        return sum(kernel_flops(kernel) for segment in self.segments for kernel in segment.kernels)


def kernel_flops(kernel: Kernel) -> int:
    """FLOPs of all launches of a product or an attention; 0 of what only moves bytes."""
    if kernel.kind.startswith("gemm"):
        batch, m, n, k = kernel.sizes
        return 2 * batch * m * n * k * kernel.launches
    if kernel.kind.startswith("attention"):
        B, S, heads, head_dim, keys, _ = kernel.sizes
        forward = 4 * B * heads * S * keys * head_dim
        whole = forward * 5 // 2 if kernel.kind == "attention_backward" else forward
        return (whole // 2 if kernel.detail == "causal" else whole) * kernel.launches
    return 0
