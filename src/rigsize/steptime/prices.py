"""From the kernels of a `Work` to seconds on one device, by what the uncertainty hangs on.

A layer that repeats is priced once: `Work` hands out the same tuple of kernels for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import Accelerator
from rigsize.program.work import Kernel, Work, WorkSegment, kernel_flops
from rigsize.spec import Strategy
from rigsize.steptime.attention import Heads, attention
from rigsize.steptime.calibration import Calibration
from rigsize.steptime.constants import COMPILED_LAUNCHES, COMPILED_TRAFFIC, MISALIGNED
from rigsize.steptime.gemm import Layout, gemm, peak_flops_per_s
from rigsize.steptime.kernel_time import KernelTime
from rigsize.steptime.memory_bound import MemoryClass, memory_bound

__all__ = [
    "ATTENTION",
    "MISALIGNED_PRODUCTS",
    "OPTIMIZER",
    "PRODUCTS",
    "THIN_PRODUCTS",
    "Priced",
    "Pricer",
    "Spread",
]

PRODUCTS = "matrix products"
THIN_PRODUCTS = "matrix products bound by memory"
MISALIGNED_PRODUCTS = "matrix products with misaligned rows"
ATTENTION = "fused attention"
ELEMENTWISE = "element-wise operators and copies"
OPTIMIZER = "optimizer"
_PART_OF: dict[str, str] = {
    "elementwise": ELEMENTWISE,
    "copy": ELEMENTWISE,
    "reduction": ELEMENTWISE,
    "optimizer": OPTIMIZER,
    "softmax": "softmax and normalisation",
    "softmax-backward": "softmax and normalisation",
    "layernorm": "softmax and normalisation",
    "layernorm-backward": "softmax and normalisation",
    "embedding": "embeddings",
    "embedding-backward": "embeddings",
}
_SHORT = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float8_e4m3fn": "fp8",
    "int8": "int8",
}
# One measurement of the same kernel on this machine leaves this much: two collections of the same
# shape on the same GPU model differ by .7 to 3.5 % in the median (ai-dynamo/aiconfigurator's).
_SIGMA_CALIBRATED = 0.04
_BYTES_4BIT = 0.5
# The tables hold the layout of a forward pass; nobody measured the two of a backward pass, so what
# they are off by is shared by all of them.
_SIGMA_LAYOUT = 0.1
# Half the logarithm of the span of COMPILED_TRAFFIC, its ends taken for the 5 % and 95 % points.
_SIGMA_COMPILED = 0.3


@dataclass(slots=True)
class Spread:
    """How far the kernels of one part may lie from their prices, shared and each for itself."""

    seconds: float = 0.0
    shared_s: float = 0.0
    """Sum of seconds times sigma where a constant that is wrong is wrong for all of them."""
    own: dict[Kernel, float] = field(default_factory=dict)
    """Seconds times sigma of each measured kernel: these average down."""
    bases: dict[str, float] = field(default_factory=dict)
    """Seconds by basis."""
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def sigma(self) -> float:
        """Standard deviation of log(measured / predicted) of the part."""
        if not self.seconds:
            return 0.0
        own = math.sqrt(sum(value * value for value in self.own.values()))
        return math.hypot(self.shared_s, own) / self.seconds

    @property
    def basis(self) -> str:
        """That of most of the seconds."""
        return max(self.bases, key=self.bases.__getitem__, default="derived")


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A segment's seconds on the device by part, and how often the host launches."""

    busy_s: Mapping[str, float]
    launches: float
    dispatches: float


