"""The packaged measurements of one chip, and which accelerator rows may use them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rigsize.hardware import Accelerator
from rigsize.steptime.grid import Grid

__all__ = [
    "SIBLINGS",
    "AttentionTable",
    "Fit",
    "Tables",
    "fits",
    "fitted_json",
    "mean_fit",
    "tables_of",
]

DATA = Path(__file__).parent / "data"

# Boards with the same chip at the same clock and power, so that what was measured on the second
# holds for the first; memory bandwidth enters through the model, not through the table.
SIBLINGS = {"A100-40GB-SXM": "A100-80GB-SXM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Constants of a time model, fitted to measurements by validation/build_kernels.py."""

    start_s: float
    """The time of a kernel with next to no work."""
    compute_share: float
    """Share of the datasheet peak inside a full wave of tiles."""
    memory_share: float
    """Share of the datasheet memory bandwidth."""
    prologue: float = 0.0
    """Steps along k that filling and draining a tile's pipeline costs."""
    cache_speedup: float = 1.0
    """How many times faster than memory operands come from the L2 cache."""
    cache_bytes: float = 0.0
    """The traffic up to which operands come from the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTable:
    """Forward times of fused attention with one head size."""

    causal: bool
    """Whether the upper triangle is left out."""
    head_dim: int
    """The size of a head."""
    fit: Fit
    """The model whose residuals the grid holds."""
    grid: Grid
    """log(measured / model) over (batch, length, heads)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What was measured on one chip."""

    gpu: str
    """The accelerator row it was measured on."""
    gemm: Grid | None
    """log(measured / tile model) of bf16 products over (m, n, k)."""
    attention: tuple[AttentionTable, ...]
    """Forward passes of fused attention, 16-bit."""
    collectives: Mapping[str, Mapping[int, tuple[tuple[float, float], ...]]]
    """By operation and number of ranks: (bytes of the whole buffer, seconds), ascending."""


def tables_of(gpu: Accelerator) -> Tables | None:
    """The measurements that hold for this accelerator, None if there are none."""
    return _load(SIBLINGS.get(gpu.id, gpu.id))


@lru_cache(maxsize=16)
def _load(gpu_id: str) -> Tables | None:
    path = DATA / f"{gpu_id}.json.gz"
    if not path.exists():
        return None
    raw = json.loads(gzip.decompress(path.read_bytes()))
    return Tables(
        gpu=raw["gpu"],
        gemm=_grid(raw["gemm"]) if raw["gemm"] else None,
        attention=tuple(
            AttentionTable(
                causal=row["causal"],
                head_dim=row["head_dim"],
                fit=Fit(**row["fit"]),
                grid=_grid(row["grid"]),
            )
            for row in raw["attention"]
        ),
        collectives={
            op: {int(ranks): tuple(map(tuple, points)) for ranks, points in by_ranks.items()}
            for op, by_ranks in raw["collectives"].items()
        },
    )


def _grid(raw: Mapping[str, Any]) -> Grid:
    return Grid(
        axes=tuple(map(tuple, raw["axes"])),
        values=tuple(raw["log_1e4"]),
        metric=tuple(map(tuple, raw["metric"])),
        reach=raw["reach"],
    )


@lru_cache(maxsize=1)
def fitted_json() -> Any:
    """The file of fitted constants, as it is."""
    return json.loads((DATA / "fitted.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def fits() -> dict[str, dict[str, Fit]]:
    """The fitted constants by kind (gemm_16bit, gemm_fp32, ...) and accelerator id."""
    raw = fitted_json()["products"]
    return {kind: {gpu: Fit(**row) for gpu, row in by_gpu.items()} for kind, by_gpu in raw.items()}


def mean_fit(rows: Mapping[str, Fit]) -> Fit:
    """The mean of every constant."""
    count = len(rows)
    return Fit(
        **{
            name: sum(getattr(fit, name) for fit in rows.values()) / count
            for name in Fit.__dataclass_fields__
        }
    )
