"""Prints how well the kernel models predict what they were not given.

    python validation/check_kernels.py

From the packaged tables alone. *Points*: a fifth of the measurements, drawn at random, is taken
out and predicted, five times over. *Pairs*: whole (n, k) pairs. *Left out*: every measurement of
the GPU, its constants included; what other cards give is held against products above 3 GFLOP.
Returns 1 if a declared target is missed.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

from rigsize.hardware import find_accelerator
from rigsize.steptime.gemm import tile_model_s, unmeasured_fit
from rigsize.steptime.grid import Grid
from rigsize.steptime.tables import fits, tables_of

FOLDS = 5
# GPU -> (random points, pairs, left out), mean absolute errors in percent.
TARGETS = {
    "A100-80GB-SXM": (5.5, 8.0, 14.0),
    "H100-80GB-SXM": (5.5, 8.0, 14.0),
    "L40S": (5.5, 8.0, 20.0),
}
OTHERS = ("H200-141GB-SXM", "B200", "RTX-PRO-6000-BSE")
ATTENTION_TARGET = 6.0


def main() -> int:
    """Prints every figure beside its target."""
    missed = 0
    print("GEMM bf16, mean absolute error %    points   pairs   left out")
    for name in (*TARGETS, *OTHERS):
        found = (points_error(name), pairs_error(name), left_out_error(name))
        targets = TARGETS.get(name)
        missed += sum(f > t for f, t in zip(found, targets, strict=True)) if targets else 0
        shown = "  (targets {}, {}, {})".format(*targets) if targets else ""
        print(f"  {name:32}  {found[0]:6.2f}  {found[1]:6.2f}  {found[2]:8.2f}{shown}", flush=True)
    print(f"attention, points held out (target {ATTENTION_TARGET} a GPU)")
    for name in (*TARGETS, *OTHERS):
        errors = attention_errors(name)
        mean = weighted(errors)
        missed += name in TARGETS and mean > ATTENTION_TARGET
        parts = ", ".join(f"{kind} {e:.1f}" for kind, e, _ in errors)
        print(f"  {name:32}  {mean:6.2f}   {parts}", flush=True)
    return int(missed > 0)


def points_error(name: str) -> float:
    """Percent, measurements taken out at random."""
    grid = gemm_grid(name)
    draw = random.Random(0)
    folds = [draw.randrange(FOLDS) for _ in grid.values]
    return held_out_error(grid, folds.__getitem__, range(FOLDS))


def pairs_error(name: str) -> float:
    """Percent, whole (n, k) pairs taken out."""
    grid = gemm_grid(name)
    pairs = len(grid.axes[1]) * len(grid.axes[2])
    draw = random.Random(0)
    folds = [draw.randrange(FOLDS) for _ in range(pairs)]
    return held_out_error(grid, lambda i: folds[i % pairs], range(FOLDS))


def left_out_error(name: str) -> float:
    """Percent above 3 GFLOP, with the constants of the other cards."""
    gpu, grid = find_accelerator(name), gemm_grid(name)
    own = fits()["gemm_16bit"][name]
    other = unmeasured_fit(gpu, {k: v for k, v in fits()["gemm_16bit"].items() if k != name})
    errors = []
    for (m, n, k), value in zip(product(*grid.axes), grid.values, strict=True):
        if value is not None and 2 * m * n * k > 3e9:
            mine = tile_model_s(gpu, m, n, k, batch=1, dtype="bf16", fit=own)
            theirs = tile_model_s(gpu, m, n, k, batch=1, dtype="bf16", fit=other)
            errors.append(abs(theirs / (mine * math.exp(value * 1e-4)) - 1))
    return 100 * fmean(errors)


def gemm_grid(name: str) -> Grid:
    """The packaged grid of a chip."""
    tables = tables_of(find_accelerator(name))
    if tables is None or tables.gemm is None:
        raise SystemExit(f"no table of {name}")
    return tables.gemm


def attention_errors(name: str) -> list[tuple[str, float, int]]:
    """(kind, percent, measurements) for each packaged attention table."""
    tables = tables_of(find_accelerator(name))
    found = []
    for table in tables.attention if tables else ():
        draw = random.Random(0)
        folds = [draw.randrange(FOLDS) for _ in table.grid.values]
        error = held_out_error(table.grid, folds.__getitem__, (0,))
        known = sum(value is not None for value in table.grid.values)
        kind = f"{'causal' if table.causal else 'bidirectional'} {table.head_dim}"
        found.append((kind, error, known))
    return found


def weighted(errors: list[tuple[str, float, int]]) -> float:
    """The mean over all measurements."""
    return sum(e * n for _, e, n in errors) / max(sum(n for _, _, n in errors), 1)


def held_out_error(grid: Grid, fold: Callable[[int], int], folds: Iterable[int]) -> float:
    """Percent: mean |predicted / measured - 1| over the points of `folds`, each taken out whole."""
    errors = []
    points = list(product(*grid.axes))
    for out in folds:
        rest = tuple(None if fold(i) == out else v for i, v in enumerate(grid.values))
        without = replace(grid, values=rest)
        for i, value in enumerate(grid.values):
            if value is not None and fold(i) == out:
                errors.append(abs(math.expm1(without.at(points[i]) - value * 1e-4)))
    return 100 * fmean(errors)


def packed_grid(raw: dict[str, Any]) -> Grid:
    """A grid from its packaged form."""
    return Grid(
        axes=tuple(map(tuple, raw["axes"])),
        values=tuple(raw["log_1e4"]),
        metric=tuple(map(tuple, raw["metric"])),
        reach=raw["reach"],
    )


if __name__ == "__main__":
    sys.exit(main())
