"""Fused attention: a calibrated roofline, times what this chip's own table says of it.

    t = t0 + flops / (P e) sqrt(min(tail, 3)) + bytes / (B e_m)

with 4 b h s s d FLOPs (half of them if causal), `tail` the blocks of a whole number of waves over
the blocks there are (128 queries a block), and q, k, v and the output once through memory. The
table gives log(measured / t) over (batch, length, heads). The backward pass does 2.5 times the
work. Attention through plain operators (eager) is its products and memory-bound operators.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from rigsize.hardware import Accelerator
from rigsize.steptime.constants import ATTENTION_BACKWARD
from rigsize.steptime.gemm import fit_for, peak_flops_per_s
from rigsize.steptime.kernel_time import KernelTime
from rigsize.steptime.tables import AttentionTable, Fit, fits, mean_fit, tables_of

__all__ = ["Heads", "attention", "roofline_s"]

_QUERIES_A_BLOCK = 128
_WORST_TAIL = 3.0
_SIGMA_TABLE = 0.07
_SIGMA_OTHER_TABLE = 0.2
_SIGMA_UNMEASURED = 0.3
_SIGMA_BACKWARD = 0.1


class Heads(NamedTuple):
    """The shape of one attention: (B, S, heads, head size)."""

    batch: int
    length: int
    heads: int
    head_dim: int


@lru_cache(maxsize=4096)
def attention(
    gpu: Accelerator,
    shape: Heads,
    *,
    causal: bool = False,
    dtype: str = "bf16",
    backward: bool = False,
) -> KernelTime:
    """The time of one fused attention over as many keys as queries.

    Grouped keys and values cost what full ones do here; a table was measured on full ones.
    """
    forward = _forward(gpu, shape, causal, dtype)
    if not backward:
        return forward
    sigma = math.hypot(forward.sigma, _SIGMA_BACKWARD)
    basis = "derived" if forward.basis == "measured" else forward.basis
    return replace(forward.times(ATTENTION_BACKWARD.value.mid), sigma=sigma, basis=basis)


def _forward(gpu: Accelerator, shape: Heads, causal: bool, dtype: str) -> KernelTime:
    tables = tables_of(gpu) if dtype in ("bf16", "fp16") else None
    table = _nearest(tables.attention, causal, shape.head_dim) if tables else None
    if table is None:
        return _unmeasured(gpu, shape, causal, dtype)
    seconds = roofline_s(gpu, shape, causal=causal, dtype=dtype, fit=table.fit)
    seconds *= math.exp(table.grid.at(shape[:3]))
    if table.causal == causal and table.head_dim == shape.head_dim:
        return KernelTime(seconds=seconds, sigma=_SIGMA_TABLE, basis="measured")
    kind = "causal" if table.causal else "bidirectional"
    note = f"efficiency of {kind} attention with heads of {table.head_dim}"
    return KernelTime(seconds=seconds, sigma=_SIGMA_OTHER_TABLE, basis="derived", note=note)


def _nearest(
    tables: tuple[AttentionTable, ...], causal: bool, head_dim: int
) -> AttentionTable | None:
    """The table with the same mask, then the nearest head size."""
    return min(
        tables,
        key=lambda t: (t.causal != causal, abs(math.log(t.head_dim / head_dim))),
        default=None,
    )


def _unmeasured(gpu: Accelerator, shape: Heads, causal: bool, dtype: str) -> KernelTime:
    """Constants of the measured cards, with this card's products as a measure of its tiles."""
    kind = "attention_causal" if causal else "attention_bidirectional"
    fit = mean_fit(fits()[kind])
    own, _, basis, note = fit_for(gpu, dtype)
    typical = mean_fit(fits()["gemm_16bit"]).compute_share
    fit = replace(fit, compute_share=fit.compute_share * own.compute_share / typical)
    seconds = roofline_s(gpu, shape, causal=causal, dtype=dtype, fit=fit)
    note = note or "attention as on other cards"
    return KernelTime(seconds=seconds, sigma=_SIGMA_UNMEASURED, basis=basis, note=note)


def roofline_s(gpu: Accelerator, shape: Heads, *, causal: bool, dtype: str, fit: Fit) -> float:
    """Seconds of the forward pass by the formula of this module's docstring."""
    batch, length, heads, head_dim = shape
    flops = 4 * batch * heads * length * length * head_dim * (0.5 if causal else 1.0)
    element = 4 if dtype in ("fp32", "tf32") else 2
    moved = 4 * element * batch * heads * length * head_dim
    peak = peak_flops_per_s(gpu, dtype)
    sms = gpu.sm_count or 1
    blocks = batch * heads * -(-length // _QUERIES_A_BLOCK)
    tail = min(-(-blocks // sms) * sms / blocks, _WORST_TAIL)
    compute = flops / (peak * fit.compute_share) * math.sqrt(tail)
    return fit.start_s + compute + moved / ((gpu.memory_bytes_per_s or 1.0) * fit.memory_share)
