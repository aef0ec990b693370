"""Builds the packaged kernel tables and fitted constants from folders of published measurements.

    python -m validation.build_kernels DATA_FOLDER

DATA_FOLDER holds kernels_*.csv (see src/rigsize/steptime/data/SOURCES.md for where they come
from). Nothing but those files enters: constants are fitted by Nelder-Mead on the mean of
|log(measured / model)|, residuals of the fitted model are stored on the measured grid.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from validation.check_kernels import held_out_error, packed_grid

from rigsize.hardware import Accelerator, find_accelerator
from rigsize.steptime.attention import Heads, roofline_s
from rigsize.steptime.gemm import tile_model_s
from rigsize.steptime.tables import DATA, Fit

# Names in the measurements -> rows of the accelerator table. vTrain's nodes and pairwise NVLink
# are other machines and stay out; so is the P4, which has no row.
CHIPS = {
    "A100-SXM4-80GB": "A100-80GB-SXM",
    "H100-SXM5-80GB": "H100-80GB-SXM",
    "H200-SXM-141GB": "H200-141GB-SXM",
    "B200-SXM": "B200",
    "L40S-48GB": "L40S",
    "RTX-PRO-6000-Server": "RTX-PRO-6000-BSE",
}
NEUSIGHT = {
    "NVIDIA A100 80GB PCIe": "A100-80GB-PCIe",
    "NVIDIA A100-PCIE-40GB": "A100-40GB-PCIe",
    "NVIDIA H100 80GB HBM3": "H100-80GB-SXM",
    "NVIDIA L4": "L4",
    "Tesla P100-PCIE-16GB": "P100-16GB-PCIe",
    "Tesla T4": "T4",
    "Tesla V100-PCIE-32GB": "V100-32GB-PCIe",
}
GEMM_METRIC = [[1 / 0.6, 0, 0], [0, 1 / 0.6, 0], [0, 0, 1 / 0.8]]
# Attention follows batch x heads and the length; the mix is how much their ratio counts besides.
ATTENTION_MIXES = (0.15, 0.4, 0.8)
# Heads of 192 on the L40S come from collections that disagree by a factor of two.
ATTENTION_DROPPED = {("L40S", 192)}
MEMORY_CLASSES = {
    "add": ("elementwise", 3),
    "mul": ("elementwise", 3),
    "div": ("elementwise", 3),
    "addu": ("elementwise", 2),
    "mulu": ("elementwise", 2),
    "gelu": ("elementwise", 2),
    "relu": ("elementwise", 2),
    "tanh": ("elementwise", 2),
    "ln": ("layernorm", 2),
    "softmax": ("softmax", 2),
}
# Below this NeuSight's event floor of about 25 us bends the fit: with every row from 1 MiB
# on, large operators come out 10 to 15 % too fast.
SMALLEST_TRAFFIC_BYTES = 32 << 20
KERNEL_START_S = 3e-6
# The floor varies by more than a short kernel takes, so a longer start is its doing.
LONGEST_HALF_S = 3e-6
# Nothing reads DRAM faster than this share of the datasheet; fits above it are the cache's doing
# (operands of the fp32 products) or the event floor's (short elementwise operators).
FASTEST_MEMORY_SHARE = 0.92

Row = tuple[float, ...]


def main(folder: Path) -> None:
    """Writes one file a chip, and the constants."""
    gemm = _gemm_rows(folder)
    attention = _attention_rows(folder)
    collectives = _collective_rows(folder)
    products: dict[str, dict[str, Any]] = defaultdict(dict)
    for chip in CHIPS.values():
        gpu = find_accelerator(chip)
        fit = fit_gemm(gpu, gemm[chip])
        products["gemm_16bit"][chip] = asdict(fit)
        tables = [
            _attention_table(gpu, causal, head_dim, attention[key])
            for key in sorted(attention)
            for name, causal, head_dim in [key]
            if name == chip and (chip, head_dim) not in ATTENTION_DROPPED
        ]
        for table in tables:
            kind = "attention_causal" if table["causal"] else "attention_bidirectional"
            # Heads of 64 or 128, where most models are, stand for the chip among others.
            if table["head_dim"] in (64, 128):
                products[kind][chip] = table["fit"]
        _write_chip(chip, _gemm_grid(gpu, fit, gemm[chip]), tables, collectives[chip])
        print(chip, fit, flush=True)
    for chip, rows in _fp32_rows(folder).items():
        products["gemm_fp32"][chip] = asdict(fit_fp32(find_accelerator(chip), rows))
        print(chip, "fp32", products["gemm_fp32"][chip], flush=True)
    fitted = {"products": products, "memory": _memory(folder)}
    text = json.dumps(_rounded(fitted), indent=1) + "\n"
    (DATA / "fitted.json").write_text(text, encoding="utf-8")


def fit_gemm(gpu: Accelerator, rows: Sequence[Row], dtype: str = "bf16") -> Fit:
    """The tile model's six constants, over every fifth row."""
    some = [row for row in rows if row[0] * row[1] * row[2] > 0][::5]

    def model(x: Sequence[float], row: Row) -> float:
        fit = _gemm_fit(x)
        return tile_model_s(
            gpu, int(row[0]), int(row[1]), int(row[2]), batch=1, dtype=dtype, fit=fit
        )

    return _gemm_fit(_minimise(model, some, [2.0, 0.8, 0.75, 100.0, 3.0, 8.0]))


