"""Matrix products: a tile model, times what this chip's own measurements say of it.

C[m, n] = A[m, k] B[k, n], `batch` times. With P the dense peak and SM the number of
multiprocessors, over tiles (bm, bn, r) and splits s of the k loop,

    compute = min ceil(ceil(m/bm) ceil(n/bn) batch s / SM) SM bm bn 2 (k/s + prologue) / (P e r)
    t       = t0 + (compute**3 + memory**3) ** (1/3)

where memory is the traffic over the bandwidth, faster while it fits the L2 cache, and a split
adds its reduction. What remains, log(measured / t), comes from the table of the chip. Backward
layouts (nt, tn) were measured by nobody: they take the forward's time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from rigsize.errors import UnsupportedCombination
from rigsize.hardware import Accelerator, load_accelerators
from rigsize.steptime.constants import LOW_POWER_SHARE, MISALIGNED, ROCM_MATMUL_SHARE
from rigsize.steptime.kernel_time import KernelTime
from rigsize.steptime.tables import SIBLINGS, Fit, fits, mean_fit, tables_of

__all__ = [
    "Layout",
    "fit_for",
    "gemm",
    "is_misaligned",
    "peak_flops_per_s",
    "tile_model_s",
    "unmeasured_fit",
]

# Operand order as BLAS calls it, "nt" being a Linear layer: the weight is stored [n, k].
Layout = Literal["nn", "nt", "tn"]

TILES = (
    (256, 128, 1.0),
    (128, 256, 1.0),
    (128, 128, 0.95),
    (128, 64, 0.8),
    (64, 128, 0.8),
    (64, 64, 0.62),
    (64, 32, 0.4),
    (32, 64, 0.4),
)
SPLITS = (1, 2, 3, 4, 6, 8, 16, 32)
_SPLIT_START_S = 2e-6

# Bytes of an operand's and of the result's element.
_BYTES = {"bf16": (2, 2), "fp16": (2, 2), "tf32": (4, 4), "fp32": (4, 4), "fp8": (1, 2)}
_BYTES["int8"] = (1, 2)
_TABLE_DTYPES = ("bf16", "fp16")
_LOW_POWER_W = 75.0

# Spread of log(measured / model), from the figures of validation/check_kernels.py: mean absolute
# errors of 4 to 6 % inside a table, 10 to 20 % on a chip that was left out.
_SIGMA_TABLE = 0.06
_SIGMA_DERIVED = 0.15
_SIGMA_UNMEASURED = 0.2
_SIGMA_ASSUMED = 0.3


@lru_cache(maxsize=65_536)
def gemm(
    gpu: Accelerator,
    m: int,
    n: int,
    k: int,
    *,
    batch: int = 1,
    dtype: str = "bf16",
    layout: Layout = "nt",
) -> KernelTime:
    """The time of a matrix product on a device; leaves out what the host needs to launch it.

    Raises:
        UnsupportedCombination: the accelerator has no known rate in this dtype, or is none that
            the tile model describes.
    """
    fit, sigma, basis, note = fit_for(gpu, dtype)
    seconds = tile_model_s(gpu, m, n, k, batch=batch, dtype=dtype, fit=fit)
    answer = KernelTime(seconds=seconds, sigma=sigma, basis=basis, note=note)
    tables = tables_of(gpu) if dtype in _TABLE_DTYPES else None
    if tables and tables.gemm and batch == 1:
        measured = answer.times(math.exp(tables.gemm.at((m, n, k))))
        answer = replace(measured, sigma=_SIGMA_TABLE, basis="measured")
    if is_misaligned(m, n, k, dtype=dtype, layout=layout):
        return replace(answer.times(MISALIGNED.value.mid), misaligned=True, basis="assumed")
    return answer


def tile_model_s(
    gpu: Accelerator, m: int, n: int, k: int, *, batch: int, dtype: str, fit: Fit
) -> float:
    """Seconds by the tile model of this module's docstring, without residual."""
    sms, bandwidth = gpu.sm_count or 1, (gpu.memory_bytes_per_s or 1.0) * fit.memory_share
    rate = peak_flops_per_s(gpu, dtype) * fit.compute_share
    operand, result = _BYTES[dtype]
    moved = batch * (operand * (m * k + k * n) + result * m * n)
    hot = 1 / (1 + (moved / fit.cache_bytes) ** 2) if fit.cache_bytes else 0.0
    memory = moved / bandwidth * (1 - hot + hot / fit.cache_speedup)
    reduce_s = 8 * batch * m * n / (bandwidth * fit.cache_speedup)
    compute = float("inf")
    for bm, bn, share in TILES:
        tiles = -(-m // bm) * -(-n // bn) * batch
        area_s = sms * bm * bn * 2 / (rate * share)
        for split in SPLITS:
            wave = -(-tiles * split // sms)
            time = wave * area_s * (k / split + fit.prologue)
            if split > 1:
                time += _SPLIT_START_S + split * reduce_s
            compute = min(compute, time)
    return float(fit.start_s + (compute**3 + memory**3) ** (1 / 3))


def is_misaligned(m: int, n: int, k: int, *, dtype: str, layout: Layout) -> bool:
    """Whether a row of A, B or C does not start on a multiple of 16 bytes (tensor cores only)."""
    if dtype == "fp32":
        return False
    rows = (m if layout == "tn" else k, k if layout == "nt" else n, n)
    return any(row % (16 // _BYTES[dtype][0]) for row in rows)


def peak_flops_per_s(gpu: Accelerator, dtype: str) -> float:
    """The dense datasheet peak; an unknown one is an error, never a neighbour's."""
    if dtype not in _BYTES:
        raise UnsupportedCombination("dtype", dtype, "no product is known in it", allowed=_BYTES)
    peak = gpu.peak_flops_per_s.get(dtype)
    if peak is None or gpu.sm_count is None or gpu.memory_bytes_per_s is None:
        what = "memory bandwidth" if gpu.memory_bytes_per_s is None else "number of multiprocessors"
        what = f"rate for products in {dtype}" if peak is None else what
        raise UnsupportedCombination(
            "gpus",
            gpu.id,
            f"no published {what}, so no time",
            allowed=[d for d in _BYTES if d in gpu.peak_flops_per_s and peak is None],
        )
    return peak


@lru_cache(maxsize=256)
def fit_for(gpu: Accelerator, dtype: str) -> tuple[Fit, float, Literal["derived", "assumed"], str]:
    """Constants for products on this device, their sigma, their basis and what was assumed."""
    if gpu.software_stack == "rocm":
        share = ROCM_MATMUL_SHARE.value.mid
        fit = replace(mean_fit(fits()["gemm_16bit"]), compute_share=share)
        return fit, _SIGMA_ASSUMED, "assumed", "share of the peak as on an MI300X"
    if gpu.software_stack != "cuda":
        raise UnsupportedCombination(
            "gpus", gpu.id, f"no time model for the {gpu.software_stack} stack"
        )
    if dtype == "fp32":
        return _fp32_fit(gpu)
    own = fits()["gemm_16bit"].get(SIBLINGS.get(gpu.id, gpu.id))
    if own and dtype in _TABLE_DTYPES:
        return own, _SIGMA_DERIVED, "derived", ""
    if own:
        return own, _SIGMA_UNMEASURED, "derived", f"share of the {dtype} peak as of bf16's"
    return _unmeasured_fit(gpu)


def _unmeasured_fit(gpu: Accelerator) -> tuple[Fit, float, Literal["derived", "assumed"], str]:
    fit = unmeasured_fit(gpu, fits()["gemm_16bit"])
    if gpu.tdp_w is not None and gpu.tdp_w <= _LOW_POWER_W:
        share = fit.compute_share * LOW_POWER_SHARE.value.mid
        note = "a card of 75 W or less does not hold its clock"
        return replace(fit, compute_share=share), _SIGMA_ASSUMED, "assumed", note
    return fit, _SIGMA_UNMEASURED, "derived", "constants of other cards"


def unmeasured_fit(gpu: Accelerator, measured: dict[str, Fit]) -> Fit:
    """The mean of the measured chips of the same architecture, else of all."""
    arch = {row.id: row.arch for row in load_accelerators()}
    same = {name: fit for name, fit in measured.items() if arch[name] == gpu.arch}
    return mean_fit(same or measured)


def _fp32_fit(gpu: Accelerator) -> tuple[Fit, float, Literal["derived", "assumed"], str]:
    """Constants of the vector units: what a card sustains depends on its power."""
    rows = fits()["gemm_fp32"]
    own = rows.get(_FP32_SIBLINGS.get(gpu.id, gpu.id))
    if own:
        return own, _SIGMA_DERIVED, "derived", ""
    low = gpu.tdp_w is not None and gpu.tdp_w <= _LOW_POWER_W
    like = {name: fit for name, fit in rows.items() if (name in _LOW_POWER_MEASURED) == low}
    note = "sustained share of the fp32 peak as on other cards of its power"
    return mean_fit(like), _SIGMA_UNMEASURED, "derived", note


_LOW_POWER_MEASURED = ("T4", "L4")
# The same chip on a board of similar power.
_FP32_SIBLINGS = {
    "A100-80GB-SXM": "A100-80GB-PCIe",
    "A100-40GB-SXM": "A100-80GB-PCIe",
    "V100-16GB-PCIe": "V100-32GB-PCIe",
    "V100-16GB-SXM2": "V100-32GB-PCIe",
    "V100-32GB-SXM2": "V100-32GB-PCIe",
}