class Pricer:
    """Prices segments on one device under one strategy, and adds up how sure they are."""

    def __init__(
        self, gpu: Accelerator, strategy: Strategy, calibration: Calibration | None
    ) -> None:
        if gpu.software_stack not in ("cuda", "rocm"):
            raise UnsupportedCombination(
                "gpus", gpu.id, f"no time model for the {gpu.software_stack} stack"
            )
        if calibration is not None and calibration.accelerator != gpu.id:
            raise UnsupportedCombination(
                "calibration", calibration.accelerator, f"it was measured on no {gpu.id}"
            )
        self.gpu = gpu
        self.compiled = strategy.compile
        self.tf32 = strategy.precision == "tf32"
        self.calibration = calibration
        self.spreads: dict[str, Spread] = {}
        self._kernels: dict[Kernel, tuple[str, KernelTime]] = {}
        self._tuples: dict[int, tuple[dict[str, float], int]] = {}

    def work(self, work: Work) -> list[Priced]:
        """Each segment in order; a tuple of kernels that comes back is priced once."""
        times: dict[int, int] = {}
        for segment in work.segments:
            times[id(segment.kernels)] = times.get(id(segment.kernels), 0) + 1
        return [self._segment(segment, times) for segment in work.segments]

    def totals(self, work: Work) -> Priced:
        """All segments together: each tuple of kernels by how often it comes."""
        times: dict[int, list[WorkSegment]] = {}
        for segment in work.segments:
            times.setdefault(id(segment.kernels), []).append(segment)
        counts = {key: len(alike) for key, alike in times.items()}
        busy: dict[str, float] = {}
        launches = dispatches = 0.0
        for alike in times.values():
            priced = self._segment(alike[0], counts)
            for part, seconds in priced.busy_s.items():
                busy[part] = busy.get(part, 0.0) + seconds * len(alike)
            launches += priced.launches * len(alike)
            dispatches += sum(segment.dispatches for segment in alike)
        left = COMPILED_LAUNCHES.value.mid if self.compiled else 1.0
        return Priced(busy_s=busy, launches=launches, dispatches=dispatches * left)

    def _segment(self, segment: WorkSegment, times: dict[int, int]) -> Priced:
        known = self._tuples.get(id(segment.kernels))
        if known is None:
            busy: dict[str, float] = {}
            for kernel in segment.kernels:
                part, time = self.kernel(kernel)
                busy[part] = busy.get(part, 0.0) + time.seconds * kernel.launches
                self._count(kernel, part, time, times[id(segment.kernels)])
            launches = sum(kernel.launches for kernel in segment.kernels)
            known = self._tuples[id(segment.kernels)] = busy, launches
        left = COMPILED_LAUNCHES.value.mid if self.compiled else 1.0
        return Priced(
            busy_s=known[0], launches=known[1] * left, dispatches=segment.dispatches * left
        )

    def kernel(self, kernel: Kernel) -> tuple[str, KernelTime]:
        """One launch: the part it belongs to and its time."""
        found = self._kernels.get(kernel)
        if found is None:
            found = self._kernels[kernel] = self._calibrated(kernel, *self._price(kernel))
        return found

    def moved(self, part: str, moved_bytes: float, kind: MemoryClass, launches: int) -> float:
        """Seconds of traffic that no trace shows, over some launches: a part of its own."""
        launches = max(launches, 1)
        kernel = Kernel(kind, "float32", (round(moved_bytes / launches),), launches=launches)
        _, time = self.kernel(kernel)
        self._count(kernel, part, time)
        return time.seconds * launches

    def counted(self, kernel: Kernel) -> tuple[str, float]:
        """The part of a kernel that no trace shows, and the seconds of all its launches."""
        part, time = self.kernel(kernel)
        self._count(kernel, part, time)
        return part, time.seconds * kernel.launches

    def _count(self, kernel: Kernel, part: str, time: KernelTime, times: int = 1) -> None:
        seconds = time.seconds * kernel.launches * times
        spread = self.spreads.setdefault(part, Spread())
        spread.seconds += seconds
        spread.bases[time.basis] = spread.bases.get(time.basis, 0.0) + seconds
        if time.basis == "measured":
            spread.own[kernel] = spread.own.get(kernel, 0.0) + seconds * time.sigma
        else:
            spread.shared_s += seconds * time.sigma
        if time.note:
            spread.notes[time.note] = None

    def _price(self, kernel: Kernel) -> tuple[str, KernelTime]:
        if kernel.kind == "gemm":
            return self._product(kernel)
        if kernel.kind == "gemm_4bit":
            return self._four_bit(kernel)
        if kernel.kind.startswith("attention"):
            return ATTENTION, self._attention(kernel)
        if kernel.kind not in _PART_OF:
            raise UnsupportedCombination(
                "kernel", kernel.kind, "no time model for it", allowed=tuple(_PART_OF)
            )
        kind = cast(MemoryClass, kernel.kind)
        moved = kernel.sizes[0]
        if self.compiled and kind not in ("optimizer", "embedding", "embedding-backward"):
            # Fewer and larger kernels: all their traffic is what fusing leaves of it.
            fewer = COMPILED_LAUNCHES.value.mid
            moved = round(moved * COMPILED_TRAFFIC.value.mid / fewer)
            time = memory_bound(self.gpu, moved, kind)
            time = replace(time, basis="assumed", sigma=math.hypot(time.sigma, _SIGMA_COMPILED))
            return _PART_OF[kind], time.times(fewer)
        return _PART_OF[kind], memory_bound(self.gpu, moved, kind)

    def _product(self, kernel: Kernel) -> tuple[str, KernelTime]:
        batch, m, n, k = kernel.sizes
        layout = cast(Layout, kernel.detail or "nt")
        dtype = self.dtype_of(kernel.dtype)
        time = gemm(self.gpu, m, n, k, batch=batch, dtype=dtype, layout=layout)
        if layout != "nt" and time.basis == "measured":
            sigma = math.hypot(time.sigma, _SIGMA_LAYOUT)
            time = replace(time, basis="derived", sigma=sigma)
        if time.misaligned:
            return MISALIGNED_PRODUCTS, time
        return (THIN_PRODUCTS if self._is_thin(kernel.sizes, dtype) else PRODUCTS), time

    def _is_thin(self, sizes: tuple[int, ...], dtype: str) -> bool:
        """Whether moving the operands takes longer than multiplying them, both at their peaks."""
        batch, m, n, k = sizes
        element = 4 if dtype in ("fp32", "tf32") else 2
        moved_s = element * batch * (m * k + k * n + m * n) / (self.gpu.memory_bytes_per_s or 1.0)
        return moved_s > 2 * batch * m * n * k / peak_flops_per_s(self.gpu, dtype)

    def _four_bit(self, kernel: Kernel) -> tuple[str, KernelTime]:
        """Bitsandbytes reads the 4-bit matrix as it is for one row, and unpacks it for more."""
        batch, m, n, k = kernel.sizes
        packed = round(batch * n * k * _BYTES_4BIT)
        if m == 1:
            reading = memory_bound(self.gpu, packed + 2 * batch * (n + k), "copy")
            return ELEMENTWISE, replace(reading, basis="assumed")
        unpacking = memory_bound(self.gpu, packed + 2 * batch * n * k, "copy")
        part, product = self._product(kernel._replace(kind="gemm"))
        return part, replace(product, seconds=product.seconds + unpacking.seconds)

    def _attention(self, kernel: Kernel) -> KernelTime:
        B, S, heads, head_dim, keys, key_heads = kernel.sizes
        dtype, backward = self.dtype_of(kernel.dtype), kernel.kind == "attention_backward"
        causal = kernel.detail == "causal" and keys == S
        # A rectangle of queries and keys costs what the square of the same area does.
        side = S if keys == S else max(1, round(math.sqrt(S * keys)))
        shape = Heads(B, side, heads, head_dim)
        time = attention(self.gpu, shape, causal=causal, dtype=dtype, backward=backward)
        if keys == S:
            return time
        # One query reads all keys and values: the cache decides, not the products.
        element = 4 if dtype in ("fp32", "tf32") else 2
        moved = element * B * head_dim * 2 * (keys * key_heads + S * heads)
        reading = memory_bound(self.gpu, moved * (2 if backward else 1), "copy")
        longer = max(time, reading, key=lambda answer: answer.seconds)
        return replace(longer, basis="derived", sigma=max(time.sigma, reading.sigma))

    def dtype_of(self, dtype: str) -> str:
        """What the products of operands of this dtype are computed in.

        torch ignores `allow_tf32` on CUDA devices before Ampere.
        """
        if dtype not in _SHORT:
            raise UnsupportedCombination("dtype", dtype, "no product is known in it")
        if dtype == "float32" and self.tf32:
            capability = self.gpu.compute_capability
            return "fp32" if capability is not None and capability < (8, 0) else "tf32"
        return _SHORT[dtype]

    def _calibrated(self, kernel: Kernel, part: str, time: KernelTime) -> tuple[str, KernelTime]:
        known = self.calibration
        if known is None:
            return part, time
        factor: float | None
        if kernel.kind == "gemm":
            factor = known.gemm.get(self.dtype_of(kernel.dtype))
            if factor is not None and time.misaligned:
                mid = MISALIGNED.value.mid
                factor = factor * known.misaligned / mid if known.misaligned else None
        elif kernel.kind.startswith("attention"):
            factor = known.attention
        else:
            factor = known.memory.get(kernel.kind)
        if factor is None:
            return part, time
        return part, replace(
            time.times(factor), sigma=min(time.sigma, _SIGMA_CALIBRATED), basis="measured"
        )

    def flops(self, work: Work) -> dict[str, int]:
        """Those of a micro-step by the dtype of their products."""
        flops: dict[str, int] = {}
        of_tuple: dict[int, dict[str, int]] = {}
        for segment in work.segments:
            mine = of_tuple.get(id(segment.kernels))
            if mine is None:
                mine = of_tuple[id(segment.kernels)] = {}
                for kernel in segment.kernels:
                    if count := kernel_flops(kernel):
                        dtype = self.dtype_of(kernel.dtype)
                        mine[dtype] = mine.get(dtype, 0) + count
            for dtype, count in mine.items():
                flops[dtype] = flops.get(dtype, 0) + count
        return flops