def _gemm_fit(x: Sequence[float]) -> Fit:
    return Fit(
        start_s=x[0] * 1e-6,
        compute_share=x[1],
        memory_share=x[2],
        prologue=x[3],
        cache_speedup=max(x[4], 1.0),
        cache_bytes=x[5] * 1e6,
    )


def fit_fp32(gpu: Accelerator, rows: Sequence[Row]) -> Fit:
    """Start, compute share, memory share and prologue; the start then loses the event floor."""
    step = max(len(rows) // 1000, 1)

    def fit_of(x: Sequence[float]) -> Fit:
        return Fit(start_s=x[0] * 1e-6, compute_share=x[1], memory_share=x[2], prologue=x[3])

    def model(x: Sequence[float], row: Row) -> float:
        b, m, n, k = map(int, row[:4])
        return tile_model_s(gpu, m, n, k, batch=b, dtype="fp32", fit=fit_of(x))

    x = _minimise(model, rows[::step], [20.0, 0.7, 0.7, 20.0])
    share = min(x[2], FASTEST_MEMORY_SHARE)
    return replace(fit_of(x), start_s=KERNEL_START_S, memory_share=share)


def _minimise(
    model: Callable[[Sequence[float], Row], float], rows: Sequence[Row], start: Sequence[float]
) -> list[float]:
    """Nelder-Mead on the mean |log(measured / model)|; the last column is the measured time."""

    def loss(x: Sequence[float]) -> float:
        if min(x) <= 0:
            return 9.0
        return sum(abs(math.log(row[-1] / model(x, row))) for row in rows) / len(rows)

    points = [list(start)]
    for i in range(len(start)):
        points.append([v * (1.25 if i == j else 1.0) for j, v in enumerate(start)])
    ranked = sorted((loss(p), p) for p in points)
    for _ in range(30 * len(start)):
        ranked = _simplex_step(loss, ranked)
    return ranked[0][1]


def _simplex_step(
    loss: Callable[[Sequence[float]], float], ranked: list[tuple[float, list[float]]]
) -> list[tuple[float, list[float]]]:
    *kept, (worst, last) = ranked
    centre = [statistics.fmean(column) for column in zip(*(p for _, p in kept), strict=True)]

    def along(t: float) -> tuple[float, list[float]]:
        point = [c + t * (c - x) for c, x in zip(centre, last, strict=True)]
        return loss(point), point

    new = along(1.0)
    if new[0] < kept[0][0]:
        new = min(new, along(2.0))
    elif new[0] >= kept[-1][0]:
        new = along(-0.5)
    if new[0] < worst:
        return sorted([*kept, new])
    best = kept[0][1]
    shrunk = [[(b + x) / 2 for b, x in zip(best, p, strict=True)] for _, p in ranked[1:]]
    return sorted([ranked[0], *((loss(p), p) for p in shrunk)])


def _gemm_grid(gpu: Accelerator, fit: Fit, rows: Sequence[Row]) -> dict[str, Any]:
    logs = {
        (int(m), int(n), int(k)): math.log(
            t / tile_model_s(gpu, int(m), int(n), int(k), batch=1, dtype="bf16", fit=fit)
        )
        for m, n, k, t in rows
    }
    return _grid(logs, GEMM_METRIC, reach=1)


def _grid(
    logs: Mapping[tuple[int, int, int], float], metric: list[list[float]], reach: int
) -> dict[str, Any]:
    axes = [sorted({key[i] for key in logs}) for i in range(3)]
    values = [logs.get((a, b, c)) for a in axes[0] for b in axes[1] for c in axes[2]]
    packed = [None if v is None else round(v * 1e4) for v in values]
    return {"axes": axes, "log_1e4": packed, "metric": metric, "reach": reach}


def _attention_table(
    gpu: Accelerator, causal: bool, head_dim: int, rows: Sequence[Row]
) -> dict[str, Any]:
    def shape(row: Row) -> Heads:
        return Heads(int(row[0]), int(row[1]), int(row[2]), head_dim)

    def fit_of(x: Sequence[float]) -> Fit:
        return Fit(start_s=x[0] * 1e-6, compute_share=x[1], memory_share=x[2])

    def model(x: Sequence[float], row: Row) -> float:
        return roofline_s(gpu, shape(row), causal=causal, dtype="bf16", fit=fit_of(x))

    fit = fit_of(_minimise(model, rows[:: max(len(rows) // 600, 1)], [3.0, 0.6, 0.8]))
    logs = {
        shape(row)[:3]: math.log(
            row[3] / roofline_s(gpu, shape(row), causal=causal, dtype="bf16", fit=fit)
        )
        for row in rows
    }
    grid = _grid(logs, attention_metric(best_mix(logs)), reach=2)
    return {"causal": causal, "head_dim": head_dim, "fit": asdict(fit), "grid": grid}


def attention_metric(mix: float) -> list[list[float]]:
    """Directions (batch x heads, length, batch / heads) over (batch, length, heads)."""
    return [[1 / 0.7, 0, 1 / 0.7], [0, 1 / 0.7, 0], [mix / 0.7, 0, -mix / 0.7]]


def best_mix(logs: Mapping[tuple[int, int, int], float]) -> float:
    """The weight of batch / heads that predicts every ninth point best from the rest."""

    def error(mix: float) -> float:
        grid = packed_grid(_grid(logs, attention_metric(mix), reach=2))
        return held_out_error(grid, fold=lambda i: int(i % 9 == 0), folds=(1,))

    return min(ATTENTION_MIXES, key=error)


def _write_chip(
    chip: str, gemm: dict[str, Any], attention: list[dict[str, Any]], collectives: dict[str, Any]
) -> None:
    data = {"gpu": chip, "gemm": gemm, "attention": attention, "collectives": collectives}
    packed = json.dumps(_rounded(data), separators=(",", ":")).encode()
    # mtime 0, so that the same measurements give the same file.
    (DATA / f"{chip}.json.gz").write_bytes(gzip.compress(packed, 9, mtime=0))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _read(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _gemm_rows(folder: Path) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for part in ("ampere_hopper", "ada_blackwell"):
        for r in _read(folder / f"kernels_gemm_bf16_{part}.csv"):
            key = (float(r["m"]), float(r["n"]), float(r["k"]))
            rows[CHIPS[r["gpu"]]].append((*key, float(r["ms_median"]) * 1e-3))
    return rows


def _attention_rows(folder: Path) -> dict[tuple[str, bool, int], list[Row]]:
    rows: dict[tuple[str, bool, int], list[Row]] = defaultdict(list)
    for r in _read(folder / "kernels_attention_bf16.csv"):
        shape = (float(r["batch_size"]), float(r["isl"]), float(r["num_heads"]))
        key = (CHIPS[r["gpu"]], "causal" in r["op"], int(r["head_dim"]))
        rows[key].append((*shape, float(r["ms"]) * 1e-3))
    # Less than three head counts are no grid.
    return {key: v for key, v in rows.items() if len({row[2] for row in v}) >= 3}


def _collective_rows(folder: Path) -> dict[str, dict[str, dict[str, list[Row]]]]:
    found: dict[str, Any] = {
        chip: defaultdict(lambda: defaultdict(list)) for chip in CHIPS.values()
    }
    for r in _read(folder / "kernels_collectives.csv"):
        if r["source"] == "aiconfigurator":
            point = (float(r["bytes"]), float(r["ms_median"]) * 1e-3)
            found[CHIPS[r["gpu"]]][r["op"]][r["num_gpus"]].append(point)
    return {
        chip: {op: {n: sorted(p) for n, p in counts.items()} for op, counts in ops.items()}
        for chip, ops in found.items()
    }


def _fp32_rows(folder: Path) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for r in _read(folder / "kernels_matmul_fp32_neusight.csv"):
        if r["gpu"] in NEUSIGHT:
            sizes = tuple(float(r[c] or 1) for c in ("B", "M", "N", "K"))
            if r["op"] == "linear_fwd":
                sizes = (1.0, sizes[0] * sizes[1], *sizes[2:])
            rows[NEUSIGHT[r["gpu"]]].append((*sizes, float(r["ms"]) * 1e-3))
    return rows


def _memory(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    floors: dict[str, float] = defaultdict(lambda: math.inf)
    for r in _read(folder / "kernels_elementwise_fp32_neusight.csv"):
        if r["gpu"] in NEUSIGHT and r["op"] in MEMORY_CLASSES:
            chip, seconds = NEUSIGHT[r["gpu"]], float(r["ms"]) * 1e-3
            floors[chip] = min(floors[chip], seconds)
            kind, passes = MEMORY_CLASSES[r["op"]]
            moved = passes * 4 * float(r["rows"]) * float(r["cols"])
            if moved >= SMALLEST_TRAFFIC_BYTES:
                rows[kind, chip].append((moved, seconds))
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (kind, chip), points in sorted(rows.items()):
        found[kind][chip] = _memory_fit(find_accelerator(chip), points, floors[chip])
        print(chip, kind, len(points), found[kind][chip], flush=True)
    return found


def _memory_fit(gpu: Accelerator, rows: Sequence[Row], floor_s: float) -> dict[str, float]:
    """Share of the bandwidth and the extra start beyond the event floor of the collection."""
    bandwidth = gpu.memory_bytes_per_s or 1.0

    longest_s = floor_s + LONGEST_HALF_S

    def model(x: Sequence[float], row: Row) -> float:
        return min(x[0] * 1e-6, longest_s) + row[0] / (bandwidth * x[1])

    x = _minimise(model, rows, [25.0, 0.7])
    half_s = max(min(x[0] * 1e-6, longest_s) - floor_s, 0.0)
    return {"share": min(x[1], FASTEST_MEMORY_SHARE), "half_s": half_s}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
